"""Two processes that write to one place: the second is refused, and the first one does not notice."""

import os
import signal
import time
from pathlib import Path

from damage.harness import Run, assert_as_whole, finish
from damage.warm import Warm


def wait_for(path: Path, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"there is no {path.name}"
        time.sleep(0.005)


def test_the_second_of_two_runs_is_refused(
    warm: Warm, whole: Run, few_images: Path, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run", few_images)
    run.folder.mkdir()
    first = warm.start(run.command(), run.log, **run.options())
    wait_for(run.out / "metrics.jsonl")
    os.kill(first, signal.SIGSTOP)  # it cannot end meanwhile
    log = tmp_path / "second.log"
    try:
        assert warm.run(run.command(), log, **run.options()) == 2
    finally:
        os.kill(first, signal.SIGCONT)
    errors = [line for line in log.read_text().splitlines() if "error:" in line]
    assert len(errors) == 1
    assert str(run.out) in errors[0]
    assert str(first) in errors[0], "the line does not name the process"
    assert warm.wait(first) == 0
    assert_as_whole(run, whole)


def test_death_releases_the_folder(
    warm: Warm, whole: Run, few_images: Path, tmp_path: Path
) -> None:
    run = Run(tmp_path / "run", few_images)
    run.folder.mkdir()
    first = warm.start(run.command(), run.log, **run.options())
    wait_for(run.out / "metrics.jsonl")
    os.kill(first, signal.SIGKILL)
    assert warm.wait(first) == -signal.SIGKILL
    finish(warm, run)
    assert_as_whole(run, whole)
