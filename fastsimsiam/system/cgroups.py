"""Limits of this process's control groups: the CPU quota and the memory of a container or a job.

Linux has control groups of version 1 (one tree per controller), of version 2 (one tree for all), and
both at the same time. Every group from that of the process up to the root of its tree limits it. Inside
a container the mounted tree begins at the container's own group.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The least limits of all groups; None: no limit.

    Attributes:
        cores: CPU quota in cores.
        memory: bytes of memory.
        memory_left: bytes that all processes of a group may still take; the cache of files, which the
            system gives up first, counts as free.
    """

    cores: float | None
    memory: int | None
    memory_left: int | None


def limits(root: Path = Path("/")) -> Limits:
    """Reads the limits of this process.

    Args:
        root: folder with `proc` and the mounted control groups; another than / for tests.
    """
    quotas = [quota for folder in _groups(root, "cpu") for quota in _quotas(folder)]
    memory: list[int] = []
    left: list[int] = []
    for folder in _groups(root, "memory"):
        found = list(_memory_limits(folder))
        memory += found
        used = _used_memory(folder)
        if found and used is not None:
            left.append(max(0, min(found) - used))
    return Limits(
        cores=min(quotas, default=None),
        memory=min(memory, default=None),
        memory_left=min(left, default=None),
    )


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of this process's groups, from its own to the root of each mounted tree."""
    own: dict[str, str] = {}
    for line in _lines(root / "proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        own |= dict.fromkeys(controllers.split(","), path)  # version 2: no controller is named
    for line in _lines(root / "proc/self/mountinfo"):
        mount, _, system = line.partition(" - ")
        fields, described = mount.split(" "), system.split(" ")
        if len(fields) < 5 or len(described) < 3:
            continue
        key = {"cgroup2": "", "cgroup": controller}.get(described[0])
        if key is None or key not in own or (key and key not in described[2].split(",")):
            continue
        top = root / _unescaped(fields[4]).lstrip("/")
        folder = top / _inside(own[key], _unescaped(fields[3]))
        yield folder
        while folder != top:
            folder = folder.parent
            yield folder


def _inside(path: str, mounted: str) -> PurePosixPath:
    """The path of a group below the mounted one; outside of it, the mounted one has to do."""
    group = PurePosixPath(path)
    if ".." in group.parts or not group.is_relative_to(mounted):
        return PurePosixPath()
    return group.relative_to(mounted)


def _unescaped(path: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


def _quotas(folder: Path) -> Iterator[float]:
    """CPU quotas in cores."""
    pairs = [_text(folder / "cpu.max").split()]
    pairs.append([_text(folder / f"cpu.cfs_{part}_us") for part in ("quota", "period")])
    for pair in pairs:
        if len(pair) == 2 and (quota := _number(pair[0])) and (period := _number(pair[1])):
            yield quota / period


def _memory_limits(folder: Path) -> Iterator[int]:
    """Limits in bytes. Beyond `memory.high` a group is slowed down until it has given up memory."""
    for file in ("memory.max", "memory.high", "memory.limit_in_bytes"):
        if limit := _number(_text(folder / file)):
            yield limit
    # Of version 1: the least limit up to the true root, which a container does not see.
    if limit := _statistics(folder).get("hierarchical_memory_limit"):
        yield limit


def _used_memory(folder: Path) -> int | None:
    """Bytes of a group's processes, without the cache of files."""
    for file, prefix in (("memory.current", ""), ("memory.usage_in_bytes", "total_")):
        used = _number(_text(folder / file))
        if used is not None:
            statistics = _statistics(folder)
            return used - sum(
                statistics.get(f"{prefix}{kind}_file", 0) for kind in ("active", "inactive")
            )
    return None


def _statistics(folder: Path) -> dict[str, int]:
    pairs = (line.split() for line in _lines(folder / "memory.stat"))
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _number(text: str) -> int | None:
    """None for `max` and -1, which mean no limit, and for a file that is not there."""
    return int(text) if text.isdigit() else None


def _lines(file: Path) -> list[str]:
    return _text(file).splitlines()


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:  # there are no control groups, or not of this kind
        return ""
