"""Crops cut in processes, which leave the interpreter lock to the step: see slot_processes.py."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fastsimsiam.loaders.bad_images import BadImagePolicy
from fastsimsiam.loaders.base import Batch, LoaderOptions, assemble, crop_shapes
from fastsimsiam.loaders.decode import Pixels
from fastsimsiam.loaders.host_crop import crop_views
from fastsimsiam.loaders.host_loader import HostLoader
from fastsimsiam.loaders.prefetch import to_device
from fastsimsiam.loaders.slot_processes import Fill, SlotProcesses
from fastsimsiam.plan.batches import BatchPlan, Plan
from fastsimsiam.storage.base import Storage


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
        self._storage, self._options = storage, options
        self._device = options.device
        self._processes = SlotProcesses(storage, options, processes, self._start_threads)
        self.bad_images = self._processes.bad_images
        self.warned_images = self._processes.warned_images

    def iterate(self, plan: Plan, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """See `loaders.base.Loader`."""
        return to_device(self._batches(plan, epoch, start), self._device)

    def close(self) -> None:
        """Frees the memory; processes end with each epoch."""
        self._processes.close()

    def _start_threads(self, policy: BadImagePolicy, threads: int) -> Fill[None]:
        storage = self._storage

        def frame(index: int) -> Pixels:
            return policy.read_rgb(storage, index)

        here = replace(self._options, device=torch.device("cpu"), workers=threads)
        loader = HostLoader(frame, storage.name, policy, here, prefetch=0)

        def fill(plan: Plan, batch: BatchPlan, memory: Tensor) -> None:
            loader.fill(plan, batch, _crops_in(memory, plan, len(batch.index)))

        return fill

    def _batches(self, plan: Plan, epoch: int, start: int) -> Iterator[Batch]:
        """Batches whose crops are on the device; to a GPU the copies may still be under way."""
        if start >= plan.num_batches:
            return
        shapes = crop_shapes(len(plan.index(epoch, start)), plan.view_sizes)
        size = sum(int(np.prod(shape)) for shape in shapes)  # the first batch is the largest
        _compile_kernels(plan)
        with self._processes.run(plan, epoch, start, size) as batches:
            for made, slot in batches:
                crops = slot.send(_crops_in(slot.memory, plan, len(made.batch.index)))
                yield assemble(made.batch, tuple(crops), pin=self._device.type == "cuda")


def _crops_in(memory: Tensor, plan: Plan, batch_size: int) -> tuple[Tensor, ...]:
    """The crops of a batch, one after the other in the bytes (N,) of a slot."""
    crops, first = [], 0
    for shape in crop_shapes(batch_size, plan.view_sizes):
        size = int(np.prod(shape))
        crops.append(memory[first : first + size].view(shape))
        first += size
    return tuple(crops)


def _compile_kernels(plan: Plan) -> None:
    """Compiles the resampling here, once, instead of in each process of each epoch."""
    frame, box = np.zeros((2, 2, 3), np.uint8), np.array([[0, 0, 2, 2]], np.int32)
    for interpolation in set(plan.interpolations):
        crop_views(frame, box, np.empty((1, 1, 1, 3), np.uint8), (interpolation,))
