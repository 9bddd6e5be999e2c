"""SIGINT and SIGTERM as a flag that the training loop reads between two steps."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """Attributes: number: the signal received, or 0."""

    number = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Notes the signal; a second one ends the process at once."""
        del frame
        self.number = number
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def catch_signals() -> Iterator[Interrupt]:
    """Notes SIGINT and SIGTERM instead of dying; handlers are restored at the end."""
    interrupt = Interrupt()
    # Only the main thread may set handlers; a run in another thread is ended by its owner.
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = {number: signal.signal(number, interrupt) for number in _SIGNALS}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
