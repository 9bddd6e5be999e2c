"""Crops cut on the GPU from whole frames: loader `nvjpeg`, and `cpu` with `--cpu.crops device`.

For machines with few CPU cores per GPU. The frames come from threads (frame_threads.py), which may
leave the decoding to the GPU, or from processes (frame_processes.py).
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastsimsiam.loaders.base import Batch, assemble_on, view_groups
from fastsimsiam.loaders.device_crop import crop_views
from fastsimsiam.loaders.prefetch import ahead
from fastsimsiam.plan.batches import BatchPlan, Plan


@dataclass(frozen=True, kw_only=True)
class Frames:
    """The whole frames of a batch, on the device.

    Attributes:
        batch: the plan of the batch, after replacements.
        pixels: (P, 3) uint8 pixels of all frames, each row by row, in any order of frames.
        offset: (B,) position of the first pixel of each sample's frame.
        width: (B,) width of each sample's frame in pixels.
    """

    batch: BatchPlan
    pixels: Tensor
    offset: npt.NDArray[np.int64]
    width: npt.NDArray[np.int64]


class FrameSource(Protocol):
    """Where frames come from.

    Attributes:
        bad_images, warned_images: see `loaders.base.Loader`.
    """

    bad_images: dict[str, str]
    warned_images: dict[str, str]

    def frames(
        self, plan: Plan, epoch: int, start: int
    ) -> AbstractContextManager[Iterator[Frames]]:
        """Starts what reads the frames of batches `start` to the last of an epoch, and ends it.

        The context is entered and left by the thread that wants batches; the frames are asked for by
        another, whose current stream they are for.
        """

    def close(self) -> None:
        """Ends all workers and frees memory."""


class FrameLoader:
    """Cuts the crops on the device.

    Attributes:
        bad_images, warned_images: see `loaders.base.Loader`.
    """

    def __init__(self, source: FrameSource, device: torch.device) -> None:
        """Takes over `source`, which makes frames on `device`."""
        self._source, self._device = source, device
        self.bad_images, self.warned_images = source.bad_images, source.warned_images

    def iterate(self, plan: Plan, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """See `loaders.base.Loader`."""
        with self._source.frames(plan, epoch, start) as frames:
            yield from ahead(partial(self._batches, plan, frames), self._device)

    def close(self) -> None:
        """Ends the threads or processes, after the images that are being read."""
        self._source.close()

    def _batches(self, plan: Plan, source: Iterator[Frames]) -> Iterator[Batch]:
        groups = view_groups(plan)
        for frames in source:
            box = frames.batch.views.box
            crops = crop_views(frames.pixels, frames.offset, frames.width, box, groups)
            yield assemble_on(self._device, frames.batch, crops)
