"""Packed files through FFCV: its storage, memory manager, compiler and threads, our order and boxes.

FFCV's own image operations decode once per view, draw their boxes themselves and never look at the
decoder's return code. The operation here decodes once, cuts the plan's boxes, resamples as PIL does
and reports what the decoder said. It writes into the batch's own memory; its temporary memory is one
frame per thread. Pixels are within a gray level of PIL's.

Boxes reach the compiled code with the state of the memory manager: FFCV hands that state to every
operation and lets a manager prepare each batch (`start_batch`).
"""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastsimsiam.errors import BadImageError, UserError
from fastsimsiam.loaders.bad_images import BadImagePolicy
from fastsimsiam.loaders.base import Batch, LoaderOptions, assemble, size_groups
from fastsimsiam.loaders.decode import decode_jpeg
from fastsimsiam.loaders.ffcv_epoch import EpochPlan
from fastsimsiam.loaders.host_crop import crop_views
from fastsimsiam.loaders.prefetch import to_device
from fastsimsiam.plan.batches import BatchPlan, Plan
from fastsimsiam.storage.base import Storage
from fastsimsiam.storage.beton import Beton, as_beton
from fastsimsiam.system.buffers import BufferPool
from fastsimsiam.system.optional import require_ffcv
from fastsimsiam.system.resources import num_cores, num_workers


def require_beton(storage: Storage) -> Beton:
    """The storage, if it is a packed file.

    Raises:
        UserError: it is not, or FFCV is not installed.
    """
    require_ffcv("--loader ffcv")
    beton = as_beton(storage)
    if beton is None:
        raise UserError(
            f"--loader ffcv reads packed files, and {storage.root} is a folder: make one with "
            f"fastsimsiam pack {storage.root} {storage.root}.beton"
        )
    return beton


class FfcvLoader:
    """Packed JPEGs, decoded and cropped by compiled code.

    Attributes:
        bad_images: name -> what is wrong with it, for images that were skipped so far.
    """

    def __init__(self, storage: Storage, options: LoaderOptions) -> None:
        """Prepares the loader; code is compiled when a plan first asks for it.

        Args:
            storage: a packed file.
            options: device, threads, broken images.

        Raises:
            UserError: it is no packed file, or FFCV is not installed.
        """
        self._storage = require_beton(storage)
        self._policy = BadImagePolicy(options.on_bad_image)
        self.bad_images = self._policy.bad_images
        self._device = options.device
        self._workers = min(num_workers(options.workers), num_cores())
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
