"""What a run says at its end, and where memory is too small."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_trainer import _Contrastive

import fastsimsiam.train.build
from fastsimsiam.cli import main
from fastsimsiam.config.run import Config, KnnConfig
from fastsimsiam.errors import UserError
from fastsimsiam.optim.schedule import ScheduleSteps
from fastsimsiam.system.out_of_memory import memory_told
from fastsimsiam.train.checks import inexact_resume, little_room
from fastsimsiam.train.ending import how_it_ended, since_untrained
from fastsimsiam.train.pretrain import pretrain

STEPS = ScheduleSteps(steps_per_epoch=6, total=12, stop=12, checkpoint_every=6, knn_every=6)


@pytest.mark.parametrize(
    ("stop", "step", "signal", "said"),
    [
        (12, 12, 0, "done"),
        (12, 7, 15, "stopped at step 7 of 12"),
        (5, 5, 0, "done (--max-steps: 5 of 12 steps)"),
        (5, 3, 2, "stopped at step 3 of 5"),
    ],
)
def test_done_is_said_of_what_is_done(stop: int, step: int, signal: int, said: str) -> None:
    assert how_it_ended(replace(STEPS, stop=stop), step, signal) == said


def test_two_scores_are_needed_for_a_comparison() -> None:
    def at(*steps: int) -> list[dict[str, float]]:
        scores = [{"step": step, "knn_top1_k5": 10.0 + step} for step in steps]
        return [{"step": 1, "epoch": 0.1, "loss": 0.0}, *scores]

    assert list(since_untrained(at(0), 0)) == []
    assert list(since_untrained(at(0), 3)) == []
    # The first score of a run that was resumed without its metrics is not of an untrained network.
    assert list(since_untrained(at(6, 12), 12)) == []
    assert list(since_untrained(at(0, 6, 12), 12)) == ["knn_top1_k5: 10.00 untrained -> 22.00"]
    assert list(since_untrained(at(0, 6), 9)) == [
        "knn_top1_k5: 10.00 untrained -> 16.00 (at step 6)"
    ]


def test_torchs_error_of_too_little_memory_is_one_line() -> None:
    with (
        pytest.raises(UserError, match="^the memory is too small for this: do that$"),
        memory_told("this", "do that"),
    ):
        torch.empty(2**55)
    with pytest.raises(RuntimeError, match="other"), memory_told("this", "do that"):
        raise RuntimeError("other")


class _Large(_Contrastive):
    """Needs more memory than there is, in a step or in an evaluation."""

    evaluated = False

    def forward(self, views: object, labels: object) -> object:  # type: ignore[override]
        torch.empty(2**55)


def test_a_step_and_an_evaluation_that_need_too_much_memory(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fastsimsiam.train.build, "build_method", lambda config: _Large())
    with pytest.raises(
        UserError, match="too small for this batch: start again with another --out, and a lower"
    ):
        pretrain(tiny_config)

    def large() -> _Contrastive:
        method = _Contrastive()
        method.backbone.register_forward_pre_hook(
            lambda module, images: None if module.training else torch.empty(2**55)
        )
        return method

    monkeypatch.setattr(fastsimsiam.train.build, "build_method", lambda config: large())
    config = replace(tiny_config, knn=KnnConfig(every_epochs=1, k=(5,)))
    with pytest.raises(
        UserError, match=r"too small for the evaluation: pass --knn\.every-epochs 0"
    ):
        pretrain(config)
    # The advice works.
    assert pretrain(tiny_config).steps == 12


def test_any_command_tells_too_little_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def large(argv: list[str]) -> int:
        torch.empty(2**55)
        return 0

    monkeypatch.setattr("fastsimsiam.commands.recipes.run", large)
    assert main(["recipes"]) == 2
    assert capsys.readouterr().err == "fastsimsiam: error: the memory is too small for this\n"


def test_little_room_on_the_disk_is_told(tmp_path: Path) -> None:
    assert little_room(torch.nn.Linear(10, 10), "sgd", tmp_path) is None
    with torch.device("meta"):
        method = torch.nn.Linear(10**8, 10**7, bias=False)  # 4e15 bytes
        target = torch.nn.Linear(10**8, 10**7, bias=False).requires_grad_(False)
        method.register_module("target", target)
        method.register_buffer("queue", torch.zeros(10**7, 10**7))  # 4e14 bytes
        method.register_buffer("scratch", torch.zeros(10**8, 10**8), persistent=False)
    # Weights and the optimizer's numbers of each; the target and the queue once.
    for optimizer, copies in (("sgd", 2), ("lars", 2), ("larc", 2), ("adamw", 3)):
        need = 2 * (copies * 4e6 + 4e6 + 4e5)
        told = f"two checkpoints take about {need:.2f} GB"
        assert told in str(little_room(method, optimizer, tmp_path))


def test_a_resume_on_another_number_of_processes_is_told(tiny_config: Config) -> None:
    from fastsimsiam.runs.checkpoint import CheckpointStore, load

    pretrain(replace(tiny_config, max_steps=1))
    (path,) = CheckpointStore(tiny_config.out, 1).paths()
    state = load(path)
    assert state.ranks == 1
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert inexact_resume(tiny_config, state, cpu, 1) is None
    assert inexact_resume(tiny_config, replace(state, ranks=None), cpu, 2) is None
    assert "8 images instead of 16" in str(inexact_resume(tiny_config, state, cpu, 2))
    assert "not exact to the bit" in str(inexact_resume(tiny_config, state, cuda, 2))
