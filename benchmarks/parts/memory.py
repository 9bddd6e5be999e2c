"""Memory of this process and its children, without the page cache."""

import os
import threading
from pathlib import Path
from types import TracebackType

_SAMPLING_SECONDS = 0.1
_KINDS = ("Pss_Anon", "Pss_Shmem")


def _processes(root: int) -> list[int]:
    """The process and all its descendants."""
    pids, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        pids.append(pid)
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                waiting += [int(child) for child in children.read_text().split()]
            except OSError:  # the process has ended meanwhile
                continue
    return pids


def memory_mib() -> float:
    """Anonymous and shared MiB of this process and its descendants; shared pages count once."""
    kib = 0
    for pid in _processes(os.getpid()):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        kib += sum(int(line.split()[1]) for line in lines if line.startswith(_KINDS))
    return kib / 1024


class PeakMemory:
    """Samples the memory within a `with` block; `mib` is the peak in MiB."""

    def __init__(self) -> None:
        """Creates the sampling thread."""
        self.mib = 0.0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "PeakMemory":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end.set()
        self._thread.join()
        self.mib = max(self.mib, memory_mib())

    def _sample(self) -> None:
        while not self._end.wait(_SAMPLING_SECONDS):
            self.mib = max(self.mib, memory_mib())
