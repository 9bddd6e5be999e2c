"""Whether other programs use the cores of this process, for the log: steps wait for them."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from fastsimsiam.system.resources import allowed_cpus

_ROOT = Path("/")
_SHORTEST_WINDOW = 0.3
"""Seconds; the system counts processor time in hundredths of a second."""
_SECONDS_BETWEEN_READINGS = 10.0
_SECONDS_BETWEEN_LINES = 600.0
_RECENT = 60.0
_BUSY = 0.7
"""Share of the cores' time that is used when there is too little for all."""


@dataclass(frozen=True, kw_only=True)
class CoreTimes:
    """Seconds of processor time since the machine has started, on the cores of this process.

    Attributes:
        used: by all programs, and by other virtual machines of the host.
        stolen: by other virtual machines of the host.
        cores: number of these cores.
        at: when this was read.
    """

    used: float
    stolen: float
    cores: int
    at: float


def core_times(root: Path = _ROOT) -> CoreTimes | None:
    """Reads the processor time of the cores of this process; None where the system does not tell.

    Args:
        root: folder with `proc`; another than / for tests.
    """
    try:
        lines = (root / "proc/stat").read_text().splitlines()
    except OSError:  # no Linux
        return None
    names = {f"cpu{number}" for number in allowed_cpus()}
    rows = [fields for line in lines if (fields := line.split()) and fields[0] in names]
    if not rows or any(len(fields) < 9 for fields in rows):
        return None
    tick = os.sysconf("SC_CLK_TCK")
    used = stolen = 0.0
    for fields in rows:
        user, nice, system, _, _, irq, softirq, steal = (int(field) / tick for field in fields[1:9])
        used += user + nice + system + irq + softirq + steal
        stolen += steal
    return CoreTimes(used=used, stolen=stolen, cores=len(rows), at=time.monotonic())


def much(cores: int) -> float:
    """Cores in use by others from which on they are shared."""
    return min(0.5, 0.25 * cores)


class SharedCores:
    """Tells when other programs use so much of the cores that this process has to wait for them."""

    def __init__(self, root: Path = _ROOT) -> None:
        """Begins the first window of time: where this module was just loaded, then.

        Args:
            root: see `core_times`.
        """
        self._root = root
        self._last = _loaded if root == _ROOT and _is_recent(_loaded) else _read(root)
        self._wait = _SHORTEST_WINDOW
        self._shared = False
        self._told: float | None = None

    def news(self) -> str | None:
        """A line for the log when the cores have begun to be shared since the last call.

        Lines come ten minutes apart or more. Cheap enough for each log step: the system is asked every
        ten seconds.
        """
        now = time.monotonic()
        if self._last is None or now - self._last[0].at < self._wait:
            return None
        self._wait = _SECONDS_BETWEEN_READINGS
        line = self.line()
        began = line is not None and not self._shared
        self._shared = line is not None
        if not began or (self._told is not None and now - self._told < _SECONDS_BETWEEN_LINES):
            return None
        self._told = now
        return line

    def line(self) -> str | None:
        """What others have used of the cores since the last call, if it was much."""
        before, now = self._last, _read(self._root)
        if before is None or now is None:
            return None
        (times_before, own_before), (times, own) = before, now
        seconds = times.at - times_before.at
        if seconds < _SHORTEST_WINDOW:
            return None
        self._last = now
        used = (times.used - times_before.used) / seconds
        stolen = (times.stolen - times_before.stolen) / seconds
        others = used - max(0.0, own - own_before) / seconds
        cores = times.cores
        if others < much(cores) or used < _BUSY * cores:
            return None
        who = "other virtual machines" if stolen > others / 2 else "other programs"
        return (
            f"the cores are shared: {who} use {min(others, cores):.1f} of {cores} (load "
            f"{os.getloadavg()[0]:.1f}), and steps wait for them"
        )


_Reading = tuple[CoreTimes, float]


def _read(root: Path) -> _Reading | None:
    times = core_times(root)
    if times is None:
        return None
    try:
        return times, _own_seconds(root)
    except OSError:  # too many open files, for instance
        return None


def _own_seconds(root: Path) -> float:
    """Processor time of this process and those around it: its children, and its ranks of torchrun."""
    parent: dict[int, int] = {}
    ticks: dict[int, int] = {}
    for folder in (root / "proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            # The name of a program may hold spaces and parentheses.
            fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if len(fields) >= 15:
            parent[int(folder.name)] = int(fields[1])
            # Its own, and those of its children that have ended.
            ticks[int(folder.name)] = sum(int(field) for field in fields[11:15])
    top = os.getpid()
    if "TORCHELASTIC_RUN_ID" in os.environ or "LOCAL_WORLD_SIZE" in os.environ:
        top = parent.get(top, top)
    family = {top}
    for pid in ticks:
        line = [pid]
        while line[-1] not in family and line[-1] in parent:
            line.append(parent[line[-1]])
        if line[-1] in family:
            family.update(line)
    return sum(ticks.get(pid, 0) for pid in family) / os.sysconf("SC_CLK_TCK")


def _is_recent(reading: _Reading | None) -> bool:
    return reading is not None and time.monotonic() - reading[0].at < _RECENT


_loaded = _read(_ROOT)
