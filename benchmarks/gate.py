"""Ratios of costs that can be compared with a threshold on a noisy machine (`make gate`).

Candidate and baseline alternate every few milliseconds in one process, and the best time of each item
counts. Alternating whole epochs instead, ratios vary by a quarter, even as the best of twelve and in
CPU time (benchmarks/LOG.md).
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
    """A ratio of costs: its value when the threshold was set, and its upper limit."""

    measured: float
    limit: float


def thresholds() -> dict[str, Threshold]:
    """The thresholds of benchmarks/thresholds.toml by name."""
    return {
        name: Threshold(**values) for name, values in _read_thresholds().items() if name != "floors"
    }


def floor_of(gpu: str, content: dict[str, Any] | None = None) -> float | None:
    """Images/s that a GPU of this name must reach; None if none has been measured.

    Args:
        gpu: its name, as torch.cuda.get_device_name returns it.
        content: parsed thresholds to use instead of benchmarks/thresholds.toml.
    """
    content = _read_thresholds() if content is None else content
    entry = content.get("floors", {}).get(gpu)
    return None if entry is None else float(entry["floor"])


def _read_thresholds() -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parent / "thresholds.toml").read_text())


def cost_ratio(
    candidate: Callable[[int], object], baseline: Callable[[int], object], items: int, rounds: int
) -> float:
    """Time of `candidate` over time of `baseline`, each the sum over items of its best time.

    Args:
        candidate: called with an item's number; a call should take some milliseconds.
        baseline: likewise, of about the same duration.
        items: number of items; both functions are called with 0, 1, ..., one right after the other.
        rounds: passes over all items.
    """
    best = [[float("inf")] * items, [float("inf")] * items]
    for _ in range(rounds):
        for item in range(items):
            for times, function in zip(best, (candidate, baseline), strict=True):
                started = time.perf_counter()
                function(item)
                times[item] = min(times[item], time.perf_counter() - started)
    return sum(best[0]) / sum(best[1])


def best_of(measure: Callable[[], float], limit: float) -> float:
    """The smallest of up to three measurements; stops at the first one below `limit`.

    A slower program is slower every time, load from neighbors on the machine is not.
    """
    ratio = float("inf")
    for _ in range(_ATTEMPTS):
        ratio = min(ratio, measure())
        if ratio < limit:
            break
    return ratio
