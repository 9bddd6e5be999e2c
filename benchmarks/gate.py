"""Ratios of costs that hold on a noisy machine.

Both sides run in turns of milliseconds, in one process, and the best time of each item counts. Whole
epochs in turns, even the best of twelve and in CPU time, vary by a quarter (benchmarks/LOG.md).
"""

import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ATTEMPTS = 3


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """What a ratio was when it was set, and what it must not exceed."""

    measured: float
    limit: float


def thresholds() -> dict[str, Threshold]:
    """All of benchmarks/thresholds.toml."""
    return {name: Threshold(**values) for name, values in _content().items() if name != "floors"}


def floor_of(gpu: str, content: dict[str, Any] | None = None) -> float | None:
    """Images/s that a GPU of this name must reach; None where none has been measured.

    Args:
        gpu: as torch.cuda.get_device_name has it.
        content: instead of benchmarks/thresholds.toml.
    """
    named = (_content() if content is None else content).get("floors", {}).get(gpu)
    return None if named is None else float(named["floor"])


def _content() -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parent / "thresholds.toml").read_text())


def cost_ratio(
    work: Callable[[int], object], yardstick: Callable[[int], object], items: int, rounds: int
) -> float:
    """How many times the time of `yardstick` that of `work` is.

    Both are called for an item one after the other, round after round, and the best time of each item
    counts for each.

    Args:
        work: what is to be judged, of an item; some milliseconds long.
        yardstick: what it is compared with, about as long.
        items: they are called with 0, 1, ...
        rounds: over all items.
    """
    best = [[float("inf")] * items, [float("inf")] * items]
    for _ in range(rounds):
        for item in range(items):
            for side, function in zip(best, (work, yardstick), strict=True):
                started = time.perf_counter()
                function(item)
                side[item] = min(side[item], time.perf_counter() - started)
    return sum(best[0]) / sum(best[1])


def settled(measure: Callable[[], float], limit: float) -> float:
    """The least of up to three measurements; the first one below `limit` will do.

    A slow-down is there every time, a neighbor on the machine is not.
    """
    ratio = float("inf")
    for _ in range(_ATTEMPTS):
        ratio = min(ratio, measure())
        if ratio < limit:
            break
    return ratio
