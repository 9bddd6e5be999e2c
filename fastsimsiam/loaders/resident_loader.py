"""Loader `resident`: the whole split is decoded once and kept in GPU memory or host memory.

On a GPU a batch is cut by two kernels, which another thread launches ahead of the step; on a CPU
threads crop, as with `cpu`.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastsimsiam.errors import BadImageError, UserError
from fastsimsiam.loaders.bad_images import BadImagePolicy
from fastsimsiam.loaders.base import Batch, Loader, LoaderOptions, assemble_on, view_groups
from fastsimsiam.loaders.decode import Pixels
from fastsimsiam.loaders.device_crop import crop_views
from fastsimsiam.loaders.host_loader import HostLoader
from fastsimsiam.loaders.prefetch import ahead, side_stream
from fastsimsiam.plan.batches import BatchPlan, Plan
from fastsimsiam.storage.base import Report, Storage
from fastsimsiam.system.resources import num_workers


def decoded_bytes(storage: Storage) -> int:
    """Bytes of the decoded images of a split."""
    return int(storage.sizes.astype(np.int64).prod(axis=1).sum()) * 3


@dataclass(frozen=True, kw_only=True)
class Frames:
    """A decoded split in host memory: N frames of P pixels in all.

    Attributes:
        pixels: (P, 3) uint8, all frames concatenated row by row.
        offset: (N + 1,) int64 position of each frame's first pixel, and P.
        sizes: (N, 2) int32 height and width of each frame.
        broken: sample -> error, for broken images.
    """

    pixels: Tensor
    offset: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int32]
    broken: dict[int, str] = field(default_factory=dict)

    def __getitem__(self, index: int) -> Pixels:
        """The frame (H, W, 3) of a sample.

        Raises:
            BadImageError: the image is broken.
        """
        if index in self.broken:
            raise BadImageError(self.broken[index])
        height, width = self.sizes[index].tolist()
        flat = self.pixels[self.offset[index] : self.offset[index + 1]]
        frame: Pixels = flat.view(height, width, 3).numpy()
        return frame


def decode_all(
    storage: Storage, policy: BadImagePolicy, workers: int | None, report: Report | None
) -> Frames:
    """Decodes a whole split on CPU threads.

    Args:
        storage: the images.
        policy: decodes the images; whether a broken image is an error.
        workers: number of threads; None: one per core.
        report: receives the progress.

    Raises:
        BadImageError: an image is broken and is not to be skipped.
        UserError: the decoded images do not fit the host memory.
    """
    count = storage.sizes.astype(np.int64).prod(axis=1)
    offset = np.concatenate([[0], np.cumsum(count)])
    try:
        pixels = torch.empty((int(offset[-1]), 3), dtype=torch.uint8)
    except RuntimeError as error:
        raise _too_large(storage, "memory") from error
    frames = Frames(pixels=pixels, offset=offset, sizes=storage.sizes)

    def decode(index: int) -> None:
        try:
            frame = policy.read_rgb(storage, index)
        except BadImageError as error:
            if not policy.skip:
                raise policy.refuse(error) from error
            frames.broken[index] = str(error)
            return
        np.copyto(frames[index], frame)

    with ThreadPoolExecutor(num_workers(workers)) as pool:
        try:
            for done, _ in enumerate(pool.map(decode, range(len(storage))), start=1):
                if report:
                    report(done, len(storage))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return frames


def _too_large(storage: Storage, where: str) -> UserError:
    gigabytes = decoded_bytes(storage) / 1e9
    return UserError(
        f"{storage.root} takes {gigabytes:.1f} GB decoded and does not fit the {where}: "
        f"pass --loader cpu"
    )


def resident_loader(
    storage: Storage,
    options: LoaderOptions,
    *,
    prefetch: int | None = None,
    report: Report | None = None,
) -> Loader:
    """Decodes a whole split; returns a loader that keeps it in the memory of the device.

    Args:
        storage: the images.
        options: device, threads, broken images.
        prefetch: see `HostLoader`; for a CPU.
        report: receives the progress of decoding.

    Raises:
        BadImageError: an image is broken and is not to be skipped.
        UserError: the decoded split does not fit the memory, or a file has no readable header and is
            not to be skipped.
    """
    policy = BadImagePolicy(options.on_bad_image, options.gray16_max)
    policy.require_readable(storage)
    frames = decode_all(storage, policy, options.workers, report)
    if options.device.type == "cuda":
        try:
            return ResidentLoader(frames, storage, policy, device=options.device)
        except torch.OutOfMemoryError as error:
            raise _too_large(storage, "GPU") from error
    # On a CPU the kernel per image is twelve times as fast as batched products (benchmarks/LOG.md).
    return HostLoader(frames.__getitem__, storage.name, policy, options, prefetch=prefetch)


class ResidentLoader:
    """Cuts crops from frames in the memory of the device.

    Attributes:
        bad_images, warned_images: see `loaders.base.Loader`; warned of are all images of the split.
    """

    def __init__(
        self, frames: Frames, storage: Storage, policy: BadImagePolicy, *, device: torch.device
    ) -> None:
        """Copies the frames to the device; raises torch.OutOfMemoryError if they do not fit."""
        self.bad_images, self.warned_images = policy.bad_images, policy.warned_images
        self._policy = policy
        self._storage = storage
        self._device = device
        self._broken = frames.broken
        self._pixels = frames.pixels.to(device)
        if device.type == "cuda":
            # Cutting goes on there when the loader is closed: only then the memory is free for others.
            self._pixels.record_stream(side_stream(device))
        self._offset = frames.offset[:-1]
        self._width = frames.sizes[:, 1].astype(np.int64)

    def iterate(self, plan: Plan, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """See `loaders.base.Loader`."""
        return ahead(partial(self._batches, plan, epoch, start), self._device)

    def close(self) -> None:
        """Frees the pixels."""
        self._pixels = torch.empty((0, 3), dtype=torch.uint8)

    def _require_whole(self, index: int) -> None:
        if index in self._broken:
            raise BadImageError(self._broken[index])

    def _batches(self, plan: Plan, epoch: int, start: int) -> Iterator[Batch]:
        for step in range(start, plan.num_batches):
            yield self._batch(plan, plan.batch(epoch, step))

    def _batch(self, plan: Plan, batch: BatchPlan) -> Batch:
        if self._broken:
            for row in range(len(batch.index)):
                self._policy.run(plan, batch, row, self._require_whole, self._storage.name)
        offset, width = self._offset[batch.index], self._width[batch.index]
        crops = crop_views(self._pixels, offset, width, batch.views.box, view_groups(plan))
        return assemble_on(self._device, batch, crops)
