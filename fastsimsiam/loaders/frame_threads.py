"""Whole frames read by threads, and decoded by them or on the GPU: loader `nvjpeg`.

Only JPEGs in YCbCr or gray that are upright and complete are decoded on the GPU, if libjpeg-turbo
neither refuses them nor warns of them, see first_use.py; all other images, and those that nvJPEG
refuses, are decoded on the CPU. With `check_images` off, libjpeg-turbo decodes nothing else: then
damage inside a JPEG's data goes unnoticed, and the crop shows nvJPEG's guess.
"""

from collections import deque
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager

import numpy as np
import torch
from torch import Tensor

from fastsimsiam.errors import UserError
from fastsimsiam.loaders.bad_images import BadImagePolicy
from fastsimsiam.loaders.base import BATCHES_AHEAD, LoaderOptions
from fastsimsiam.loaders.device_decode import decode_jpegs, require_device_decoder
from fastsimsiam.loaders.first_use import FirstUse
from fastsimsiam.loaders.frame_loader import FrameLoader, Frames
from fastsimsiam.loaders.jpeg_header import hide_exif
from fastsimsiam.loaders.row_threads import PendingBatch, RowThreads
from fastsimsiam.plan.batches import BatchPlan, Plan
from fastsimsiam.storage.base import Storage
from fastsimsiam.system.resources import num_workers


def nvjpeg_loader(storage: Storage, options: LoaderOptions) -> FrameLoader:
    """A loader that decodes JPEGs on the GPU.

    Raises:
        UserError: there is no GPU, torchcodec cannot decode on it, or a file has no readable header
            and is not to be skipped.
    """
    if options.device.type != "cuda":
        raise UserError("--loader nvjpeg needs a GPU: pass --loader cpu")
    return FrameLoader(FrameThreads(storage, options, decode_on_device=True), options.device)


class FrameThreads:
    """Copies whole frames to the device, or decodes them there.

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
        self._read = self._encoded if decode_on_device else self._decoded
        self._rows: RowThreads[Tensor] = RowThreads(
            policy, storage.name, num_workers(options.workers), self._enter_thread
        )

    def _enter_thread(self) -> None:
        # Without a current device, pinning starts a context on the first GPU, in every process.
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)

    @contextmanager
    def frames(self, plan: Plan, epoch: int, start: int) -> Iterator[Iterator[Frames]]:
        """See `frame_loader.FrameSource`."""
        with closing(self._in_order(plan, epoch, start)) as frames:
            yield frames

    def close(self) -> None:
        """Ends the threads, after the images that are being read."""
        self._rows.close()

    def _in_order(self, plan: Plan, epoch: int, start: int) -> Generator[Frames, None, None]:
        pending: deque[PendingBatch[Tensor]] = deque()
        steps = iter(range(start, plan.num_batches))
        try:
            while True:
                while len(pending) < BATCHES_AHEAD and (step := next(steps, None)) is not None:
                    pending.append(self._rows.submit(plan, plan.batch(epoch, step), self._read))
                if not pending:
                    return
                images = pending[0].results()
                batch = pending.popleft().batch
                yield _joined(batch, self._frames(plan, batch, images))
        finally:
            for lost in pending:
                lost.abandon()

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
                rows[row] = self._policy.run(plan, batch, row, self._read, self._storage.name)

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


def _joined(batch: BatchPlan, frames: list[Tensor]) -> Frames:
    """A batch of frames (H, W, 3)."""
    count = np.array([frame.shape[0] * frame.shape[1] for frame in frames], np.int64)
    return Frames(
        batch=batch,
        pixels=torch.cat([frame.reshape(-1, 3) for frame in frames]),
        offset=np.cumsum(count) - count,
        width=np.array([frame.shape[1] for frame in frames], np.int64),
    )
