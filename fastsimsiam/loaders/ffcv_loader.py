"""Packed files through FFCV: its storage, memory manager, compiler and threads, our order and boxes.

FFCV's own image operations decode once per view, draw their boxes themselves and never look at the
decoder's return code. The operation here decodes once, cuts the plan's boxes, resamples as PIL does
and reports what the decoder said. It writes into the batch's own memory; its temporary memory is one
frame per thread. Pixels are within a grey level of PIL's.

Boxes reach the compiled code with the state of the memory manager: FFCV hands that state to every
operation and lets a manager prepare each batch (`start_batch`).
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastsimsiam.cores import num_cores, num_workers
from fastsimsiam.errors import BadImageError, UserError
from fastsimsiam.loaders.batch import Batch, assemble, size_groups
from fastsimsiam.loaders.buffers import BufferPool
from fastsimsiam.loaders.crop import crop_views
from fastsimsiam.loaders.decode import decode_jpeg
from fastsimsiam.loaders.prefetch import to_device
from fastsimsiam.loaders.replacement import BadImagePolicy
from fastsimsiam.optional import require_ffcv
from fastsimsiam.plan.batches import BatchPlan, Plan
from fastsimsiam.storage.base import Storage
from fastsimsiam.storage.beton import Beton

_READ_AHEAD = 4
"""Batches whose records the system is asked to read before they are due."""


def require_beton(storage: Storage) -> Beton:
    """The storage, if it is a packed file.

    Raises:
        UserError: it is not, or FFCV is not installed.
    """
    require_ffcv("--loader ffcv")
    if not isinstance(storage, Beton):
        raise UserError(
            f"--loader ffcv reads packed files, and {storage.root} is a folder: make one with "
            f"fastsimsiam pack {storage.root} {storage.root}.beton"
        )
    return storage


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
        self, storage: Beton, plan: Plan, epoch: int, start: int,
        take: Callable[[tuple[int, ...]], Tensor],
    ) -> None:  # fmt: skip
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
        self, number: int, boxes: npt.NDArray[np.int32], targets: npt.NDArray[np.uint64],
        turn: npt.NDArray[np.int64], workers: int,
    ) -> None:  # fmt: skip
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


class FfcvLoader:
    """Packed JPEGs, decoded and cropped by compiled code.

    Attributes:
        bad_images: name -> what is wrong with it, for images that were skipped so far.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        device: torch.device,
        workers: int | None = None,
        on_bad_image: str = "error",
    ) -> None:
        """Prepares the loader; code is compiled when a plan first asks for it.

        Args:
            storage: a packed file.
            device: where batches go.
            workers: threads; None: one per core. Never more than there are cores.
            on_bad_image: `error` or `skip`.

        Raises:
            UserError: it is no packed file, or FFCV is not installed.
        """
        self._storage = require_beton(storage)
        self._policy = BadImagePolicy(on_bad_image)
        self.bad_images = self._policy.bad_images
        self._device = device
        self._workers = min(num_workers(workers), num_cores())
        self._buffers = BufferPool()
        self._pipelines: dict[tuple[int, tuple[int, ...]], Any] = {}

    def iterate(self, plan: Plan, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """See `loaders.batch.Loader`."""
        return to_device(self._host_batches(plan, epoch, start), self._device)

    def close(self) -> None:
        """Lets go of compiled code and memory."""
        self._pipelines.clear()
        self._buffers.clear()

    def _take(self, shape: tuple[int, ...]) -> Tensor:
        if self._device.type == "cuda":
            # Called from FFCV's thread, where pinning would start a context on the first GPU.
            with torch.cuda.device(self._device):
                return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        return self._buffers.take(shape)

    def _host_batches(self, plan: Plan, epoch: int, start: int) -> Iterator[Batch]:
        if start >= plan.num_batches:
            return
        pipeline = self._pipeline(plan)
        epoch_plan = EpochPlan(self._storage, plan, epoch, start, self._take)
        with closing(pipeline.run(epoch_plan)) as statuses:
            for status in statuses:
                batch, crops = epoch_plan.made.popleft()
                for row in np.flatnonzero(status).tolist():
                    self._repair(plan, batch, row, crops)
                yield assemble(batch, crops, pin=self._device.type == "cuda")

    def _pipeline(self, plan: Plan) -> Any:
        key = (len(plan.index(0, 0)), plan.view_sizes)
        if key not in self._pipelines:
            from fastsimsiam.loaders.ffcv_pipeline import FfcvPipeline

            self._pipelines[key] = FfcvPipeline(self._storage, *key, self._workers)
        return self._pipelines[key]

    def _repair(self, plan: Plan, batch: BatchPlan, row: int, crops: tuple[Tensor, ...]) -> None:
        """What libjpeg-turbo refused goes by the policy."""

        def frame(index: int) -> npt.NDArray[np.uint8]:
            height, width = self._storage.sizes[index].tolist()
            pixels = decode_jpeg(self._storage.read(index), height * width)
            # PIL would put up with some damage. But every record was whole when it was packed.
            if pixels is None or pixels.shape[:2] != (height, width):
                raise BadImageError(
                    f"{self._storage.name(index)} cannot be decoded (damaged since it was packed)"
                )
            return pixels

        pixels = self._policy.run(plan, batch, row, frame, self._storage.name)
        for out, views in zip(crops, size_groups(plan.view_sizes).values(), strict=True):
            crop_views(pixels, batch.views.box[row, views], out[row].numpy())
