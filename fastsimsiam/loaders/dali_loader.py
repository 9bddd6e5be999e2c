"""NVIDIA DALI: decoding and cropping on the CPU or, with nvJPEG, on the GPU, from one definition.

DALI is handed the files' bytes and the plan's boxes. On a GPU it crops too: it resamples the whole
frame around a box (`roi_start`, `roi_end`), which is a fifth faster than cutting the box out first; so
the outermost pixels of a crop may see their neighbors outside of the box. On the CPU its resampling
takes ten times as long as ours: there it decodes, and we crop.

What DALI is not asked to decode: anything but a JPEG in RGB or gray that stands upright and has its
end. That goes through PIL's path and reaches DALI as plain pixels (a PPM file in memory): cut-off
files, other formats and odd colors are good or broken exactly where they are for the other loaders.
So is what DALI refuses. But it does not look at libjpeg-turbo's warnings: bytes damaged in the midst
of a JPEG's data, which the other loaders refuse, come out as the decoder's guess. `pack` finds them.
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

from fastsimsiam.loaders.bad_images import BadImagePolicy
from fastsimsiam.loaders.base import Batch, LoaderOptions, assemble, assemble_on, size_groups
from fastsimsiam.loaders.decode import read_rgb
from fastsimsiam.loaders.host_crop import crop_views
from fastsimsiam.loaders.jpeg_header import is_plain_jpeg
from fastsimsiam.loaders.prefetch import to_device
from fastsimsiam.plan.batches import BatchPlan, Plan
from fastsimsiam.storage.base import Storage
from fastsimsiam.system.buffers import BufferPool
from fastsimsiam.system.optional import require_dali
from fastsimsiam.system.resources import num_workers

Bytes = npt.NDArray[np.uint8]
_NOTHING = np.empty(0, np.uint8)


class DaliLoader:
    """Batches from a DALI pipeline.

    Attributes:
        bad_images: name -> what is wrong with it, for images that were skipped so far.
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
        """Prepares the loader; pipelines are built when a plan first asks for them.

        Args:
            storage: where the images lie.
            options: device, threads, broken images.
            decoder: `cpu`; `mixed`, nvJPEG on the GPU; `auto`: mixed if `device` is a GPU.
            prefetch: batches under way.
            hw_decoder_load: share of images for the GPU's JPEG engine, where it has one.
            crop_in_dali: DALI crops, too; None: if it decodes on the GPU.

        Raises:
            UserError: DALI is not installed, or files have no readable header.
        """
        require_dali("--loader dali")
        self._storage = storage
        self._policy = BadImagePolicy(options.on_bad_image)
        self._policy.require_readable(storage)
        self.bad_images = self._policy.bad_images
        self._device = options.device
        self._workers = num_workers(options.workers)
        self._mixed = options.device.type == "cuda" and decoder != "cpu"
        self._crop_in_dali = self._mixed if crop_in_dali is None else crop_in_dali
        self._prefetch = prefetch
        self._hw_decoder_load = hw_decoder_load
        self._threads = ThreadPoolExecutor(self._workers, thread_name_prefix="beside-dali")
        self._pipelines: dict[tuple[int, tuple[int, ...]], Any] = {}
        self._refused: set[int] = set()
        self._buffers = BufferPool()

    def iterate(self, plan: Plan, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """See `loaders.batch.Loader`."""
        batches = self._batches(plan, epoch, start)
        return batches if self._mixed else to_device(batches, self._device)

    def close(self) -> None:
        """Ends DALI's threads and gives its memory back."""
        self._threads.shutdown(cancel_futures=True)
        for pipeline in self._pipelines.values():
            pipeline.close()
        self._pipelines.clear()
        self._buffers.clear()

    def _batches(self, plan: Plan, epoch: int, start: int) -> Iterator[Batch]:
        step = start
        while step < plan.num_batches:
            made: deque[BatchPlan] = deque()
            pipeline = self._pipelines.pop(self._key(plan), None) or self._build(plan)
            whole = False
            try:
                for outputs in pipeline.run(self._feeds(plan, epoch, step, made)):
                    yield self._assemble(plan, made.popleft(), outputs)
                    step += 1
                whole = True
            except RuntimeError:
                # It does not say which image: these go the careful way from now on.
                batch = made[0].index.tolist() if made else []
                if self._refused.issuperset(batch):
                    raise  # the images are not to blame
                self._refused.update(batch)
            finally:
                if whole:
                    self._pipelines[self._key(plan)] = pipeline  # for the next epoch
                else:
                    pipeline.close()  # batches of this one are under way in it

    def _feeds(
        self, plan: Plan, epoch: int, start: int, made: deque[BatchPlan]
    ) -> Iterator[tuple[list[Bytes], npt.NDArray[np.int32]]]:
        for step in range(start, plan.num_batches):
            batch = plan.batch(epoch, step)
            files: list[Bytes] = [_NOTHING] * len(batch.index)
            rows = iter(range(len(files)))
            self._on_all_threads(partial(self._read_rows, plan, batch, rows, files))
            made.append(batch)
            yield files, batch.views.box

    def _read_rows(
        self, plan: Plan, batch: BatchPlan, rows: Iterator[int], files: list[Bytes]
    ) -> None:
        for row in rows:  # shared by the threads
            files[row] = self._policy.run(plan, batch, row, self._encoded, self._storage.name)

    def _on_all_threads(self, work: Callable[[], None]) -> None:
        for task in [self._threads.submit(work) for _ in range(self._workers)]:
            task.result()

    def _assemble(self, plan: Plan, batch: BatchPlan, outputs: list[Any]) -> Batch:
        if not self._crop_in_dali:
            return self._cropped(plan, batch, outputs[0])
        # Stacked here: DALI's own stack takes a tenth of the whole time on a CPU.
        views = [torch.utils.dlpack.from_dlpack(output.as_tensor()) for output in outputs]
        crops = tuple(
            self._stacked([views[view] for view in group])
            for group in size_groups(plan.view_sizes).values()
        )
        if not self._mixed:
            return assemble(batch, crops, pin=self._device.type == "cuda")
        return assemble_on(self._device, batch, crops)

    def _cropped(self, plan: Plan, batch: BatchPlan, frames: Any) -> Batch:
        """The views of B frames in host memory."""
        groups = size_groups(plan.view_sizes)
        size = len(batch.index)
        crops = tuple(self._host((size, len(v), side, side, 3)) for side, v in groups.items())
        arrays = [crop.numpy() for crop in crops]
        rows = iter(range(size))

        def crop_rows() -> None:
            for row in rows:  # shared by the threads
                pixels, boxes = np.asarray(frames[row]), batch.views.box[row]
                for out, views in zip(arrays, groups.values(), strict=True):
                    crop_views(pixels, boxes[views], out[row])

        self._on_all_threads(crop_rows)
        return assemble(batch, crops, pin=self._device.type == "cuda")

    def _host(self, shape: tuple[int, ...]) -> Tensor:
        """Memory for crops on their way to the device."""
        if self._device.type == "cuda":
            return torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        return self._buffers.take(shape)

    def _stacked(self, views: list[Tensor]) -> Tensor:
        """Views (B, S, S, 3) as (B, V, S, S, 3)."""
        if self._mixed:
            return torch.stack(views, dim=1)
        out = self._host((len(views[0]), len(views), *views[0].shape[1:]))
        for number, view in enumerate(views):
            out[:, number] = view
        return out

    def _key(self, plan: Plan) -> tuple[int, tuple[int, ...]]:
        return len(plan.index(0, 0)), plan.view_sizes

    def _build(self, plan: Plan) -> Any:
        from fastsimsiam.loaders.dali_pipeline import DaliPipeline

        return DaliPipeline(
            *self._key(plan),
            crop=self._crop_in_dali,
            device_id=(self._device.index or 0) if self._mixed else None,
            workers=self._workers,
            prefetch=self._prefetch,
            hw_decoder_load=self._hw_decoder_load,
        )

    def _encoded(self, index: int) -> Bytes:
        """The bytes of a sample that DALI is to decode.

        Raises:
            BadImageError: it is broken.
        """
        data = self._storage.read(index)
        if index not in self._refused and is_plain_jpeg(self._storage, index, data):
            return np.array(data)
        pixels = read_rgb(self._storage, index)
        header = f"P6\n{pixels.shape[1]} {pixels.shape[0]}\n255\n".encode()
        return np.concatenate([np.frombuffer(header, np.uint8), pixels.reshape(-1)])
