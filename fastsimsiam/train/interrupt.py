"""Signals that ask a run to end: it saves, and ends within a second.

The handler keeps the signal's number, which the training loop reads after each step. Work whose
results can be dropped (opening a data set, waiting for a batch, an evaluation) is ended at once, by an
exception that the handler raises.
"""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_SAME_REQUEST_SECONDS = 1.0
"""Launchers and `timeout` pass on a signal that the system has sent to the process, too."""


class Interrupted(BaseException):
    """A signal ends the work under way. No `Exception`, which libraries catch."""


class Interrupt:
    """A signal handler that keeps the signal's number.

    Attributes:
        number: number of the first signal that was received, or 0.
    """

    def __init__(self) -> None:
        """No signal has been received."""
        self.number = 0
        self._received = 0.0
        self._droppable = False
        self._process = os.getpid()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Keeps the number; the same signal again ends the process at once.

        Raises:
            Interrupted: the work under way can be dropped.
        """
        del frame
        if os.getpid() != self._process:
            # A worker that a loader has forked, and a signal to all processes: this process decides.
            signal.signal(number, signal.SIG_DFL)
            return
        if self.number:
            if number == self.number and time.monotonic() > self._received + _SAME_REQUEST_SECONDS:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            return
        self.number = number
        self._received = time.monotonic()
        if number == signal.SIGINT:
            # Pressed by a person, so a second one is meant, also while this process computes.
            signal.signal(number, signal.SIG_DFL)
        if self._droppable:
            self._droppable = False
            raise Interrupted

    def check(self) -> None:
        """Ends the work under way if a signal has been received.

        Raises:
            Interrupted: a signal has been received.
        """
        if self.number:
            raise Interrupted

    @contextmanager
    def droppable(self) -> Iterator[None]:
        """Marks work whose results can be dropped: a signal ends it wherever it is.

        Raises:
            Interrupted: a signal is received, or was before.
        """
        self._droppable = True
        try:
            self.check()
            yield
            self.check()  # the exception may have been swallowed, by a destructor for instance
        finally:
            self._droppable = False


@contextmanager
def catch_signals() -> Iterator[Interrupt]:
    """Keeps signals that ask for an end instead of ending the process; restores the handlers.

    SIGHUP stays ignored where it is, as under nohup.
    """
    interrupt = Interrupt()
    # Only the main thread may set handlers; the owner of another thread ends its run.
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    caught = [
        number
        for number in _SIGNALS
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
    ]
    before = {number: signal.signal(number, interrupt) for number in caught}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
