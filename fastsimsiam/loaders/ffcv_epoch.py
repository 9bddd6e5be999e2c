"""What FFCV's compiled code is told of an epoch: its order, and each batch's boxes and memory.

Shapes: B batch, V views.
"""

from collections import deque
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fastsimsiam.loaders.base import size_groups
from fastsimsiam.plan.batches import BatchPlan, Plan
from fastsimsiam.storage.beton import Beton

_READ_AHEAD = 4
"""Batches whose records the system is asked to read before they are due."""


def balanced(cost: npt.NDArray[np.int64], workers: int) -> npt.NDArray[np.int64]:
    """An order of B samples whose `workers` equal pieces cost about the same.

    Numba gives every thread one piece; dealt out by size, to and fro, no thread waits for another.
    """
    by_cost = np.argsort(-cost, kind="stable")
    # A last, incomplete round goes to the first ones, whose pieces are longer by one.
    deal = np.arange(len(cost)) // workers % 2 == 0
    deal[len(cost) - len(cost) % workers :] = True
    number = np.arange(len(cost)) % workers
    hand = np.where(deal, number, workers - 1 - number)
    return by_cost[np.argsort(hand, kind="stable")]


class EpochPlan:
    """What the compiled code is to do in an epoch; handed over batch by batch, ahead of time.

    Attributes:
        order: sample indices of all batches, one after the other.
        made: batches that have been handed over, with the memory that their crops are written to.
        error: what went wrong in the thread that prepares batches.
    """

    def __init__(
        self,
        storage: Beton,
        plan: Plan,
        epoch: int,
        start: int,
        take: Callable[[tuple[int, ...]], Tensor],
    ) -> None:
        """Draws the order; views are drawn as batches come up."""
        steps = range(start, plan.num_batches)
        self._indices = [plan.index(epoch, step) for step in steps]
        self.order = np.concatenate(self._indices).astype(np.uint64)
        self.made: deque[tuple[BatchPlan, tuple[Tensor, ...]]] = deque()
        self.error: BaseException | None = None
        self._storage = storage
        self._plan, self._epoch, self._start, self._take = plan, epoch, start, take
        for number in range(_READ_AHEAD):
            self._read_ahead(number)

    def prepare(
        self,
        number: int,
        boxes: npt.NDArray[np.int32],
        targets: npt.NDArray[np.uint64],
        turn: npt.NDArray[np.int64],
        workers: int,
    ) -> None:
        """Fills in a batch's boxes (B, V, 4), the addresses of its crop tensors, its rows by turns."""
        batch = self._plan.batch(self._epoch, self._start + number)
        size = len(batch.index)
        crops = tuple(
            self._take((size, len(views), side, side, 3))
            for side, views in size_groups(self._plan.view_sizes).items()
        )
        boxes[:size] = batch.views.box
        targets[:] = [crop.data_ptr() for crop in crops]
        turn[:size] = balanced(self._storage.length[batch.index], workers)
        self.made.append((batch, crops))
        self._read_ahead(number + _READ_AHEAD)

    def _read_ahead(self, number: int) -> None:
        # What is not in the page cache is on its way when it is due: data sets larger than memory
        # are read in the order of use, and nothing is held twice.
        if number < len(self._indices):
            for index in self._indices[number].tolist():
                self._storage.will_need(index)
