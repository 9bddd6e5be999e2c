"""Batch memory that is used again: fresh memory costs page faults worth a tenth of the decoding.

Pinned memory needs none of this: torch keeps its own pool of it.
"""

import weakref
from collections import defaultdict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Block = npt.NDArray[np.uint8]


class _Lease:
    """Stands behind the tensors of a block; the block is free again when the last of them is gone."""

    def __init__(self, block: Block) -> None:
        self.__array_interface__ = block.__array_interface__


class BufferPool:
    """Blocks of host memory by size. A tensor, or any view of it, may be kept as long as one likes."""

    def __init__(self) -> None:
        """Starts empty."""
        self._free: dict[int, list[Block]] = defaultdict(list)

    def take(self, shape: tuple[int, ...]) -> Tensor:
        """An uninitialized uint8 tensor of `shape`, in memory of an earlier one if there is any."""
        size = int(np.prod(shape))
        free = self._free[size]
        block = free.pop() if free else np.empty(size, dtype=np.uint8)
        lease = _Lease(block)
        weakref.finalize(lease, free.append, block).atexit = False
        return torch.from_numpy(np.asarray(lease)).view(shape)

    def clear(self) -> None:
        """Lets go of what is free."""
        self._free.clear()
