"""Loggers: what each receives, and a new one."""

import json
import resource
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastsimsiam.config.run import Config
from fastsimsiam.errors import UserError
from fastsimsiam.runs import loggers, recorder
from fastsimsiam.runs.line_file import LineFile
from fastsimsiam.runs.loggers import Logger, keep_metrics
from fastsimsiam.runs.recorder import Recorder
from fastsimsiam.system.text import printable
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


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system refuses to let any file of this process grow beyond a size, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_metrics_and_log_make_up_for_a_full_disk(
    tiny_config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = Recorder(tiny_config)
    recorder.record(1, {"loss": 1.0})
    recorder.say("first")
    with files_of_at_most(40):
        for step in range(2, 6):
            recorder.record(step, {"loss": 1.0 / step})
            recorder.say(f"line {step}")
        assert recorder.failing == ["log.txt", "metrics.jsonl"]
        for name in recorder.failing:
            # What is there is whole.
            assert (tiny_config.out / name).read_bytes().endswith(b"\n")
    told = capsys.readouterr().out
    assert told.count("WARNING: metrics.jsonl cannot be written (File too large)") == 1
    assert told.count("WARNING: log.txt cannot be written (File too large)") == 1
    recorder.record(6, {"loss": 0.1})
    recorder.say("last")
    assert recorder.failing == []
    recorder.close()
    lines = (tiny_config.out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    log = (tiny_config.out / "log.txt").read_text().splitlines()
    assert [line for line in log if "WARNING" not in line] == [
        "first",
        *(f"line {step}" for step in range(2, 6)),
        "last",
    ]


def test_lines_that_are_lost_for_good_are_told(
    tiny_config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = Recorder(tiny_config)
    with files_of_at_most(40):
        for step in range(4):
            recorder.record(step, {"loss": 1.0})
        recorder.close()
    assert [line["step"] for line in recorder.history] == [0, 1, 2, 3]
    assert "metrics.jsonl" in capsys.readouterr().out


def test_a_file_that_is_removed_goes_on_as_a_new_one(
    tiny_config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = Recorder(tiny_config)
    recorder.record(1, {"loss": 1.0})
    shutil.rmtree(tiny_config.out)
    recorder.record(2, {"loss": 1.0})
    recorder.record(3, {"loss": 1.0})
    recorder.close()
    lines = (tiny_config.out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 3]
    told = capsys.readouterr().out
    assert told.count("WARNING: metrics.jsonl cannot be written (it was removed") == 1
    assert told.count("WARNING: TensorBoard cannot be written (its file was removed)") == 1


def test_tensorboard_on_a_full_disk_is_left_out(
    tiny_config: Config, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also at the end of the process, where torch's own writer raises in a thread."""
    recorder = Recorder(tiny_config)
    with files_of_at_most(2000):
        for step in range(40):
            recorder.record(step, {"a name that takes its room in the event file": 1.0})
    recorder.close()
    told = capfd.readouterr()
    assert told.out.count("WARNING: TensorBoard cannot be written (File too large)") == 1
    assert told.err == ""


def test_a_run_without_tensorboard_says_so(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("tensorboard")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto", None)
    assert pretrain(replace(tiny_config, max_steps=2)).steps == 2
    log = (tiny_config.out / "log.txt").read_text()
    assert "WARNING: TensorBoard cannot be written (it does not load (" in log
    assert "pip install tensorboard" in log


class Failing(Logger):
    """Fails at the second line of metrics."""

    name = "the tracker"
    calls = 0

    def log(self, step: int, values: dict[str, float]) -> None:
        Failing.calls += 1
        if Failing.calls == 2:
            raise RuntimeError("the server is gone")


def test_a_logger_that_fails_is_left_out_and_training_goes_on(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_another(config: Config, resumed_step: int | None) -> Iterator[Logger]:
        yield from loggers.open_loggers(config, resumed_step)
        yield Failing()

    monkeypatch.setattr(recorder, "open_loggers", with_another)
    assert pretrain(tiny_config).steps == 12
    log = (tiny_config.out / "log.txt").read_text()
    assert log.count("WARNING: the tracker cannot be written (the server is gone)") == 1
    assert Failing.calls == 2


def test_a_broken_terminal_does_not_end_a_run(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert pretrain(tiny_config).steps == 12
        full.write("what is left does not raise either")
    log = (tiny_config.out / "log.txt").read_text()
    assert log.count("WARNING: the terminal cannot be written (No space left on device)") == 1
    assert "done in" in log


def test_names_that_cannot_be_printed_are_escaped(
    tiny_config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = Recorder(tiny_config)
    recorder.say("skipped: caf\udce9 \x1b[31m \u202e é 猫.jpg")
    recorder.close()
    escaped = "skipped: caf\\xe9 \\x1b[31m \\u202e é 猫.jpg"
    assert (tiny_config.out / "log.txt").read_text().splitlines() == [escaped]
    assert escaped in capsys.readouterr().out
    assert printable("plain") == "plain"


def test_a_line_that_a_crash_cut_short_stays_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("whole\nhal")
    file = LineFile(path, resumed=True)
    file.write("next")
    file.close()
    assert path.read_text() == "whole\nhal\nnext\n"


class Spoiler(Logger):
    """Puts folders where a run writes its results at the end."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def log(self, step: int, values: dict[str, float]) -> None:
        for name in ("summary.json", "curves.png"):
            (self.out / name / "taken").mkdir(parents=True, exist_ok=True)


def test_results_that_cannot_be_written_at_the_end(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The curves cost a line, the summary the exit code; before the work both are refused."""

    def with_spoiler(config: Config, resumed_step: int | None) -> Iterator[Logger]:
        yield from loggers.open_loggers(config, resumed_step)
        yield Spoiler(config.out)

    config = replace(tiny_config, max_steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(recorder, "open_loggers", with_spoiler)
        with pytest.raises(UserError, match=r"the summary .* is a folder"):
            pretrain(config)
    log = (config.out / "log.txt").read_text()
    assert "done (--max-steps: 2 of 12 steps)" in log
    assert "no curves.png: the curves " in log
    shutil.rmtree(config.out / "checkpoints")
    for name in ("summary.json", "curves.png"):
        with pytest.raises(UserError, match=r"\.(json|png) is a folder, not a file"):
            pretrain(config)
        shutil.rmtree(config.out / name)
    (config.out / "checkpoints").touch()
    with pytest.raises(UserError, match="checkpoints is a file, not a folder"):
        pretrain(config)


def test_metrics_that_are_no_numbers_are_valid_json(tiny_config: Config) -> None:
    recorder = Recorder(tiny_config)
    recorder.record(1, {"loss": float("nan"), "lr": 0.5})
    recorder.close()

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    text = (tiny_config.out / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=refuse) == {"step": 1, "loss": None, "lr": 0.5}
    assert keep_metrics(tiny_config.out, 1) == [{"step": 1, "lr": 0.5}]
