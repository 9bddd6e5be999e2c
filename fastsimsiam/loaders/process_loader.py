"""Crops cut in processes: the threads of one process share an interpreter lock with the training step.

On a GPU server 16 threads keep seven cores busy, because each image needs the lock for a tenth of a
millisecond, and the step, which needs it for each of a thousand kernels, takes half as long again
(benchmarks/LOG.md). Some processes with a few threads each use all cores and leave the step alone.

A process writes its crops into memory that it shares with this one, mapped before it was started: it
needs no room in /dev/shm, which is small in containers. The rest of a batch comes through a pipe.
"""

import mmap
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastsimsiam.errors import BadImageError, UserError
from fastsimsiam.loaders.bad_images import BadImagePolicy
from fastsimsiam.loaders.base import Batch, LoaderOptions, assemble, crop_shapes
from fastsimsiam.loaders.decode import Pixels
from fastsimsiam.loaders.host_crop import crop_views
from fastsimsiam.loaders.host_loader import HostLoader
from fastsimsiam.loaders.prefetch import to_device
from fastsimsiam.plan.batches import BatchPlan, Plan
from fastsimsiam.storage.base import Storage
from fastsimsiam.system.buffers import BufferPool
from fastsimsiam.system.processes import InProcesses
from fastsimsiam.system.resources import num_workers

_SLOTS = 2
"""Batches that a process makes before the first of them is taken."""
_NICENESS = 5
"""Processes give way to the thread that feeds the GPU."""
Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class _Made:
    """A batch whose crops are in a slot; see `Loader` for the dictionaries."""

    batch: BatchPlan
    bad_images: dict[str, str]
    warned_images: dict[str, str]
    error: UserError | None = None


class _Slots:
    """Shared memory for the crops of a process."""

    def __init__(self, shapes: Shapes) -> None:
        sizes = [int(np.prod(shape)) for shape in shapes]
        self.crops: list[tuple[Tensor, ...]] = []
        for _ in range(_SLOTS):
            memory = mmap.mmap(-1, max(1, sum(sizes)))
            whole = torch.frombuffer(memory, dtype=torch.uint8)
            ends = np.cumsum(sizes).tolist()
            self.crops.append(
                tuple(
                    whole[end - size : end].view(shape)
                    for size, end, shape in zip(sizes, ends, shapes, strict=True)
                )
            )
        self.free: Any = get_context("fork").Semaphore(_SLOTS)


class _Maker:
    """What the processes run; each has a number, and threads of its own."""

    def __init__(
        self,
        storage: Storage,
        plan: Plan,
        epoch: int,
        start: int,
        options: LoaderOptions,
        slots: list[_Slots],
        threads: list[int],
    ) -> None:
        self._storage, self._plan, self._epoch, self._start = storage, plan, epoch, start
        self._options, self._slots, self._threads = options, slots, threads
        self._parent = os.getpid()
        self._loader: HostLoader | None = None

    def make(self, step: int) -> _Made:
        """Makes a batch in the next slot of this process."""
        turn, process = divmod(step - self._start, len(self._slots))
        if self._loader is None:
            os.nice(_NICENESS)
            self._loader = self._start_threads(self._threads[process])
        slots = self._slots[process]
        while not slots.free.acquire(timeout=1.0):
            if os.getppid() != self._parent:
                os._exit(0)  # nobody is left to take it
        batch = self._plan.batch(self._epoch, step)
        error: UserError | None = None
        size = len(batch.index)
        try:
            crops = tuple(crop[:size] for crop in slots.crops[turn % _SLOTS])
            self._loader.fill(self._plan, batch, crops)
        except BadImageError as problem:
            error = BadImageError(str(problem))
        except UserError as problem:
            error = UserError(str(problem))
        made = _Made(
            batch=batch,
            bad_images=dict(self._policy.bad_images),
            warned_images=dict(self._policy.warned_images),
            error=error,
        )
        self._policy.bad_images.clear()
        self._policy.warned_images.clear()
        return made

    def _start_threads(self, threads: int) -> HostLoader:
        storage, options = self._storage, self._options
        self._policy = policy = BadImagePolicy(options.on_bad_image, options.gray16_max)

        def frame(index: int) -> Pixels:
            return policy.read_rgb(storage, index)

        here = replace(options, device=torch.device("cpu"), workers=threads)
        return HostLoader(frame, storage.name, policy, here, prefetch=0)


class ProcessLoader:
    """Decodes and crops in processes, with some threads in each.

    Attributes:
        bad_images, warned_images: see `loaders.base.Loader`.
    """

    def __init__(self, storage: Storage, options: LoaderOptions, processes: int) -> None:
        """Prepares the loader; processes start with each epoch.

        Args:
            storage: the images.
            options: device, threads of all processes together, broken images.
            processes: number of processes.

        Raises:
            UserError: a file has no readable header and is not to be skipped.
        """
        BadImagePolicy(options.on_bad_image).require_readable(storage)
        self.bad_images: dict[str, str] = {}
        self.warned_images: dict[str, str] = {}
        self._storage, self._options = storage, options
        self._device = options.device
        workers = num_workers(options.workers)
        count = max(1, min(processes, workers))
        self._threads = [workers // count + (p < workers % count) for p in range(count)]
        self._buffers = BufferPool(options.device)
        self._slots: dict[Shapes, list[_Slots]] = {}

    def iterate(self, plan: Plan, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """See `loaders.base.Loader`."""
        return to_device(self._host_batches(plan, epoch, start), self._device)

    def close(self) -> None:
        """Frees the memory; processes end with each epoch."""
        self._slots.clear()
        self._buffers.clear()

    def _host_batches(self, plan: Plan, epoch: int, start: int) -> Iterator[Batch]:
        steps = range(start, plan.num_batches)
        processes = min(len(self._threads), len(steps))
        if not processes:
            return
        # The first batch is the largest.
        size = len(plan.index(epoch, start))
        slots = self._slots_for(tuple(crop_shapes(size, plan.view_sizes)))[:processes]
        for slot in slots:  # an iteration that was left early has not given all of them back
            slot.free = get_context("fork").Semaphore(_SLOTS)
        _compile_kernels(plan)
        maker = _Maker(self._storage, plan, epoch, start, self._options, slots, self._threads)
        pin = self._device.type == "cuda"
        made = InProcesses(maker.make, steps, processes, "loader process", start_method="fork")
        with closing(made) as results:
            for number, result in enumerate(results):
                if result.error is not None:
                    raise result.error
                self.bad_images.update(result.bad_images)
                self.warned_images.update(result.warned_images)
                turn, process = divmod(number, processes)
                size = len(result.batch.index)
                crops = []
                for shared in slots[process].crops[turn % _SLOTS]:
                    # Out of the slot, so that a batch stays as it is for as long as it is held.
                    crop = self._buffers.take((size, *shared.shape[1:]))
                    crops.append(crop.copy_(shared[:size]))
                slots[process].free.release()
                yield assemble(result.batch, tuple(crops), pin=pin)

    def _slots_for(self, shapes: Shapes) -> list[_Slots]:
        """Slots for crops of these shapes, made once: fresh pages cost a tenth of the decoding."""
        if shapes not in self._slots:
            self._slots[shapes] = [_Slots(shapes) for _ in self._threads]
        return self._slots[shapes]


def _compile_kernels(plan: Plan) -> None:
    """Compiles the resampling here, once, instead of in each process of each epoch."""
    frame, box = np.zeros((2, 2, 3), np.uint8), np.array([[0, 0, 2, 2]], np.int32)
    for interpolation in set(plan.interpolations):
        crop_views(frame, box, np.empty((1, 1, 1, 3), np.uint8), (interpolation,))
