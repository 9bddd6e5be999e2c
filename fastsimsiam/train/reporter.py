"""The progress of what comes before the first step, and of evaluations."""

import time

from fastsimsiam.runs.recorder import Recorder
from fastsimsiam.storage.base import Report
from fastsimsiam.system.progress import clock

_REPORT_SECONDS = 5.0


def reporter(recorder: Recorder, what: str) -> Report:
    """Prints the progress of something long every few seconds, and nothing of something short."""
    started = printed = time.perf_counter()
    before = 0

    def report(done: int, total: int) -> None:
        nonlocal started, printed, before
        now = time.perf_counter()
        if done < before:  # the next one of its kind
            started = printed = now
        before = done
        if now - printed < _REPORT_SECONDS:
            return
        printed = now
        remaining = (now - started) / max(done - 1, 1) * (total - done)
        recorder.note(f"{what}: {done}/{total}, ETA {clock(remaining)}")

    return report
