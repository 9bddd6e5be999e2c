"""Signals: a run saves, and ends within a second, wherever it is."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_resume import assert_same_state, newest

import fastsimsiam.loaders.bad_images
import fastsimsiam.storage.header_index
from fastsimsiam.config.run import CheckpointConfig, Config, KnnConfig
from fastsimsiam.config.stored import to_dict
from fastsimsiam.loaders.decode import Pixels, read_rgb
from fastsimsiam.runs.checkpoint import CheckpointStore, load
from fastsimsiam.storage.base import Storage
from fastsimsiam.train.pretrain import pretrain

SOON = 8.0
"""A second, on a machine that has other work; an evaluation of slow images takes 14."""


class Clock:
    """When a signal was sent."""

    sent: float | None = None

    def until(self, file: Path | None = None) -> float:
        """Seconds until a file was written, or until now."""
        assert self.sent is not None, "no signal was sent"
        return (file.stat().st_mtime if file else time.time()) - self.sent


@contextmanager
def signalled(number: int, when: Callable[[], bool]) -> Iterator[Clock]:
    """Sends a signal to this process as soon as a condition holds."""
    clock = Clock()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.01):
            if when():
                clock.sent = time.time()
                os.kill(os.getpid(), number)
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield clock
    finally:
        over.set()
        thread.join()


def lines(config: Config) -> list[dict[str, float]]:
    """The metrics so far."""
    file = config.out / "metrics.jsonl"
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


def log(config: Config) -> str:
    return (config.out / "log.txt").read_text()


def timeless(config: Config) -> list[dict[str, float]]:
    """The metrics that two equal runs have in common."""
    gone = ("images_per_second", "data_wait")
    return [{k: v for k, v in line.items() if k not in gone} for line in lines(config)]


class Slow:
    """Slows the decoding of a split's images while it is on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, split: str, seconds: float = 1.2) -> None:
        self.started = threading.Event()
        self.on = True

        def slow(storage: Storage, index: int, **options: Any) -> Pixels:
            if self.on and storage.root.name == split:
                self.started.set()
                time.sleep(seconds)
            return read_rgb(storage, index, **options)

        monkeypatch.setattr(fastsimsiam.loaders.bad_images, "read_rgb", slow)


@pytest.mark.parametrize(
    "number",
    [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2],
    ids=lambda number: signal.Signals(number).name,
)
def test_every_signal_that_asks_for_an_end_saves(tiny_config: Config, number: int) -> None:
    config = replace(tiny_config, epochs=500, log_every=1)
    before = signal.getsignal(number)
    with signalled(number, lambda: len(lines(config)) >= 2) as clock:
        summary = pretrain(config)
    assert clock.until(config.out / "summary.json") < SOON  # it draws curves, too
    assert summary.signal == number
    assert load(newest(config)).step == lines(config)[-1]["step"] == summary.steps
    name = signal.Signals(number).name
    assert f"{name}: saved at step {summary.steps}; go on with --resume" in log(config)
    assert json.loads((config.out / "summary.json").read_text())["signal"] == number
    assert signal.getsignal(number) == before


def test_a_run_under_nohup_goes_on_after_a_hangup(tiny_config: Config) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signalled(signal.SIGHUP, lambda: len(lines(tiny_config)) >= 1) as clock:
            summary = pretrain(tiny_config)
        assert clock.sent
        assert (summary.steps, summary.signal) == (12, 0)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_ends_an_evaluation_which_a_resume_makes_up_for(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The epoch is saved before it is scored, and the resumed run has all lines of a whole one."""
    config = replace(
        tiny_config,
        knn=KnnConfig(every_epochs=1, k=(5,)),
        checkpoint=CheckpointConfig(every_epochs=1, min_minutes=0.0),
    )
    whole = replace(config, out=tmp_path / "whole")
    pretrain(whole)
    slow = Slow(monkeypatch, "val")
    slow.on = False

    def evaluates() -> bool:
        slow.on = slow.on or len(lines(config)) == 4  # steps 0, 2, 4 and 6
        return slow.on and slow.started.is_set()

    with signalled(signal.SIGTERM, evaluates) as clock:
        summary = pretrain(config)
    assert clock.until(config.out / "summary.json") < SOON
    assert (summary.steps, summary.signal) == (6, signal.SIGTERM)
    assert [line["step"] for line in lines(config) if "knn_top1_k5" in line] == [0]
    # Of an earlier score nothing is said that sounds like one of this step.
    assert "untrained ->" not in log(config)
    slow.on = False
    assert pretrain(config, resume=True).signal == 0
    assert timeless(config) == timeless(whole)
    assert_same_state(newest(config), newest(whole))
    assert "knn_top1_k5: " in log(config)
    # What is scored already is not scored again.
    pretrain(config, resume=True)
    assert timeless(config) == timeless(whole)


def test_the_last_epoch_is_saved_before_its_evaluation(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(
        tiny_config,
        knn=KnnConfig(every_epochs=2, k=(5,)),
        checkpoint=CheckpointConfig(every_epochs=50),
        max_steps=3,
    )
    slow = Slow(monkeypatch, "val", seconds=0.05)
    slow.on = False
    seen: list[list[Path]] = []

    def evaluates() -> bool:
        slow.on = len(lines(config)) > 1  # the untrained network is scored
        if slow.started.is_set() and not seen:
            seen.append(CheckpointStore(config.out, 1).paths())
        return False

    with signalled(signal.SIGTERM, evaluates):
        assert pretrain(config).steps == 3
    assert slow.started.is_set()
    assert [path.name for path in seen[0]] == ["step-00000003.pt"]
    assert "done (--max-steps: 3 of 12 steps)" in log(config)


@pytest.mark.parametrize("where", ["headers", "decoding", "untrained"])
def test_a_signal_before_the_first_step_is_told_in_a_line(
    where: str,
    tiny_config: Config,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    config = replace(tiny_config, knn=KnnConfig(every_epochs=1, k=(5,)))
    started = threading.Event()
    if where == "headers":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        read = fastsimsiam.storage.header_index.read_header

        def slow_header(*arguments: object) -> object:
            started.set()
            time.sleep(0.6)
            return read(*arguments)

        monkeypatch.setattr(fastsimsiam.storage.header_index, "read_header", slow_header)
    else:
        config = replace(config, loader="resident" if where == "decoding" else "cpu")
        started = Slow(monkeypatch, "train").started
    with signalled(signal.SIGUSR1, started.is_set) as clock:
        summary = pretrain(config)
    assert clock.until() < SOON
    assert (summary.steps, summary.signal, summary.checkpoint) == (0, signal.SIGUSR1, None)
    told = capsys.readouterr().out
    assert told.count("SIGUSR1: stopped before the first step; the same command starts again") == 1
    monkeypatch.undo()
    assert pretrain(config).steps == 12


def test_a_loader_that_hangs_does_not_hold_up_a_signal(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state is saved and told at once; closing waits for the threads of the loader."""
    go_on = threading.Event()
    images = iter(range(40))

    def hanging(storage: Storage, index: int, **options: Any) -> Pixels:
        if next(images, None) is None:
            go_on.wait(30)
        return read_rgb(storage, index, **options)

    monkeypatch.setattr(fastsimsiam.loaders.bad_images, "read_rgb", hanging)
    config = replace(tiny_config, log_every=1)

    def saved() -> bool:
        return (config.out / "summary.json").exists()

    waited = threading.Thread(target=lambda: (_until(saved), go_on.set()))
    waited.start()
    try:
        with signalled(signal.SIGTERM, lambda: len(lines(config)) == 2) as clock:
            summary = pretrain(config)
        assert clock.until(config.out / "summary.json") < SOON
        assert (summary.steps, summary.signal) == (2, signal.SIGTERM)
        assert newest(config).name == "step-00000002.pt"
    finally:
        go_on.set()
        waited.join()


HANGING = """
import json, sys, threading
sys.path.insert(0, TESTS)
import tiny_backbone
import fastsimsiam.loaders.bad_images as loader
from fastsimsiam.config.stored import from_dict
from fastsimsiam.train import pretrain
images, read = iter(range(40)), loader.read_rgb
def hanging(storage, index, **options):
    if next(images, None) is None:
        threading.Event().wait()
    return read(storage, index, **options)
loader.read_rgb = hanging
pretrain._CLOSING_SECONDS = 0.5
pretrain.pretrain(from_dict(json.loads(sys.argv[1])))
"""


def test_a_process_whose_loader_hangs_for_ever_ends(tiny_config: Config) -> None:
    config = replace(tiny_config, log_every=1)
    script = HANGING.replace("TESTS", repr(str(Path(__file__).parent)))
    process = subprocess.Popen(
        [sys.executable, "-c", script, json.dumps(to_dict(config))], stdout=subprocess.DEVNULL
    )
    _until(lambda: len(lines(config)) == 2)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    assert newest(config).name == "step-00000002.pt"
    assert "stopped at step 2 of 12" in log(config)


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)


TWICE = """
import os, signal, sys, time
from fastsimsiam.train.interrupt import catch_signals
number = int(sys.argv[1])
with catch_signals() as interrupt:
    os.kill(os.getpid(), number)
    if number != signal.SIGINT:
        os.kill(os.getpid(), number)  # a launcher passes on what the system has sent already
        os.kill(os.getpid(), signal.SIGHUP)
        assert interrupt.number == number
        print("alive", flush=True)
        time.sleep(1.2)
    os.kill(os.getpid(), number)
    print("still alive", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once_and_an_echo_does_not(number: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TWICE, str(number)], capture_output=True, text=True
    )
    assert done.returncode == -number
    assert done.stdout == ("alive\n" if number == signal.SIGTERM else "")


def test_a_worker_that_was_forked_outlives_a_signal_to_all(tiny_config: Config) -> None:
    """SIGTERM to the whole group: the workers of `reference` must not take the run down."""
    script = (
        "import os, signal, threading, time\n"
        "os.setpgrp()\n"
        "from fastsimsiam.train.interrupt import catch_signals\n"
        "with catch_signals() as interrupt:\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        time.sleep(0.6)\n"
        "        os._exit(7)\n"
        "    time.sleep(0.2)\n"
        "    os.killpg(0, signal.SIGTERM)\n"
        "    _, status = os.waitpid(child, 0)\n"
        "    print(os.waitstatus_to_exitcode(status), interrupt.number)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "7 15\n", done.stderr
