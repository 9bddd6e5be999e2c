"""Parts of the loader `ffcv` that have an oracle of their own."""

import numpy as np
import numpy.typing as npt
import pytest

from fastsimsiam.loaders.ffcv_epoch import balanced


def spread(cost: npt.NDArray[np.int64], order: npt.NDArray[np.int64], workers: int) -> float:
    """Largest less smallest sum of the pieces that threads get."""
    pieces = [cost[piece].sum() for piece in np.array_split(order, workers)]
    return float(max(pieces) - min(pieces))


@pytest.mark.parametrize("size", [64, 50])
@pytest.mark.parametrize("workers", [1, 2, 7])
def test_work_is_dealt_out_evenly(workers: int, size: int) -> None:
    dealt, in_turn, as_it_comes = 0.0, 0.0, 0.0
    for seed in range(20):
        cost = np.random.default_rng(seed).lognormal(10, 0.5, size).astype(np.int64)
        order = balanced(cost, workers)
        assert sorted(order) == list(range(size))
        dealt += spread(cost, order, workers)
        by_cost = np.argsort(-cost)
        turns = np.concatenate([by_cost[worker::workers] for worker in range(workers)])
        in_turn += spread(cost, turns, workers)
        as_it_comes += spread(cost, np.arange(size), workers)
    if workers > 1:
        assert dealt < 0.75 * in_turn
        assert dealt < 0.75 * as_it_comes
