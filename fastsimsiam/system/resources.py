"""What this process may take: cores, memory; how many threads to start."""

import os
from pathlib import Path

from fastsimsiam.errors import UserError

# Of control groups, version 2 and 1, as a container sees its own.
_MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def num_cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def host_memory() -> int:
    """Bytes of memory of this machine, or of this process's control group where that has less."""
    least = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in _MEMORY_LIMITS:
        try:
            least = min(least, int(Path(file).read_text()))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return least


def num_workers(asked: int | None) -> int:
    """Threads or processes: what was asked for, or (None) one per core.

    Raises:
        UserError: less than one was asked for.
    """
    if asked is None:
        return num_cores()
    if asked < 1:
        raise UserError(f"--workers is {asked}: give 1 or more")
    return asked
