"""Loader `ffcv`: packed files, decoded and cropped by FFCV's compiled pipeline.

FFCV provides compiler, threads and queue; order, boxes and reading are ours. FFCV's image operations
decode once per view, draw their own boxes, trust the sizes that a file claims and ignore the decoder's
return code. Ours (ffcv_pipeline.py) compares the size with the JPEG's own header, decodes once, cuts
the plan's boxes and resamples as PIL does, into the crop tensors of the batch; its temporary memory is
a record and a frame per thread. Pixels differ from PIL's by one gray level at most, and by more where
the bicubic filter overshoots (resample.py). Images that the compiled code leaves, as damaged ones and
those in unusual colors, are decoded as in the other loaders.

Boxes reach the compiled code in the state of the memory manager, which FFCV passes to every operation
and prepares for each batch (`start_batch`).
"""

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
from torch import Tensor

from fastsimsiam.errors import UserError
from fastsimsiam.loaders.bad_images import BadImagePolicy
from fastsimsiam.loaders.base import Batch, LoaderOptions, assemble, view_groups
from fastsimsiam.loaders.decode import Pixels
from fastsimsiam.loaders.ffcv_epoch import EpochPlan
from fastsimsiam.loaders.host_crop import crop_views
from fastsimsiam.loaders.prefetch import to_device
from fastsimsiam.plan.batches import BatchPlan, Plan
from fastsimsiam.storage.base import Storage
from fastsimsiam.storage.beton import SUFFIX, Beton, as_beton
from fastsimsiam.system.buffers import BufferPool
from fastsimsiam.system.optional import require_ffcv
from fastsimsiam.system.resources import num_cores, num_workers


def require_beton(storage: Storage) -> Beton:
    """The storage as a packed file.

    Raises:
        UserError: it is another storage, or FFCV is missing or does not load.
    """
    require_ffcv("--loader ffcv")
    beton = as_beton(storage)
    if beton is None:
        raise UserError(
            f"--loader ffcv reads packed files, and {storage.root} is a folder: pack it with "
            f"fastsimsiam pack {storage.root} {storage.root}{SUFFIX}"
        )
    return beton


class FfcvLoader:
    """Decodes and crops packed JPEGs by compiled code.

    Attributes:
        bad_images: image -> error, for the images that were skipped so far.
    """

    def __init__(self, storage: Storage, options: LoaderOptions) -> None:
        """Prepares the loader; code is compiled at the first use of a batch size and view sizes.

        Args:
            storage: a packed file.
            options: device, threads, broken images.

        Raises:
            UserError: the storage is not a packed file, FFCV is missing or does not load, or the file
                has an image of an impossible size that is not to be skipped.
        """
        self._storage = require_beton(storage)
        self._policy = BadImagePolicy(options.on_bad_image, options.gray16_max)
        self._policy.require_readable(storage)
        self.bad_images = self._policy.bad_images
        self.warned_images = self._policy.warned_images
        self._device = options.device
        self._workers = min(num_workers(options.workers), num_cores())
        self._buffers = BufferPool(options.device)
        self._pipelines: dict[tuple[Any, ...], Any] = {}

    def iterate(self, plan: Plan, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """See `loaders.base.Loader`."""
        return to_device(self._host_batches(plan, epoch, start), self._device)

    def close(self) -> None:
        """Frees the compiled code and memory."""
        self._pipelines.clear()
        self._buffers.clear()

    def _host_batches(self, plan: Plan, epoch: int, start: int) -> Iterator[Batch]:
        if start >= plan.num_batches:
            return
        pipeline = self._pipeline(plan)
        epoch_plan = EpochPlan(self._storage, plan, epoch, start, self._buffers.take)
        with closing(pipeline.run(epoch_plan)) as statuses:
            for status in statuses:
                batch, crops = epoch_plan.prepared.popleft()
                for row in np.flatnonzero(status).tolist():
                    self._repair(plan, batch, row, crops)
                yield assemble(batch, crops, pin=self._device.type == "cuda")

    def _pipeline(self, plan: Plan) -> Any:
        key = (len(plan.index(0, 0)), plan.view_sizes, plan.interpolations)
        if key not in self._pipelines:
            from fastsimsiam.loaders.ffcv_pipeline import FfcvPipeline

            self._pipelines[key] = FfcvPipeline(self._storage, *key, self._workers)
        return self._pipelines[key]

    def _repair(self, plan: Plan, batch: BatchPlan, row: int, crops: tuple[Tensor, ...]) -> None:
        """Decodes an image that the compiled code left as the other loaders do, or replaces it."""

        def frame(index: int) -> Pixels:
            return self._policy.read_rgb(self._storage, index)

        pixels = self._policy.run(plan, batch, row, frame, self._storage.name)
        for out, group in zip(crops, view_groups(plan), strict=True):
            boxes = batch.views.box[row, group.views]
            crop_views(pixels, boxes, out[row].numpy(), group.interpolations)
