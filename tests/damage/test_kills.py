"""Whatever moment a process dies at, nothing is lost: the same command line goes on from there."""

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from damage.harness import LONG, Run, assert_as_whole, finish
from damage.warm import Warm

KILLS = 200 if LONG else 6


def moments(count: int, changes: int) -> Iterator[int]:
    """Numbers of changes, evenly over all of them."""
    yield from sorted({round(i * (changes - 1) / (count - 1)) for i in range(count)})


def test_a_run_killed_before_any_change_to_its_files_goes_on(
    warm: Warm, whole: Run, few_images: Path, tmp_path: Path
) -> None:
    """Each opening, renaming or removal of a file is a moment; the index and checkpoints included."""
    changes = whole.changes()
    assert changes > 30, "the moments are not counted"
    for moment in moments(changes if LONG else 5, changes):
        run = Run(tmp_path / f"at-{moment}", few_images)
        run.folder.mkdir()
        code = warm.run(run.command(), run.log, die_at=moment, **run.options())
        assert code == -signal.SIGKILL, (moment, run.log.read_text())
        finish(warm, run)
        assert_as_whole(run, whole)


def test_a_run_killed_at_random_moments_goes_on(
    warm: Warm, whole: Run, few_images: Path, tmp_path: Path
) -> None:
    """Inside training, saving and evaluating alike: a run is killed until it is through."""
    rng = random.Random(0)
    kills = runs = 0
    while kills < KILLS:
        run = Run(tmp_path / f"run-{runs}", few_images)
        run.folder.mkdir()
        runs += 1
        assert runs <= KILLS, "the processes end before they are killed"
        # After five, the run may end: with ever new deaths it might make no progress.
        for _ in range(5):
            pid = warm.start(run.command(), run.log, **run.options())
            time.sleep(rng.uniform(0.05, 2.5))
            if warm.poll(pid) is not None:
                break
            os.kill(pid, signal.SIGKILL)
            if warm.wait(pid) != -signal.SIGKILL:
                break  # it ended in between
            kills += 1
        finish(warm, run)
        assert_as_whole(run, whole)
