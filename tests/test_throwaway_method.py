"""The contract of methods, proven by one with everything: see throwaway_method.py."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_resume import assert_same_state, newest
from test_trainer import losses, metrics, trainer
from throwaway_method import Throwaway, ThrowawayConfig, throwaway

from fastsimsiam.config.run import Config
from fastsimsiam.config.stored import differing_keys, from_dict, to_dict
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.pretrained import load_backbone
from fastsimsiam.methods.base import Progress
from fastsimsiam.methods.registry import build_method
from fastsimsiam.runs.checkpoint import load
from fastsimsiam.train.pretrain import pretrain

SCRIPT = Path(__file__).parent / "throwaway_method.py"


@pytest.fixture
def config(class_folders: Path, tmp_path: Path) -> Config:
    """24 steps of 4 epochs."""
    return replace(throwaway(), data=class_folders, out=tmp_path / "run")


def command(config: Config, *more: str) -> list[str]:
    """The same run as a process of its own."""
    paths = ["--data", str(config.data), "--out", str(config.out)]
    return [sys.executable, str(SCRIPT), "pretrain", "throwaway", *paths, *more]


def test_it_trains_with_all_its_parts(config: Config) -> None:
    made, recorder = trainer(config)
    method = made.method
    assert isinstance(method, Throwaway)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    norm = method.prototypes.weight.norm(dim=1)
    made.schedule_steps = replace(made.schedule_steps, stop=3)
    made.fit()
    # The frozen group has not been trained, only normalized.
    expected = before["prototypes.weight"] / norm[:, None]
    torch.testing.assert_close(method.prototypes.weight.detach(), expected)
    assert method.pointer.item() == 3 * 16 % 40
    assert set(method.queue_labels.tolist()) == {0, 1, 2}
    moved = method.target_projector.weight - before["target_projector.weight"]
    online = method.projector.weight - before["projector.weight"]
    assert 0 < moved.norm() < online.norm()
    # Moving averages are of parameters; running statistics are the target's own.
    target, own = method.target_backbone.bn1.running_mean, method.backbone.bn1.running_mean
    assert not torch.equal(target, own)
    torch.testing.assert_close(method.tau.item(), 0.9 + 0.1 * 2 / 24)
    made.schedule_steps = replace(made.schedule_steps, stop=24)
    made.fit()
    recorder.close()
    made.loader.close()
    assert not torch.allclose(method.prototypes.weight.detach(), expected)
    trace = losses(config)
    assert sum(trace[-6:]) < sum(trace[:6])
    assert {"supervised", "collapse_std"} <= set(metrics(config)[0])


def test_it_compiles_whole_without_recompiling(config: Config) -> None:
    torch._dynamo.reset()
    eager, recorder = trainer(replace(config, max_steps=10))
    eager.fit()
    recorder.close()
    eager.loader.close()
    compiled, recorder = trainer(
        replace(config, max_steps=10, out=config.out.with_name("compiled"))
    )
    compiled.compute.compile(fullgraph=True, dynamic=False, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled.fit()
    recorder.close()
    compiled.loader.close()
    assert compiled.step == 10
    assert losses(compiled.config) == pytest.approx(losses(config), abs=2e-3)
    state = eager.method.state_dict()
    for name, value in compiled.method.state_dict().items():
        torch.testing.assert_close(value, state[name], atol=2e-2, rtol=2e-2)


def test_resumed_it_is_the_same_to_the_bit(config: Config, tmp_path: Path) -> None:
    """The methods of the package are killed for it, in test_every_method.py."""
    config = replace(
        config,
        method=ThrowawayConfig(temperature=0.3),
        checkpoint=replace(config.checkpoint, every_epochs=0.34),
    )
    whole = replace(config, out=tmp_path / "whole")
    pretrain(replace(config, max_steps=9))
    pretrain(config, resume=True)
    pretrain(whole)
    assert_same_state(newest(config), newest(whole))
    stored = load(newest(config)).config
    assert stored.method == ThrowawayConfig(temperature=0.3)
    kept = load(newest(config)).method
    assert {"queue", "queue_labels", "pointer", "target_projector.weight"} <= set(kept)
    # Evaluation takes the network that is trained, not its moving average.
    backbone = load_backbone(config.out)
    assert torch.equal(backbone.conv1.weight, kept["backbone.conv1.weight"])
    assert not torch.equal(backbone.conv1.weight, kept["target_backbone.conv1.weight"])


def test_its_options_are_flat_on_the_command_line(config: Config) -> None:
    helped = subprocess.run(
        command(config, "--help"), check=True, capture_output=True, text=True
    ).stdout
    assert "--method.temperature" in helped
    assert "--method.stop-gradient" not in helped
    wrong = subprocess.run(
        command(config, "--method.stop-gradient", "off"), capture_output=True, text=True
    )
    assert wrong.returncode == 2
    assert len(wrong.stderr.splitlines()) == 1
    assert "--method.stop-gradient" in wrong.stderr


def test_the_discriminator_survives_storage(config: Config) -> None:
    stored = json.loads(json.dumps(to_dict(config)))
    assert stored["method"]["name"] == "throwaway"
    assert from_dict(stored) == config
    simsiam = replace(config, method=type(from_dict(stored | {"method": {}}).method)())
    assert differing_keys(config, simsiam) == ["method (throwaway -> simsiam)"]
    with pytest.raises(UserError, match="unknown method: other"):
        from_dict(stored | {"method": {"name": "other"}})


def test_a_loss_of_the_whole_batch_refuses_parts_of_it(config: Config) -> None:
    with pytest.raises(UserError, match="--accumulate is 2, but throwaway compares all images"):
        pretrain(replace(config, accumulate=2))
    assert not config.out.exists()


def test_hooks_are_called_around_every_step(config: Config) -> None:
    made, recorder = trainer(config)
    calls: list[object] = []
    made.method.before_step = calls.append
    made.method.after_step = lambda: calls.append(torch.is_grad_enabled())
    made.schedule_steps = replace(made.schedule_steps, stop=2)
    made.fit()
    recorder.close()
    made.loader.close()
    at = [Progress(step=step, steps_per_epoch=6, total_steps=24) for step in (0, 1)]
    assert calls == [at[0], False, at[1], False]


def test_each_accumulated_part_is_seen(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two parts of eight fill the queue as one of sixteen does."""
    monkeypatch.setattr(Throwaway, "whole_batch", False)
    made, recorder = trainer(replace(config, accumulate=2, max_steps=2))
    made.fit()
    recorder.close()
    made.loader.close()
    assert made.method.pointer.item() == 2 * 16
    assert (made.method.queue_labels[: 2 * 16] >= 0).all()
    assert (made.method.queue_labels[2 * 16 :] == -1).all()


def test_large_views_are_those_of_the_largest_size() -> None:
    assert Throwaway.large_views((224, 224, 96, 96)) == (0, 1)
    assert Throwaway.large_views((32, 32)) == (0, 1)


def test_it_is_built_from_its_config(config: Config) -> None:
    assert build_method(config).config == ThrowawayConfig()
