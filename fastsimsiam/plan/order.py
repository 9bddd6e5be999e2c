"""The order of an epoch: a permutation that depends on seed and epoch only.

Any part of it is computed without the rest, so that the order of a billion samples takes no memory: a
position goes through a cipher whose values are the pairs of numbers below a and b, where a b is the
number of samples or slightly more, and again while the result is no sample. It is the generalized
Feistel cipher of Black and Rogaway 2002, "Ciphers with arbitrary finite domains"; the round function is
a hash. Nothing is kept secret by it: ten rounds are more than an even distribution needs.
"""

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from fastsimsiam.plan.counter_rng import UInts, bits, hash_words, keys

_ORDER_STREAM = 1
_BLOCK_STREAM = 4
_ROUNDS = 10
_SORTED = 1 << 16
"""Samples up to which the order is sorted by random keys: few numbers would not be mixed well."""

Indices = npt.NDArray[np.int64]


def epoch_order(num_samples: int, seed: int, epoch: int) -> Indices:
    """Sample indices in the order of an epoch.

    Args:
        num_samples: size of the data set.
        seed: the run's seed.
        epoch: epoch number, from 0.

    Returns:
        A read-only permutation of `range(num_samples)`; 1.28 million samples take a second.
    """
    if num_samples <= _SORTED:
        return _sorted_order(num_samples, seed, epoch)
    order = order_at(np.arange(num_samples), num_samples, seed, epoch)
    order.flags.writeable = False
    return order


def order_at(positions: Indices, num_samples: int, seed: int, epoch: int) -> Indices:
    """The part `epoch_order(num_samples, seed, epoch)[positions]`, computed alone.

    Args:
        positions: (B,) positions in the epoch, from 0.
        num_samples: size of the data set.
        seed: the run's seed.
        epoch: epoch number, from 0.

    Returns:
        (B,) sample indices.
    """
    if num_samples <= _SORTED:
        return _sorted_order(num_samples, seed, epoch)[positions]
    rows = math.isqrt(num_samples - 1) + 1
    columns = -(-num_samples // rows)
    round_keys = [hash_words(_ORDER_STREAM, seed, epoch, number) for number in range(_ROUNDS)]
    found = _encrypted(positions.astype(np.uint64), rows, columns, round_keys)
    outside = np.flatnonzero(found >= num_samples)
    while len(outside):
        found[outside] = _encrypted(found[outside], rows, columns, round_keys)
        outside = outside[found[outside] >= num_samples]
    return found.astype(np.int64)


class BlockOrder:
    """The order of an epoch that reads few blocks of a data set at a time.

    Blocks are runs of samples that lie together: the shards of a data set. They come in a random order,
    which is cut into windows of some blocks; the samples of a window are shuffled.
    """

    def __init__(self, starts: Indices, window: int, seed: int) -> None:
        """Sets the blocks.

        Args:
            starts: (S + 1,) first sample of each block, and the number of samples.
            window: blocks among which samples are shuffled.
            seed: the run's seed.
        """
        self._starts = starts
        self._window = window
        self._seed = seed
        self._latest: tuple[int, Indices, Indices] | None = None

    def at(self, epoch: int, positions: Indices) -> Indices:
        """Sample indices (B,) at `positions` (B,) of an epoch."""
        blocks, ends = self._arranged(epoch)
        window_ends = ends[self._window - 1 :: self._window]
        if len(ends) % self._window:
            window_ends = np.append(window_ends, ends[-1])
        window_of = np.searchsorted(window_ends, positions, side="right")
        found = np.empty(len(positions), np.int64)
        for window in np.unique(window_of).tolist():
            rows = np.flatnonzero(window_of == window)
            begin = int(window_ends[window - 1]) if window else 0
            size = int(window_ends[window]) - begin
            seed = hash_words(_BLOCK_STREAM, self._seed, window)
            shuffled = begin + order_at(positions[rows] - begin, size, seed, epoch)
            block = np.searchsorted(ends, shuffled, side="right")
            before_end = ends[block] - shuffled
            found[rows] = self._starts[blocks[block] + 1] - before_end
        return found

    def _arranged(self, epoch: int) -> tuple[Indices, Indices]:
        """The blocks in their order, and the position at which each of them ends."""
        latest = self._latest
        if latest is None or latest[0] != epoch:
            seed = hash_words(_BLOCK_STREAM, self._seed)
            blocks = epoch_order(len(self._starts) - 1, seed, epoch)
            latest = epoch, blocks, np.cumsum(np.diff(self._starts)[blocks])
            self._latest = latest
        return latest[1:]


# Cached because every batch of an epoch calls it. Loaders use two epochs at a time at most, of as many
# windows.
@lru_cache(maxsize=8)
def _sorted_order(num_samples: int, seed: int, epoch: int) -> Indices:
    key = np.array([hash_words(_ORDER_STREAM, seed, epoch)], dtype=np.uint64)
    order = np.argsort(bits(key, np.arange(num_samples))[0], kind="stable")
    order.flags.writeable = False
    return order


def _encrypted(values: UInts, rows: int, columns: int, round_keys: list[int]) -> UInts:
    """A permutation of the numbers below `rows * columns`, at `values` (B,)."""
    left, right = np.divmod(values, np.uint64(columns))
    for number, key in enumerate(round_keys):
        if number % 2:
            right = (right + keys(key, left) % np.uint64(columns)) % np.uint64(columns)
        else:
            left = (left + keys(key, right) % np.uint64(rows)) % np.uint64(rows)
    return left * np.uint64(columns) + right
