"""Cores and memory that this process may use, and the number of workers to start."""

import os
from pathlib import Path

from fastsimsiam.errors import UserError

# Control groups of version 2 and 1, at the paths where a container sees its own.
_MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def num_cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def host_memory() -> int:
    """Bytes of memory of the machine, or the limit of this process's control group if that is less."""
    least = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in _MEMORY_LIMITS:
        try:
            least = min(least, int(Path(file).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return least


def num_workers(workers: int | None) -> int:
    """Threads or processes to start; None means one per core.

    Raises:
        UserError: `workers` is less than 1.
    """
    if workers is None:
        return num_cores()
    if workers < 1:
        raise UserError(f"--workers is {workers}: give 1 or more")
    return workers
