"""The memory of this process and its children, without what is only page cache."""

import os
import threading
from pathlib import Path
from types import TracebackType

_SECONDS_BETWEEN_LOOKS = 0.1
_KINDS = ("Pss_Anon", "Pss_Shmem")


def _processes(root: int) -> list[int]:
    """The process and all its descendants."""
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                waiting += [int(child) for child in children.read_text().split()]
            except OSError:  # gone meanwhile
                continue
    return found


def memory_mib() -> float:
    """Anonymous and shared memory of this process and its descendants; shared pages count once."""
    kib = 0
    for pid in _processes(os.getpid()):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        kib += sum(int(line.split()[1]) for line in lines if line.startswith(_KINDS))
    return kib / 1024


class PeakMemory:
    """A context manager; `mib` is the most that was taken in it."""

    def __init__(self) -> None:
        """Prepares the thread that looks."""
        self.mib = 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "PeakMemory":
        """Starts to look."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Looks a last time."""
        self._end.set()
        self._thread.join()
        self.mib = max(self.mib, memory_mib())

    def _look(self) -> None:
        while not self._end.wait(_SECONDS_BETWEEN_LOOKS):
            self.mib = max(self.mib, memory_mib())
