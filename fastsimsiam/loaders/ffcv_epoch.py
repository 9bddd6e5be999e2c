"""The input of FFCV's compiled code for an epoch: its order, and boxes and memory of each batch.

Shapes: B batch, V views.
"""

from collections import deque
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fastsimsiam.loaders.base import crop_shapes
from fastsimsiam.plan.batches import BatchPlan, Plan
from fastsimsiam.storage.beton import Beton

_READ_AHEAD = 4
"""Batches of storage records that the system reads ahead of use."""


def balanced(cost: npt.NDArray[np.int64], workers: int) -> npt.NDArray[np.int64]:
    """An order of B samples in which `workers` equal pieces have about the same total cost.

    Numba gives each thread one piece. Samples are assigned from the most to the least expensive, to
    threads 0, 1, 2, 2, 1, 0, 0 and so on, so that no thread waits long for another.
    """
    by_cost = np.argsort(-cost, kind="stable")
    forward = np.arange(len(cost)) // workers % 2 == 0
    # The last, incomplete round goes to the first threads, which have pieces longer by one.
    forward[len(cost) - len(cost) % workers :] = True
    number = np.arange(len(cost)) % workers
    thread = np.where(forward, number, workers - 1 - number)
    return by_cost[np.argsort(thread, kind="stable")]


class EpochPlan:
    """The work of the compiled code in an epoch, which is prepared batch by batch ahead of use.

    Attributes:
        order: sample indices of all batches, concatenated.
        prepared: batches that the compiled code works on or has finished, with their crop tensors.
        error: error in the thread that prepares batches.
    """

    def __init__(
        self,
        storage: Beton,
        plan: Plan,
        epoch: int,
        start: int,
        take: Callable[[tuple[int, ...]], Tensor],
    ) -> None:
        """Draws the order of the epoch; views are drawn by `prepare`.

        Args:
            storage: the packed file.
            plan: the batches.
            epoch: number of the epoch.
            start: first batch of the epoch to make.
            take: allocates the crop tensors.
        """
        steps = range(start, plan.num_batches)
        self._indices = [plan.index(epoch, step) for step in steps]
        self.order = np.concatenate(self._indices).astype(np.uint64)
        self.prepared: deque[tuple[BatchPlan, tuple[Tensor, ...]]] = deque()
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
        rows: npt.NDArray[np.int64],
        workers: int,
    ) -> None:
        """Fills the inputs of the compiled code for a batch.

        Args:
            number: number of the batch, from the first one of this epoch plan.
            boxes: (B, V, 4) receives the boxes.
            targets: receives the addresses of the crop tensors, one per view size.
            rows: (B,) receives the rows in the order in which the threads take them.
            workers: number of threads.
        """
        batch = self._plan.batch(self._epoch, self._start + number)
        size = len(batch.index)
        crops = tuple(self._take(shape) for shape in crop_shapes(size, self._plan.view_sizes))
        boxes[:size] = batch.views.box
        targets[:] = [crop.data_ptr() for crop in crops]
        rows[:size] = balanced(self._storage.length[batch.index], workers)
        self.prepared.append((batch, crops))
        self._read_ahead(number + _READ_AHEAD)

    def _read_ahead(self, number: int) -> None:
        # Data sets larger than memory are read in the order of use, into the page cache only.
        if number < len(self._indices):
            for index in self._indices[number].tolist():
                self._storage.will_need(index)
