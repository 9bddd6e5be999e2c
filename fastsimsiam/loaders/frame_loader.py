"""Crops cut on the GPU from whole frames: loader `nvjpeg`, and `cpu` with `--cpu.crops device`.

For machines with few CPU cores per GPU. `nvjpeg` decodes on the GPU; otherwise CPU threads decode, and
frames are copied to the GPU. Only JPEGs in YCbCr or gray that are upright and complete are decoded on
the GPU, if libjpeg-turbo neither refuses them nor warns of them, see first_use.py; all other images,
and those that nvJPEG refuses, are decoded on the CPU. With `check_images` off, libjpeg-turbo decodes
nothing else: then damage inside a JPEG's data goes unnoticed, and the crop shows nvJPEG's guess.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fastsimsiam.errors import UserError
from fastsimsiam.loaders.bad_images import BadImagePolicy
from fastsimsiam.loaders.base import BATCHES_AHEAD, Batch, LoaderOptions, assemble_on, view_groups
from fastsimsiam.loaders.device_crop import crop_views
from fastsimsiam.loaders.device_decode import decode_jpegs, require_device_decoder
from fastsimsiam.loaders.first_use import FirstUse
from fastsimsiam.loaders.jpeg_header import hide_exif
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
        bad_images, warned_images: see `loaders.base.Loader`.
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
        self._policy = policy = BadImagePolicy(options.on_bad_image, options.gray16_max)
        policy.require_readable(storage)
        self.bad_images, self.warned_images = policy.bad_images, policy.warned_images
        self._first_use = FirstUse(storage, policy, check=options.check_images)
        self._device = options.device
        self._decode_on_device = decode_on_device
        self._workers = num_workers(options.workers)
        self._closed = False
        self._pool = ThreadPoolExecutor(
            self._workers, thread_name_prefix="frames", initializer=self._enter_thread
        )

    def _enter_thread(self) -> None:
        # Without a current device, pinning starts a context on the first GPU, in every process.
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)

    def iterate(self, plan: Plan, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """See `loaders.base.Loader`."""
        return ahead(partial(self._batches, plan, epoch, start), self._device)

    def close(self) -> None:
        """Ends the threads, after the images that are being read."""
        self._closed = True
        self._pool.shutdown(cancel_futures=True)

    def _batches(self, plan: Plan, epoch: int, start: int) -> Iterator[Batch]:
        pending: deque[_PendingBatch] = deque()
        steps = iter(range(start, plan.num_batches))
        try:
            while True:
                while len(pending) < BATCHES_AHEAD and (step := next(steps, None)) is not None:
                    pending.append(self._submit(plan, plan.batch(epoch, step)))
                if not pending:
                    return
                current = pending[0]
                for future in current.futures:
                    future.result()
                pending.popleft()
                frames = self._frames(plan, current.batch, current.in_order())
                yield self._cut(plan, current.batch, frames)
        finally:
            for lost in pending:
                lost.abandon()

    def _submit(self, plan: Plan, batch: BatchPlan) -> "_PendingBatch":
        # Threads take rows from one iterator (its `next` is atomic), with one task per thread: a task
        # per image would cost the lock of all threads 50 us.
        rows = iter(range(len(batch.index)))
        images: dict[int, Tensor] = {}
        futures = [
            self._pool.submit(self._read_rows, plan, batch, rows, images)
            for _ in range(min(self._workers, len(batch.index)))
        ]
        return _PendingBatch(batch=batch, images=images, rows=rows, futures=futures)

    def _read_rows(
        self, plan: Plan, batch: BatchPlan, rows: Iterator[int], images: dict[int, Tensor]
    ) -> None:
        try:
            for row in rows:
                if self._closed:  # whoever iterates may be held by an exception for a while
                    break
                images[row] = self._read(plan, batch, row)
        except BaseException:
            deque(rows, maxlen=0)  # the batch is lost: stops the other threads
            raise

    def _read(self, plan: Plan, batch: BatchPlan, row: int) -> Tensor:
        read = self._encoded if self._decode_on_device else self._decoded
        return self._policy.run(plan, batch, row, read, self._storage.name)

    def _encoded(self, index: int) -> Tensor:
        """The bytes (N,) of a sample that the device can decode, or else its pixels (H, W, 3)."""
        jpeg = np.array(self._storage.read(index))
        if self._first_use.is_left_to_it(index, jpeg.data):
            hide_exif(jpeg.data)
            return torch.from_numpy(jpeg)
        return self._decoded(index)

    def _decoded(self, index: int) -> Tensor:
        """The pixels (H, W, 3) of a sample, in new memory.

        Raises:
            BadImageError: the image is broken.
        """
        pixels = self._policy.read_rgb(self._storage, index)
        pin = self._device.type == "cuda"
        frame = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=pin)
        np.copyto(frame.numpy(), pixels)
        return frame

    def _frames(self, plan: Plan, batch: BatchPlan, rows: list[Tensor]) -> list[Tensor]:
        """Frames (H, W, 3) on the device; what the device refuses is decoded on the CPU."""
        while True:
            try:
                return self._on_device(rows)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                # The error does not say which file: each is given to the decoder alone.
                refused = [row for row, image in enumerate(rows) if self._is_refused(image)]
                if not refused:
                    reason = next(iter(str(error).splitlines()), "no reason given")
                    raise UserError(
                        f"the GPU cannot decode a batch ({reason}): pass --loader cpu"
                    ) from error
            for row in refused:
                self._first_use.take_back(int(batch.index[row]))
                rows[row] = self._read(plan, batch, row)

    def _is_refused(self, image: Tensor) -> bool:
        if image.ndim != 1:
            return False
        try:
            decode_jpegs([image], self._device)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            return True
        return False

    def _on_device(self, rows: list[Tensor]) -> list[Tensor]:
        """Frames (H, W, 3) on the device; raises RuntimeError if it cannot decode one of the files."""
        encoded = [position for position, row in enumerate(rows) if row.ndim == 1]
        frames = [row if row.ndim == 1 else row.to(self._device, non_blocking=True) for row in rows]
        if encoded:
            decoded = decode_jpegs([rows[position] for position in encoded], self._device)
            for position, frame in zip(encoded, decoded, strict=True):
                frames[position] = frame
        return frames

    def _cut(self, plan: Plan, batch: BatchPlan, frames: list[Tensor]) -> Batch:
        count = np.array([frame.shape[0] * frame.shape[1] for frame in frames], np.int64)
        width = np.array([frame.shape[1] for frame in frames], np.int64)
        pixels = torch.cat([frame.reshape(-1, 3) for frame in frames])
        crops = crop_views(
            pixels, np.cumsum(count) - count, width, batch.views.box, view_groups(plan)
        )
        return assemble_on(self._device, batch, crops)


@dataclass(frozen=True, kw_only=True)
class _PendingBatch:
    """A batch whose images (by row) are being read, or whose tasks wait for a thread."""

    batch: BatchPlan
    images: dict[int, Tensor]
    rows: Iterator[int]
    futures: list[Future[None]]

    def in_order(self) -> list[Tensor]:
        """All images, once the tasks are done."""
        return [self.images[row] for row in range(len(self.batch.index))]

    def abandon(self) -> None:
        """Stops the work after the images that are being read."""
        deque(self.rows, maxlen=0)
        for future in self.futures:
            future.cancel()
