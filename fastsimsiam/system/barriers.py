"""How the threads of a computation on a CPU wait for each other, where other programs use the cores.

A parallel loop of torch ends at a barrier of the OpenMP library, several thousand times a step. There a
thread spins for milliseconds before it sleeps, which is right on cores of its own: to wake it takes
longer than it waits. On shared cores the thread that is waited for may stand in the queue of the very
core on which another one spins: on two cores with six other busy programs, ResNet-18 at 64 pixels made
a fifteenth of the images per second that it makes with short waits (benchmarks/LOG.md).

GNU's library waits shortly when more threads exist than cores, and looks at the numbers at each
barrier. So threads that do nothing switch it over, and back when they end. The computation stays the
same to the bit: its own threads and their work do not change.
"""

import os
import sys
import threading
from collections.abc import Mapping

import torch

from fastsimsiam.system.resources import allowed_cpus
from fastsimsiam.system.shared_cores import core_times, much

_SECONDS = 1.0
_QUIET_LOOKS = 5
"""So many looks in a row must find the cores free before waits are long again."""
_PARALLEL = 1 << 17
"""Elements of a loop that torch shares between its threads."""

_started = threading.Lock()


def share_cores() -> bool:
    """Watches the cores from now on, and keeps waits short while other programs use them.

    Returns:
        Whether there is something to watch: computations in several threads, whose waiting the user
        has not set by OMP_WAIT_POLICY or GOMP_SPINCOUNT.
    """
    if not can_switch(os.environ) or core_times() is None:
        return False
    if _started.acquire(blocking=False):
        threading.Thread(target=_watch, name="cores", daemon=True).start()
    return True


def can_switch(environment: Mapping[str, str]) -> bool:
    """Whether idle threads change how the threads of torch wait, and nobody has set it already."""
    return (
        sys.platform == "linux"
        and torch.get_num_threads() > 1
        and not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & environment.keys()
    )


def _watch() -> None:
    waits = ShortWaits()
    quiet = 0
    before, own_before = core_times(), _own_seconds()
    pause = threading.Event()
    while before is not None:
        pause.wait(_SECONDS)
        now, own = core_times(), _own_seconds()
        if now is None:
            return
        seconds = now.at - before.at
        others = (now.used - before.used - (own - own_before)) / seconds
        before, own_before = now, own
        if others >= much(now.cores) and others + torch.get_num_threads() > now.cores:
            quiet = 0
            waits.begin()
        elif others < much(now.cores) / 2:
            quiet += 1
            if quiet >= _QUIET_LOOKS:
                waits.end()


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system


class ShortWaits:
    """Short waits at the barriers of all threads of this process, between `begin` and `end`."""

    def __init__(self) -> None:
        """Changes nothing yet."""
        self._end = threading.Event()
        self._idle: list[threading.Thread] = []

    def begin(self) -> None:
        """Starts idle threads, until the library counts more than there are cores."""
        if self._idle:
            return
        threads, cores = torch.get_num_threads(), len(allowed_cpus())
        self._end = threading.Event()
        # Each thread here has its own team, of which it is one.
        for _ in range(max(0, cores - threads) // (threads - 1) + 1):
            thread = threading.Thread(target=_idle, args=(self._end,), name="idle", daemon=True)
            self._idle.append(thread)
            thread.start()

    def end(self) -> None:
        """Ends them."""
        self._end.set()
        for thread in self._idle:
            thread.join()
        self._idle = []


def _idle(end: threading.Event) -> None:
    torch.zeros(_PARALLEL, dtype=torch.uint8).add_(1)  # starts a team of threads, which then sleeps
    end.wait()
