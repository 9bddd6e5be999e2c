"""SIGINT and SIGTERM as a flag, which the training loop reads between two steps."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """A signal handler that keeps the signal's number.

    Attributes:
        number: number of the signal that was received, or 0.
    """

    number = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Keeps the number; a second signal ends the process at once."""
        del frame
        self.number = number
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def catch_signals() -> Iterator[Interrupt]:
    """Keeps SIGINT and SIGTERM instead of ending the process; restores the handlers at the end."""
    interrupt = Interrupt()
    # Only the main thread may set handlers; the owner of another thread ends its run.
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = {number: signal.signal(number, interrupt) for number in _SIGNALS}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
