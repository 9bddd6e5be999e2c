"""Loggers: what each receives, and a new one."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastsimsiam.config.run import Config
from fastsimsiam.errors import UserError
from fastsimsiam.runs import loggers, recorder
from fastsimsiam.runs.loggers import Logger
from fastsimsiam.runs.recorder import Recorder
from fastsimsiam.train.pretrain import pretrain


class Kept(Logger):
    """A logger of one's own: keeps what it is told."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.metrics: list[tuple[int, dict[str, float]]] = []
        self.closed = False

    def log(self, step: int, values: dict[str, float]) -> None:
        self.metrics.append((step, dict(values)))

    def close(self) -> None:
        self.closed = True


def test_a_new_logger_receives_all_metrics(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Kept] = []

    def with_another(config: Config, resumed_step: int | None) -> Iterator[Logger]:
        yield from loggers.open_loggers(config, resumed_step)
        opened.append(Kept(config))
        yield opened[-1]

    monkeypatch.setattr(recorder, "open_loggers", with_another)
    pretrain(replace(tiny_config, max_steps=4))
    (kept,) = opened
    assert kept.closed
    assert kept.config.out == tiny_config.out
    lines = (tiny_config.out / "metrics.jsonl").read_text().splitlines()
    assert [{"step": step, **values} for step, values in kept.metrics] == list(
        map(json.loads, lines)
    )


def test_tensorboard_has_metrics_and_config(tiny_config: Config) -> None:
    pretrain(replace(tiny_config, max_steps=4))
    board = EventAccumulator(str(tiny_config.out / "tensorboard"))
    board.Reload()
    assert {"loss", "collapse_std", "lr"} <= set(board.Tags()["scalars"])
    assert [event.step for event in board.Scalars("loss")] == [2, 4]
    (text,) = board.Tensors("config/text_summary")
    assert b'"arch": "tiny_resnet"' in text.tensor_proto.string_val[0]


def test_a_resumed_run_repeats_no_line(tiny_config: Config) -> None:
    first = Recorder(tiny_config)
    for step in (2, 4, 6):
        first.record(step, {"loss": float(step)})
    first.say("hello")
    first.close()
    with open(tiny_config.out / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "lo')
    second = Recorder(tiny_config, resumed_step=4)
    assert [line["step"] for line in second.history] == [2, 4]
    second.record(6, {"loss": 6.5})
    second.status("going on", 6, 12)
    second.close()
    lines = (tiny_config.out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [2.0, 4.0, 6.5]
    assert (tiny_config.out / "log.txt").read_text() == "hello\nstep 6/12  going on\n"


def test_other_ranks_are_silent(tiny_config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    silent = Recorder(tiny_config, active=False)
    silent.record(1, {"loss": 1.0})
    silent.say("nobody hears it")
    silent.close()
    assert silent.history == [{"step": 1, "loss": 1.0}]
    assert not tiny_config.out.exists()
    assert capsys.readouterr().out == ""


def test_a_folder_that_cannot_be_written_is_named(tiny_config: Config, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write to --out .*pass another folder"):
        Recorder(replace(tiny_config, out=tmp_path / "file" / "run"))


def test_a_logger_that_does_not_open_leaves_none_open(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Kept(tiny_config)

    def failing(config: Config, resumed_step: int | None) -> Iterator[Logger]:
        yield opened
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(recorder, "open_loggers", failing)
    with pytest.raises(UserError, match="No space left"):
        Recorder(tiny_config)
    assert opened.closed
