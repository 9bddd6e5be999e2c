"""Crops cut on the GPU from whole frames: loader `nvjpeg`, and `cpu` with `--cpu.crops device`.

For machines with few CPU cores per GPU. `nvjpeg` decodes on the GPU; otherwise CPU threads decode, and
frames are copied to the GPU. Only JPEGs in RGB or gray that are upright and complete are decoded on the
GPU; all other images, and batches in which nvJPEG refuses an image, are decoded on the CPU. Damage
inside a JPEG's data goes unnoticed on the GPU, as with DALI: the crop shows the decoder's guess.
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fastsimsiam.errors import UserError
from fastsimsiam.loaders.bad_images import BadImagePolicy
from fastsimsiam.loaders.base import BATCHES_AHEAD, Batch, LoaderOptions, assemble_on
from fastsimsiam.loaders.decode import read_rgb
from fastsimsiam.loaders.device_crop import crop_views, send
from fastsimsiam.loaders.device_decode import decode_jpegs, require_device_decoder
from fastsimsiam.loaders.jpeg_header import hide_exif, is_plain_jpeg
from fastsimsiam.loaders.prefetch import ahead
from fastsimsiam.plan.batches import BatchPlan, Plan
from fastsimsiam.storage.base import Storage
from fastsimsiam.system.resources import num_workers


def nvjpeg_loader(storage: Storage, options: LoaderOptions) -> "FrameLoader":
    """A loader that decodes JPEGs on the GPU.

    Raises:
        UserError: there is no GPU, torchcodec cannot decode on it, or a file has no readable header
            and is not to be skipped.
    """
    if options.device.type != "cuda":
        raise UserError("--loader nvjpeg needs a GPU: pass --loader cpu")
    return FrameLoader(storage, options, decode_on_device=True)


class FrameLoader:
    """Copies whole frames to the device, or decodes them there, and cuts the crops there.

    Attributes:
        bad_images: image -> error, for the images that were skipped so far.
    """

    def __init__(self, storage: Storage, options: LoaderOptions, *, decode_on_device: bool) -> None:
        """Starts the threads.

        Args:
            storage: the images.
            options: device, threads, broken images.
            decode_on_device: torchcodec decodes on the device; otherwise CPU threads decode.

        Raises:
            UserError: a file has no readable header and is not to be skipped, or torchcodec cannot
                decode on the device.
        """
        if decode_on_device:
            require_device_decoder(options.device, "--loader nvjpeg")
        self._storage = storage
        self._policy = BadImagePolicy(options.on_bad_image)
        self._policy.require_readable(storage)
        self.bad_images = self._policy.bad_images
        self._device = options.device
        self._decode_on_device = decode_on_device
        self._pool = ThreadPoolExecutor(
            num_workers(options.workers),
            thread_name_prefix="frames",
            initializer=self._enter_thread,
        )

    def _enter_thread(self) -> None:
        # Without a current device, pinning starts a context on the first GPU, in every process.
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)

    def iterate(self, plan: Plan, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """See `loaders.base.Loader`."""
        return ahead(partial(self._batches, plan, epoch, start), self._device)

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown(cancel_futures=True)

    def _batches(self, plan: Plan, epoch: int, start: int) -> Iterator[Batch]:
        pending: deque[tuple[BatchPlan, list[Future[Tensor]]]] = deque()
        steps = iter(range(start, plan.num_batches))
        read = self._encoded if self._decode_on_device else self._decoded
        try:
            while True:
                while len(pending) < BATCHES_AHEAD and (step := next(steps, None)) is not None:
                    batch = plan.batch(epoch, step)
                    pending.append((batch, self._submit(plan, batch, read)))
                if not pending:
                    return
                batch, futures = pending.popleft()
                frames = self._on_device([future.result() for future in futures])
                if frames is None:
                    futures = self._submit(plan, batch, self._decoded)
                    frames = self._on_device([future.result() for future in futures])
                assert frames is not None
                yield self._cut(plan, batch, frames)
        finally:
            for _, futures in pending:
                for future in futures:
                    future.cancel()

    def _submit(
        self, plan: Plan, batch: BatchPlan, read: Callable[[int], Tensor]
    ) -> list[Future[Tensor]]:
        def read_row(row: int) -> Tensor:
            return self._policy.run(plan, batch, row, read, self._storage.name)

        return [self._pool.submit(read_row, row) for row in range(len(batch.index))]

    def _encoded(self, index: int) -> Tensor:
        """The bytes (N,) of a sample that the device can decode, or else its pixels (H, W, 3)."""
        data = self._storage.read(index)
        if is_plain_jpeg(self._storage, index, data):
            jpeg = np.array(data)
            hide_exif(jpeg.data)
            return torch.from_numpy(jpeg)
        return self._decoded(index)

    def _decoded(self, index: int) -> Tensor:
        """The pixels (H, W, 3) of a sample, in new memory.

        Raises:
            BadImageError: the image is broken.
        """
        pixels = read_rgb(self._storage, index)
        pin = self._device.type == "cuda"
        frame = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=pin)
        np.copyto(frame.numpy(), pixels)
        return frame

    def _on_device(self, rows: list[Tensor]) -> list[Tensor] | None:
        """Frames (H, W, 3) on the device; None if one of the files cannot be decoded there."""
        encoded = [position for position, row in enumerate(rows) if row.ndim == 1]
        frames = [row if row.ndim == 1 else row.to(self._device, non_blocking=True) for row in rows]
        if encoded:
            try:
                decoded = decode_jpegs([rows[position] for position in encoded], self._device)
            except RuntimeError:
                return None  # the error does not say which file
            for position, frame in zip(encoded, decoded, strict=True):
                frames[position] = frame
        return frames

    def _cut(self, plan: Plan, batch: BatchPlan, frames: list[Tensor]) -> Batch:
        count = np.array([frame.shape[0] * frame.shape[1] for frame in frames], np.int64)
        offset = send(np.cumsum(count) - count, self._device)
        width = send(np.array([frame.shape[1] for frame in frames], np.int64), self._device)
        pixels = torch.cat([frame.reshape(-1, 3) for frame in frames])
        crops = crop_views(pixels, offset, width, batch.views.box, plan.view_sizes)
        return assemble_on(self._device, batch, crops)
