"""Crops made on CPU threads: the machinery of all loaders whose frames are in host memory.

A frame is asked for once; each view's box is cut from it and resampled, as PIL does, into its place in
the batch.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from fastsimsiam.loaders.bad_images import BadImagePolicy
from fastsimsiam.loaders.base import Batch, LoaderOptions, assemble, size_groups
from fastsimsiam.loaders.decode import Pixels
from fastsimsiam.loaders.host_crop import crop_views
from fastsimsiam.loaders.prefetch import to_device
from fastsimsiam.plan.batches import BatchPlan, Plan
from fastsimsiam.system.buffers import BufferPool
from fastsimsiam.system.resources import num_workers

_BATCHES_AHEAD = 2


class HostLoader:
    """Cuts crops on CPU threads.

    Attributes:
        bad_images: path -> what is wrong with it, for images that were skipped so far.
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
            name: what reports call a sample.
            policy: what happens to broken images.
            options: device and threads.
            will_need: told of samples some time before their frames are asked for; None: nobody is.
            prefetch: batches made ahead of the one asked for. None: two; but none on a CPU, whose cores
                they would take from whoever uses the batches: a thread that holds up one of a step's
                threads holds up all, and costs twice the time it works (benchmarks/LOG.md).
        """
        self.bad_images = policy.bad_images
        self._frame = frame
        self._name = name
        self._policy = policy
        self._device = options.device
        self._will_need = will_need
        if prefetch is None:
            # Where the system cannot be asked to read ahead, the threads have to.
            alone = options.device.type != "cpu" or not hasattr(os, "posix_fadvise")
            prefetch = _BATCHES_AHEAD if alone else 0
        self._prefetch = prefetch
        self._workers = num_workers(options.workers)
        self._buffers = BufferPool()
        self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="crops")

    def iterate(self, plan: Plan, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """See `loaders.batch.Loader`."""
        return to_device(self._host_batches(plan, epoch, start), self._device)

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown(cancel_futures=True)
        self._buffers.clear()

    def _host_batches(self, plan: Plan, epoch: int, start: int) -> Iterator[Batch]:
        pin = self._device.type == "cuda"
        pending: deque[_Underway] = deque()
        drawn = (plan.batch(epoch, step) for step in range(start, plan.num_batches))
        upcoming = next(drawn, None)
        unread: Iterator[int] = iter(())  # samples of the upcoming batch
        try:
            while True:
                _exhaust(unread)  # from here on threads read what they need
                while upcoming is not None and len(pending) <= self._prefetch:
                    pending.append(self._submit(plan, upcoming, pin))
                    upcoming = next(drawn, None)  # while the threads work
                if not pending:
                    return
                made = pending[0]
                for future in made.futures:
                    future.result()
                pending.popleft()
                if self._will_need and upcoming is not None and not pending:
                    unread = iter(upcoming.index.tolist())  # nobody works on the next batch
                    self._pool.submit(_exhaust, map(self._will_need, unread))
                yield assemble(made.batch, made.crops, pin=pin)
        finally:
            _exhaust(unread)
            for left in pending:
                left.abandon()

    def _submit(self, plan: Plan, batch: BatchPlan, pin: bool) -> "_Underway":
        size = len(batch.index)
        groups = size_groups(plan.view_sizes)
        crops = tuple(
            torch.empty(shape, dtype=torch.uint8, pin_memory=True)
            if pin
            else self._buffers.take(shape)
            for shape in ((size, len(views), side, side, 3) for side, views in groups.items())
        )
        # The threads share one iterator (its `next` is atomic) and finish together, with one task
        # each: handing rows out in chunks costs the main thread more wake-ups than rows are long.
        rows = iter(range(size))
        futures = [
            self._pool.submit(self._crop_rows, plan, batch, rows, crops)
            for _ in range(min(self._workers, size))
        ]
        return _Underway(batch=batch, crops=crops, rows=rows, futures=futures)

    def _crop_rows(
        self, plan: Plan, batch: BatchPlan, rows: Iterator[int], crops: tuple[Tensor, ...]
    ) -> None:
        arrays = [crop.numpy() for crop in crops]
        groups = list(size_groups(plan.view_sizes).values())
        try:
            for row in rows:
                pixels = self._policy.run(plan, batch, row, self._frame, self._name)
                boxes = batch.views.box[row]
                for out, views in zip(arrays, groups, strict=True):
                    crop_views(pixels, boxes[views], out[row])
        except BaseException:
            _exhaust(rows)  # the batch is lost: the other threads need not finish it
            raise


@dataclass(frozen=True, kw_only=True)
class _Underway:
    """A batch that the threads are making, or will."""

    batch: BatchPlan
    crops: tuple[Tensor, ...]
    rows: Iterator[int]
    futures: list[Future[None]]

    def abandon(self) -> None:
        """Makes no more of it than the images that threads are at."""
        _exhaust(self.rows)
        for future in self.futures:
            future.cancel()


def _exhaust(numbers: Iterator[object]) -> None:
    deque(numbers, maxlen=0)
