"""Progress of a command on stderr: a bar on a terminal, else a line every ten seconds."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_LINE_SECONDS = 10.0


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    whole = int(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


class ImageProgress:
    """A `storage.base.Report` that shows units done, their rate and the time left."""

    def __init__(self, what: str, unit: str | None = "images") -> None:
        """Prepares the bar; entering the context shows it.

        Args:
            what: the work, as a participle: `decoding`.
            unit: what is counted; None: images of one data set and megabytes of another.
        """
        self._what, self._unit = what, f" {unit}/s" if unit else "/s"
        self._started = self._last = self._called = time.perf_counter()
        self._done = 0
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            self._bar = Progress(
                TextColumn(what),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]:.3g}" + self._unit),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task(what, rate=0.0)

    def __enter__(self) -> "ImageProgress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        """Reports `done` of `total` units; a smaller `done` than before begins the next pass."""
        now = time.perf_counter()
        if done < self._done:
            self._started = self._called
        self._done, self._called = done, now
        rate = done / max(now - self._started, 1e-9)
        if self._bar:
            self._bar.update(self._task, completed=done, total=total, rate=rate)
        elif now - self._last >= _LINE_SECONDS or (done == total and now > self._started + 1):
            self._last = now
            left = (total - done) / max(rate, 1e-9)
            line = f"{self._what}: {done}/{total}, {rate:.3g}{self._unit}, {left:.0f} s left"
            print(line, file=sys.stderr, flush=True)
