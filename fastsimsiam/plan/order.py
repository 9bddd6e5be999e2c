"""The order of an epoch: a permutation that depends on seed and epoch only."""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from fastsimsiam.plan.counter_rng import bits, hash_words

_ORDER_STREAM = 1


# Cached because every batch of an epoch calls it. Loaders use two epochs at a time at most.
@lru_cache(maxsize=4)
def epoch_order(num_samples: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """Sample indices in the order of an epoch.

    Args:
        num_samples: size of the data set.
        seed: the run's seed.
        epoch: epoch number, from 0.

    Returns:
        A read-only permutation of `range(num_samples)`; 1.28 million samples take 0.1 s.
    """
    key = np.array([hash_words(_ORDER_STREAM, seed, epoch)], dtype=np.uint64)
    order = np.argsort(bits(key, np.arange(num_samples))[0], kind="stable")
    order.flags.writeable = False
    return order
