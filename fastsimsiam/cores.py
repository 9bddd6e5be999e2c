"""How many threads to start."""

import os

from fastsimsiam.errors import UserError


def num_cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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
