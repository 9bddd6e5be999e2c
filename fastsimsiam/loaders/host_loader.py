"""Crops cut on CPU threads from frames in host memory: common part of `cpu` and, on a CPU, `resident`.

Each sample's frame is requested once; the boxes of all its views are cut from it and resampled
directly into the crop tensors of the batch.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from torch import Tensor

from fastsimsiam.loaders.bad_images import BadImagePolicy
from fastsimsiam.loaders.base import (
    BATCHES_AHEAD,
    Batch,
    LoaderOptions,
    assemble,
    crop_shapes,
    view_groups,
)
from fastsimsiam.loaders.decode import Pixels
from fastsimsiam.loaders.host_crop import crop_views
from fastsimsiam.loaders.prefetch import to_device
from fastsimsiam.plan.batches import BatchPlan, Plan
from fastsimsiam.system.buffers import BufferPool
from fastsimsiam.system.resources import num_workers


class HostLoader:
    """Cuts crops on CPU threads.

    Attributes:
        bad_images, warned_images: see `loaders.base.Loader`.
    """

    def __init__(
        self,
        frame: Callable[[int], Pixels],
        name: Callable[[int], str],
        policy: BadImagePolicy,
        options: LoaderOptions,
        *,
        will_need: Callable[[int], None] | None = None,
        prefetch: int | None = None,
    ) -> None:
        """Starts the threads.

        Args:
            frame: the upright image (H, W, 3) of a sample; called from all threads.
            name: name of a sample in reports.
            policy: what happens to broken images.
            options: device and threads.
            will_need: called with samples some time before their frames are requested; None: no hints.
            prefetch: batches that are made ahead of use. None: 2 on a GPU, 0 on a CPU, where decoding
                ahead slows the step more than it saves: a step waits for the slowest of its threads,
                and is delayed by twice the time of the decoding (benchmarks/LOG.md).
        """
        self.bad_images, self.warned_images = policy.bad_images, policy.warned_images
        self._frame = frame
        self._name = name
        self._policy = policy
        self._device = options.device
        self._will_need = will_need
        if prefetch is None:
            # Without a system call for reading ahead, the threads have to work ahead instead.
            threads_ahead = options.device.type != "cpu" or not hasattr(os, "posix_fadvise")
            prefetch = BATCHES_AHEAD if threads_ahead else 0
        self._prefetch = prefetch
        self._workers = num_workers(options.workers)
        self._buffers = BufferPool(options.device)
        self._closed = False
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="crops")

    def iterate(self, plan: Plan, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """See `loaders.base.Loader`."""
        return to_device(self._host_batches(plan, epoch, start), self._device)

    def close(self) -> None:
        """Ends the threads, after the images that are being decoded."""
        self._closed = True
        self._pool.shutdown(cancel_futures=True)
        self._buffers.clear()

    def fill(self, plan: Plan, batch: BatchPlan, crops: tuple[Tensor, ...]) -> None:
        """Makes the crops of one batch in memory of the caller.

        Args:
            plan: the source of replacements for broken images.
            batch: the plan of the batch, changed where an image is replaced.
            crops: the crops of `Batch`, to be written.

        Raises:
            BadImageError: an image is broken and is not to be skipped.
        """
        for future in self._submit(plan, batch, crops).futures:
            future.result()

    def _host_batches(self, plan: Plan, epoch: int, start: int) -> Iterator[Batch]:
        pin = self._device.type == "cuda"
        pending: deque[_PendingBatch] = deque()
        batch_plans = (plan.batch(epoch, step) for step in range(start, plan.num_batches))
        upcoming = next(batch_plans, None)
        unread: Iterator[int] = iter(())  # samples of the upcoming batch that are not hinted yet
        try:
            while True:
                _exhaust(unread)  # from here on threads read what they need
                while upcoming is not None and len(pending) <= self._prefetch:
                    shapes = crop_shapes(len(upcoming.index), plan.view_sizes)
                    crops = tuple(self._buffers.take(shape) for shape in shapes)
                    pending.append(self._submit(plan, upcoming, crops))
                    upcoming = next(batch_plans, None)  # drawn while the threads work
                if not pending:
                    return
                current = pending[0]
                for future in current.futures:
                    future.result()
                pending.popleft()
                if self._will_need and upcoming is not None and not pending:
                    # The threads are idle during the step: they ask for the files of the next batch.
                    unread = iter(upcoming.index.tolist())
                    self._pool.submit(_exhaust, map(self._will_need, unread))
                yield assemble(current.batch, current.crops, pin=pin)
        finally:
            _exhaust(unread)
            for batch in pending:
                batch.abandon()

    def _submit(self, plan: Plan, batch: BatchPlan, crops: tuple[Tensor, ...]) -> "_PendingBatch":
        size = len(batch.index)
        # Threads take rows from one iterator (its `next` is atomic), with one task per thread. A task
        # per chunk of rows would wake the main thread more often than the rows take.
        rows = iter(range(size))
        futures = [
            self._pool.submit(self._crop_rows, plan, batch, rows, crops)
            for _ in range(min(self._workers, size))
        ]
        return _PendingBatch(batch=batch, crops=crops, rows=rows, futures=futures)

    def _crop_rows(
        self, plan: Plan, batch: BatchPlan, rows: Iterator[int], crops: tuple[Tensor, ...]
    ) -> None:
        arrays = [crop.numpy() for crop in crops]
        groups = view_groups(plan)
        try:
            for row in rows:
                if self._closed:  # whoever iterates may be held by an exception for a while
                    break
                pixels = self._policy.run(plan, batch, row, self._frame, self._name)
                boxes = batch.views.box[row]
                for out, group in zip(arrays, groups, strict=True):
                    crop_views(pixels, boxes[group.views], out[row], group.interpolations)
        except BaseException:
            _exhaust(rows)  # the batch is lost: stops the other threads
            raise


@dataclass(frozen=True, kw_only=True)
class _PendingBatch:
    """A batch that the threads work on, or have in their queue."""

    batch: BatchPlan
    crops: tuple[Tensor, ...]
    rows: Iterator[int]
    futures: list[Future[None]]

    def abandon(self) -> None:
        """Stops the work after the images that are being decoded."""
        _exhaust(self.rows)
        for future in self.futures:
            future.cancel()


def _exhaust(iterator: Iterator[object]) -> None:
    deque(iterator, maxlen=0)
