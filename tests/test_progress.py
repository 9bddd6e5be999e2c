"""Progress on stderr and in the log: lines, rates and times left."""

import pytest

from fastsimsiam.system import progress as progress_module
from fastsimsiam.system.progress import ImageProgress
from fastsimsiam.train import reporter as reporter_module
from fastsimsiam.train.reporter import reporter

MEGABYTES = 10_000
PER_SECOND = 20
STEP = 0.2
"""Seconds between two calls, in which nothing whole may have come."""


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def perf_counter(self) -> float:
        return self.now


class Said:
    """A recorder that keeps its notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def fetched(clock: Clock, seconds: float) -> list[int]:
    """What a fetch reports: whole megabytes, eight at once, so that values repeat."""
    start = clock.now
    done = []
    while clock.now < start + seconds:
        clock.now += STEP
        done.append(int((clock.now - start) * PER_SECOND) // 8 * 8)
    return done


def test_values_that_repeat_are_no_new_pass(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr(progress_module, "time", clock)
    progress = ImageProgress("fetching", "MB")
    start = clock.now
    for done in fetched(Clock(), 31):
        clock.now += STEP
        progress(done, MEGABYTES)
    lines = capsys.readouterr().err.splitlines()
    assert clock.now - start > 30
    assert len(lines) == 3
    rate = float(lines[-1].split(", ")[1].split()[0])
    assert rate == pytest.approx(PER_SECOND, rel=0.05)
    assert lines[-1].endswith(f"{(MEGABYTES - 600) / PER_SECOND:.0f} s left")


def test_a_smaller_value_begins_anew(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr(progress_module, "time", clock)
    progress = ImageProgress("opening the data", unit=None)
    for done in (5, 10, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10):
        clock.now += 1 if done < 3 else 4
        progress(done, 10)
    last = capsys.readouterr().err.splitlines()[-1]
    assert 10 / 40 <= float(last.split(", ")[1].removesuffix("/s")) <= 10 / 32  # not 12 in 42 s


def test_the_log_tells_of_a_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, said = Clock(), Said()
    monkeypatch.setattr(reporter_module, "time", clock)
    report = reporter(said, "opening the data")  # type: ignore[arg-type]
    for done in fetched(Clock(), 16):
        clock.now += STEP
        report(done, MEGABYTES)
    assert len(said.notes) == 3
    assert said.notes[-1].startswith("opening the data: 296/10000, ETA 8:")
