"""The order of an epoch: parts of it alone, its uniformity, and the order by blocks."""

import pickle
import time
import tracemalloc

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from fastsimsiam.config.views import ViewSpec
from fastsimsiam.plan.batches import TrainPlan
from fastsimsiam.plan.order import BlockOrder, epoch_order, order_at

MANY = 100_003
# Seeds are fixed. A fair shuffle fails one of the ten comparisons below in a thousand seeds.
LEVEL = 1e-4


@pytest.mark.parametrize(
    "count", [1, 2, 3, 1000, 65_536, 65_537, MANY, 256 * 257, 300**2, 300**2 + 1]
)
def test_it_is_a_permutation(count: int) -> None:
    assert np.array_equal(np.sort(epoch_order(count, 3, 1)), np.arange(count))


@pytest.mark.parametrize("count", [1000, MANY])
def test_a_part_is_computed_without_the_rest(count: int) -> None:
    order = epoch_order(count, 3, 1)
    positions = np.array([count - 1, 0, 17, 17, count // 2])
    np.testing.assert_array_equal(order_at(positions, count, 3, 1), order[positions])
    np.testing.assert_array_equal(order_at(positions[:0], count, 3, 1), [])


def test_the_order_stays_as_published() -> None:
    """Another order would change every run: say so in the changelog."""
    positions = np.arange(5)
    assert order_at(positions, 1000, 5, 2).tolist() == [499, 904, 321, 543, 260]
    assert order_at(positions, 1_281_167, 5, 2).tolist() == [39661, 729459, 15987, 347152, 140221]
    assert order_at(positions, 10**9, 5, 2).tolist() == [
        179456377,
        278099789,
        293765900,
        5650861,
        745442303,
    ]
    starts = np.array([0, 10, 30, 40, 70])
    assert BlockOrder(starts, 2, 5).at(2, positions).tolist() == [30, 38, 42, 61, 54]


def is_independent(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64], count: int) -> bool:
    """Whether pairs of numbers below `count` fall into 40 x 40 boxes as independent ones would."""
    table = np.histogram2d(a * 40 // count, b * 40 // count, bins=40, range=[[0, 40], [0, 40]])[0]
    return bool(stats.chisquare(table.ravel()).pvalue > LEVEL)


def test_positions_and_neighbors_are_independent() -> None:
    first, second, other = (
        epoch_order(MANY, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))
    )
    assert is_independent(np.arange(MANY), first, MANY)
    assert is_independent(first[:-1], first[1:], MANY)
    assert is_independent(first[:-2], first[2:], MANY)
    assert is_independent(first, second, MANY)
    assert is_independent(first, other, MANY)
    assert is_independent(first % 997, np.arange(MANY) % 997, 997)  # low bits
    fixed = int((first == np.arange(MANY)).sum()) + int((second == np.arange(MANY)).sum())
    assert stats.poisson(2).sf(fixed - 1) > LEVEL


def test_each_place_is_uniform_over_seeds() -> None:
    drawn = np.array([order_at(np.arange(3), MANY, seed, 7) for seed in range(3000)])
    for column in drawn.T:
        assert stats.kstest(column / MANY, "uniform").pvalue > LEVEL
    assert stats.kstest((drawn[:, 1] - drawn[:, 0]) % MANY / MANY, "uniform").pvalue > LEVEL


@pytest.mark.parametrize("count", [10**8, 10**9])
def test_any_batch_of_a_billion_takes_no_time_and_no_memory(count: int) -> None:
    positions = np.arange(count - 256, count)
    seconds = []
    for epoch in range(20):
        started = time.process_time()
        order_at(positions, count, 0, epoch)
        seconds.append(time.process_time() - started)
    assert min(seconds) < 2e-3
    tracemalloc.start()
    order_at(positions, count, 1, 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


STARTS = np.concatenate([[0], np.cumsum(1 + np.arange(37) * 7 % 23)])


@pytest.mark.parametrize("window", [1, 5, 37, 100])
def test_blocks_give_every_sample_once(window: int) -> None:
    order = BlockOrder(STARTS, window, 0)
    count = int(STARTS[-1])
    whole = order.at(1, np.arange(count))
    assert np.array_equal(np.sort(whole), np.arange(count))
    positions = np.array([count - 1, 3, 99, 3])
    np.testing.assert_array_equal(order.at(1, positions), whole[positions])
    copy: BlockOrder = pickle.loads(pickle.dumps(order))
    np.testing.assert_array_equal(copy.at(1, positions), whole[positions])
    assert (order.at(2, np.arange(count)) != whole).mean() > 0.9
    assert (BlockOrder(STARTS, window, 1).at(1, np.arange(count)) != whole).mean() > 0.9


def test_few_blocks_are_read_at_a_time() -> None:
    starts = np.arange(0, 20_001, 100)
    order = BlockOrder(starts, 8, 0).at(0, np.arange(20_000))
    windows = (order // 100).reshape(-1, 800)
    assert all(len(set(window)) == 8 for window in windows.tolist())
    # Blocks come from everywhere, and the samples of a window are mixed.
    assert is_independent(np.arange(20_000) // 800, order, 20_000) is False
    first = order.reshape(-1, 800)[:, :100] // 100
    assert min(len(set(blocks)) for blocks in first.tolist()) == 8
    spans = windows.max(axis=1) - windows.min(axis=1)
    assert np.median(spans) > 100


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_blocks_are_the_same_for_any_number_of_ranks(world_size: int) -> None:
    starts = np.arange(0, 1001, 50)

    def plan(rank: int, ranks: int) -> TrainPlan:
        return TrainPlan(
            label=np.zeros(1000, np.int64),
            sizes=np.full((1000, 2), 60, np.int32),
            seed=5,
            specs=(ViewSpec(), ViewSpec()),
            image_size=32,
            batch_size=64 // ranks,
            rank=rank,
            world_size=ranks,
            blocks=BlockOrder(starts, 3, 5),
        )

    expected = plan(0, 1).index(2, 7)
    parts = [plan(rank, world_size).index(2, 7) for rank in range(world_size)]
    np.testing.assert_array_equal(np.concatenate(parts), expected)
