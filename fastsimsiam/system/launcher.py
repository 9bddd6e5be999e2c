"""What a launcher such as torchrun tells each process by environment variables."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fastsimsiam.errors import UserError

QUIET_SECONDS = 2.0
"""How long a silent process stays, since launchers kill the others as soon as one has ended."""
_FIX = "start with torchrun, which sets it, or unset WORLD_SIZE to train in one process"


@dataclass(frozen=True, kw_only=True)
class Launch:
    """This process among those of a launcher.

    Attributes:
        rank: number of this process among all.
        local_rank: number of this process on its machine.
        size: number of processes.
    """

    rank: int = 0
    local_rank: int = 0
    size: int = 1


def read_launch() -> Launch:
    """Reads WORLD_SIZE, RANK and LOCAL_RANK; without WORLD_SIZE there is one process.

    Raises:
        UserError: a variable is missing or has no sensible value.
    """
    size = _number("WORLD_SIZE", 1, None) if os.environ.get("WORLD_SIZE") else 1
    if size == 1:
        return Launch()
    if not os.environ.get("MASTER_ADDR"):
        raise UserError(f"WORLD_SIZE is {size}, but MASTER_ADDR is not set: {_FIX}")
    _number("MASTER_PORT", 1, 65_535)
    return Launch(
        rank=_number("RANK", 0, size - 1), local_rank=_number("LOCAL_RANK", 0, size - 1), size=size
    )


def _number(name: str, least: int, most: int | None) -> int:
    text = os.environ.get(name, "")
    if not text:
        size = os.environ["WORLD_SIZE"]
        raise UserError(f"WORLD_SIZE is {size}, but {name} is not set: {_FIX}")
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1
    if number < least or (most is not None and number > most):
        wanted = f"{least} or more" if most is None else f"{least} to {most}"
        raise UserError(f"the environment variable {name} is {text!r}, expected {wanted}: {_FIX}")
    return number


@contextmanager
def told_by_the_first() -> Iterator[None]:
    """Lets one process tell an error that all processes of a run have alike.

    Raises:
        SystemExit: an error has occurred, and this process is another than the first.
    """
    try:
        yield
    except UserError:
        try:
            first = read_launch().rank == 0
        except UserError:
            first = True  # without numbers none can be chosen
        if first:
            raise
        stay_quiet()
        raise SystemExit(2) from None


def stay_quiet() -> None:
    """Leaves the first word to another process, which ends meanwhile; then launchers end this one.

    A signal ends it without a line of its own.
    """
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
    time.sleep(QUIET_SECONDS)
