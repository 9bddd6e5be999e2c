"""Cores and memory that this process may use, and the number of workers to start."""

import math
import os
import resource
from collections.abc import Iterator
from pathlib import Path

from fastsimsiam.errors import UserError
from fastsimsiam.system import cgroups

_ROOT = Path("/")


def allowed_cpus() -> set[int]:
    """Numbers of the CPUs on which this process may run."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def num_cores(root: Path = _ROOT) -> int:
    """CPU cores this process may use.

    A CPU quota of a control group is rounded up, as the runtimes of Java, .NET and Go do: with a quota
    of 1.5 two threads get 1.5 cores' time, and one gets 1.

    Args:
        root: see `cgroups.limits`.
    """
    quota = cgroups.limits(root).cores
    cores = len(allowed_cpus())
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def host_memory(root: Path = _ROOT) -> int:
    """Bytes of memory of the machine, or the limit of this process or its control groups if less.

    Args:
        root: see `cgroups.limits`.
    """
    limit = cgroups.limits(root).memory
    least = min([_machine_memory(root), *_process_limits()])
    return least if limit is None else min(least, limit)


def available_memory(root: Path = _ROOT) -> int:
    """Bytes of `host_memory` that no process uses; the cache of files counts as free.

    Args:
        root: see `cgroups.limits`.
    """
    left = cgroups.limits(root).memory_left
    available = _meminfo(root, "MemAvailable")
    return min(number for number in (host_memory(root), available, left) if number is not None)


def container_limits(root: Path = _ROOT) -> str | None:
    """What control groups leave of the machine, for the log; None where they limit nothing.

    Args:
        root: see `cgroups.limits`.
    """
    limits, cpus, memory = cgroups.limits(root), len(allowed_cpus()), _machine_memory(root)
    parts = []
    if limits.cores is not None and limits.cores < cpus:
        parts.append(f"{limits.cores:.3g} of {cpus} cores")
    if limits.memory is not None and limits.memory < memory:
        parts.append(f"{limits.memory / 1e9:.1f} of {memory / 1e9:.1f} GB of memory")
    return f"limits of this container or job: {', '.join(parts)}" if parts else None


def limit_threads() -> None:
    """Tells OpenMP, which computes for torch on a CPU, and torch's compiler of a CPU quota.

    They know none: beyond it the system stops all threads of a process for a while, and the compiler
    starts a process with a torch of its own for each core. To be called before torch is loaded. The
    user's own settings win.
    """
    cores = num_cores()
    if cores < len(allowed_cpus()):
        for name in ("OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS"):
            os.environ.setdefault(name, str(cores))


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


def _machine_memory(root: Path) -> int:
    """Bytes of the machine, or those that a container's own `meminfo` shows."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(physical, _meminfo(root, "MemTotal") or physical)


def _process_limits() -> Iterator[int]:
    """What `ulimit` allows, in bytes."""
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY:
            yield limit


def _meminfo(root: Path, name: str) -> int | None:
    """Bytes of a line of /proc/meminfo; None where there is none, as on macOS."""
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        key, _, value = line.partition(":")
        number = value.removesuffix("kB").strip()
        if key == name and number.isdigit():
            return int(number) * 1024
    return None
