"""Loader `dali`: NVIDIA DALI decodes on the GPU by nvJPEG, or on the CPU.

DALI gets the encoded images and the plan's boxes. On a GPU it cuts the crops too. It resamples the
frame around a box (`roi_start`, `roi_end`), which is a fifth faster than cutting the box out first;
the outermost pixels of a crop may therefore contain pixels outside the box. On the CPU, DALI's
resampling takes ten times as long as ours: there DALI decodes, and our threads crop.

Only JPEGs in YCbCr or gray that are upright and complete are decoded by DALI, if libjpeg-turbo neither
refuses them nor warns of them, see first_use.py. All other images, and those that DALI refuses, are
decoded as in the other loaders and handed to DALI as raw pixels (a PPM file in memory). So broken
images and warnings are those of the other loaders. With `check_images` off, libjpeg-turbo decodes
nothing else: then damage inside a JPEG's data gives a crop with DALI's guess, and no warning.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastsimsiam.config.views import Interpolation
from fastsimsiam.errors import UserError
from fastsimsiam.loaders.bad_images import BadImagePolicy
from fastsimsiam.loaders.base import (
    Batch,
    LoaderOptions,
    assemble,
    assemble_on,
    crop_shapes,
    view_groups,
)
from fastsimsiam.loaders.first_use import FirstUse
from fastsimsiam.loaders.host_crop import crop_views
from fastsimsiam.loaders.prefetch import to_device
from fastsimsiam.plan.batches import BatchPlan, Plan
from fastsimsiam.storage.base import Storage
from fastsimsiam.system.buffers import BufferPool
from fastsimsiam.system.optional import require_dali
from fastsimsiam.system.resources import num_workers

Bytes = npt.NDArray[np.uint8]
_NO_BYTES = np.empty(0, np.uint8)


class DaliLoader:
    """Batches from a DALI pipeline.

    Attributes:
        bad_images, warned_images: see `loaders.base.Loader`.
    """

    def __init__(
        self,
        storage: Storage,
        options: LoaderOptions,
        *,
        decoder: str = "auto",
        prefetch: int = 2,
        hw_decoder_load: float = 0.65,
        crop_in_dali: bool | None = None,
    ) -> None:
        """Prepares the loader; a pipeline is built at the first use of a batch size and view sizes.

        Args:
            storage: the images.
            options: device, threads, broken images.
            decoder: `cpu`; `mixed`: nvJPEG on the GPU; `auto`: mixed if the device is a GPU.
            prefetch: batches that DALI prepares ahead of use.
            hw_decoder_load: share of images for the GPU's JPEG engine, if it has one.
            crop_in_dali: DALI cuts the crops; None: only if it decodes on the GPU.

        Raises:
            UserError: DALI is missing or does not load, or a file has no readable header and is not to
                be skipped.
        """
        require_dali("--loader dali")
        self._storage = storage
        self._policy = policy = BadImagePolicy(options.on_bad_image, options.gray16_max)
        policy.require_readable(storage)
        self.bad_images, self.warned_images = policy.bad_images, policy.warned_images
        self._first_use = FirstUse(storage, policy, check=options.check_images)
        self._device = options.device
        self._workers = num_workers(options.workers)
        self._mixed = options.device.type == "cuda" and decoder != "cpu"
        self._crop_in_dali = self._mixed if crop_in_dali is None else crop_in_dali
        self._prefetch = prefetch
        self._hw_decoder_load = hw_decoder_load
        self._threads = ThreadPoolExecutor(self._workers, thread_name_prefix="beside-dali")
        self._pipelines: dict[tuple[Any, ...], Any] = {}
        self._buffers = BufferPool(options.device)

    def iterate(self, plan: Plan, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """See `loaders.base.Loader`."""
        batches = self._batches(plan, epoch, start)
        return batches if self._mixed else to_device(batches, self._device)

    def close(self) -> None:
        """Ends all threads, DALI's too, and frees its memory."""
        self._threads.shutdown(cancel_futures=True)
        for pipeline in self._pipelines.values():
            pipeline.close()
        self._pipelines.clear()
        self._buffers.clear()

    def _batches(self, plan: Plan, epoch: int, start: int) -> Iterator[Batch]:
        step = start
        while step < plan.num_batches:
            submitted: deque[BatchPlan] = deque()
            pipeline = self._pipelines.pop(self._key(plan), None) or self._build(plan)
            finished = False
            try:
                for outputs in pipeline.run(self._feeds(plan, epoch, step, submitted)):
                    yield self._assemble(plan, submitted.popleft(), outputs)
                    step += 1
                finished = True
            except RuntimeError as error:
                # DALI does not say which image: each is given to it alone.
                refused = self._refused_by_dali({i for b in submitted for i in b.index.tolist()})
                if not refused:  # the error is not caused by the images
                    reason = next(iter(str(error).splitlines()), "no reason given")
                    raise UserError(f"DALI cannot go on ({reason}): pass --loader cpu") from error
                for index in refused:
                    self._first_use.take_back(index)
            finally:
                if finished:
                    self._pipelines[self._key(plan)] = pipeline  # for the next epoch
                else:
                    pipeline.close()  # it still holds batches of this epoch

    def _refused_by_dali(self, samples: set[int]) -> list[int]:
        """Those of the samples, decoded by DALI so far, that DALI cannot decode alone."""
        refused = []
        pipeline = None
        for index in sorted(samples):
            if self._first_use.is_taken_back(index):
                continue
            pipeline = pipeline or self._new_pipeline(1, (), (), crop=False)
            jpeg = np.array(self._storage.read(index))
            try:
                list(pipeline.run(iter([([jpeg], np.empty((1, 0, 4), np.int32))])))
            except RuntimeError:
                refused.append(index)
                pipeline.close()
                pipeline = None
        if pipeline is not None:
            pipeline.close()
        return refused

    def _feeds(
        self, plan: Plan, epoch: int, start: int, submitted: deque[BatchPlan]
    ) -> Iterator[tuple[list[Bytes], npt.NDArray[np.int32]]]:
        """The inputs of a pipeline for each batch; adds the plan of the batch to `submitted`."""
        for step in range(start, plan.num_batches):
            batch = plan.batch(epoch, step)
            files: list[Bytes] = [_NO_BYTES] * len(batch.index)
            rows = iter(range(len(files)))
            self._on_all_threads(partial(self._read_rows, plan, batch, rows, files))
            submitted.append(batch)
            yield files, batch.views.box

    def _read_rows(
        self, plan: Plan, batch: BatchPlan, rows: Iterator[int], files: list[Bytes]
    ) -> None:
        for row in rows:  # an iterator shared by all threads
            files[row] = self._policy.run(plan, batch, row, self._encoded, self._storage.name)

    def _on_all_threads(self, work: Callable[[], None]) -> None:
        for task in [self._threads.submit(work) for _ in range(self._workers)]:
            task.result()

    def _assemble(self, plan: Plan, batch: BatchPlan, outputs: list[Any]) -> Batch:
        if not self._crop_in_dali:
            return self._cropped(plan, batch, outputs[0])
        # Stacked by torch: DALI's stack takes a tenth of the loader's time on a CPU.
        views = [torch.utils.dlpack.from_dlpack(output.as_tensor()) for output in outputs]
        crops = tuple(
            self._stacked([views[view] for view in group.views]) for group in view_groups(plan)
        )
        if not self._mixed:
            return assemble(batch, crops, pin=self._device.type == "cuda")
        return assemble_on(self._device, batch, crops)

    def _cropped(self, plan: Plan, batch: BatchPlan, frames: Any) -> Batch:
        """A batch of crops that our threads cut from DALI's B frames in host memory."""
        groups = view_groups(plan)
        size = len(batch.index)
        crops = tuple(self._buffers.take(shape) for shape in crop_shapes(size, plan.view_sizes))
        arrays = [crop.numpy() for crop in crops]
        rows = iter(range(size))

        def crop_rows() -> None:
            for row in rows:  # an iterator shared by all threads
                pixels, boxes = np.asarray(frames[row]), batch.views.box[row]
                for out, group in zip(arrays, groups, strict=True):
                    crop_views(pixels, boxes[group.views], out[row], group.interpolations)

        self._on_all_threads(crop_rows)
        return assemble(batch, crops, pin=self._device.type == "cuda")

    def _stacked(self, views: list[Tensor]) -> Tensor:
        """Views (B, S, S, 3) as (B, V, S, S, 3)."""
        if self._mixed:
            return torch.stack(views, dim=1)
        out = self._buffers.take((len(views[0]), len(views), *views[0].shape[1:]))
        for number, view in enumerate(views):
            out[:, number] = view
        return out

    def _key(self, plan: Plan) -> tuple[int, tuple[int, ...], tuple[Interpolation, ...]]:
        return len(plan.index(0, 0)), plan.view_sizes, plan.interpolations

    def _build(self, plan: Plan) -> Any:
        return self._new_pipeline(*self._key(plan), crop=self._crop_in_dali)

    def _new_pipeline(
        self,
        batch_size: int,
        view_sizes: tuple[int, ...],
        interpolations: tuple[Interpolation, ...],
        *,
        crop: bool,
    ) -> Any:
        from fastsimsiam.loaders.dali_pipeline import DaliPipeline

        return DaliPipeline(
            batch_size,
            view_sizes,
            interpolations,
            crop=crop,
            device_id=(self._device.index or 0) if self._mixed else None,
            workers=self._workers,
            prefetch=self._prefetch,
            hw_decoder_load=self._hw_decoder_load,
        )

    def _encoded(self, index: int) -> Bytes:
        """The input of DALI for a sample: its JPEG, or its pixels as a PPM file.

        Raises:
            BadImageError: the image is broken.
        """
        data = np.array(self._storage.read(index))
        if self._first_use.is_left_to_it(index, data.data):
            return data
        pixels = self._policy.read_rgb(self._storage, index)
        header = f"P6\n{pixels.shape[1]} {pixels.shape[0]}\n255\n".encode()
        return np.concatenate([np.frombuffer(header, np.uint8), pixels.reshape(-1)])
