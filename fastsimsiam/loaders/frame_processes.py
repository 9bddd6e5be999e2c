"""Whole frames decoded in processes, which leave the interpreter lock to the training step.

The frames of a batch lie in a slot one after the other, in the order in which they were decoded. A slot
is as large as nearly all batches of the data set are; what does not fit comes through the pipe.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastsimsiam.loaders.bad_images import BadImagePolicy
from fastsimsiam.loaders.base import LoaderOptions
from fastsimsiam.loaders.decode import Pixels
from fastsimsiam.loaders.frame_loader import Frames
from fastsimsiam.loaders.row_threads import RowThreads
from fastsimsiam.loaders.slot_processes import Fill, Made, SlotProcesses
from fastsimsiam.loaders.slots import SLOTS, Filled
from fastsimsiam.plan.batches import BatchPlan, Plan
from fastsimsiam.storage.base import Storage
from fastsimsiam.system.resources import available_memory

_DEVIATIONS = 4
"""Standard deviations of a batch's size by which a slot is larger than the mean."""
_SHARE = 0.25
"""Of the memory that no program uses, for all slots together."""
_LOOKED_AT = 100_000
"""Images whose sizes are looked at: of a hundred million, all would take a second."""
_Place = tuple[int | Pixels, int]


@dataclass(frozen=True, kw_only=True)
class _Placed:
    """Where the frames of a batch are.

    Attributes:
        used: pixels in the slot.
        rest: (P, 3) pixels of the frames that did not fit, which follow those of the slot.
        offset, width: see `Frames`.
    """

    used: int
    rest: npt.NDArray[np.uint8]
    offset: npt.NDArray[np.int64]
    width: npt.NDArray[np.int64]


class FrameProcesses:
    """Decodes in processes, with some threads in each.

    Attributes:
        bad_images, warned_images: see `loaders.base.Loader`.
    """

    def __init__(self, storage: Storage, options: LoaderOptions, processes: int) -> None:
        """Prepares for use; processes start with each epoch.

        Args:
            storage: the images.
            options: device, threads of all processes together, broken images.
            processes: number of processes.

        Raises:
            UserError: a file has no readable header and is not to be skipped.
        """
        self._storage, self._device = storage, options.device
        self._processes = SlotProcesses(storage, options, processes, self._start_threads)
        self.bad_images = self._processes.bad_images
        self.warned_images = self._processes.warned_images
        self._slot_sizes: dict[int, int] = {}

    @contextmanager
    def frames(self, plan: Plan, epoch: int, start: int) -> Iterator[Iterator[Frames]]:
        """See `frame_loader.FrameSource`."""
        # The first batch is the largest.
        images = len(plan.index(epoch, start)) if start < plan.num_batches else 0
        if images not in self._slot_sizes:  # once: later there is less memory that is free
            room = int(_SHARE * available_memory()) // (SLOTS * self._processes.count)
            self._slot_sizes[images] = min(batch_bytes(self._storage.sizes, images), room)
        with self._processes.run(plan, epoch, start, self._slot_sizes[images]) as batches:
            yield self._sent(batches)

    def close(self) -> None:
        """Frees the memory; processes end with each epoch."""
        self._processes.close()

    def _start_threads(self, policy: BadImagePolicy, threads: int) -> Fill[_Placed]:
        storage = self._storage
        rows: RowThreads[_Place] = RowThreads(policy, storage.name, threads)

        def fill(plan: Plan, batch: BatchPlan, memory: Tensor) -> _Placed:
            space = _Space(memory)
            reading = rows.submit(
                plan, batch, lambda index: space.place(policy.read_rgb(storage, index))
            )
            return space.placed(reading.results())

        return fill

    def _sent(self, batches: Iterator[tuple[Made[_Placed], Filled]]) -> Iterator[Frames]:
        for made, slot in batches:
            placed = made.content
            assert placed is not None
            (pixels,) = slot.send([slot.memory[: 3 * placed.used].view(placed.used, 3)])
            if len(placed.rest):
                rest = torch.from_numpy(placed.rest)
                if self._device.type == "cuda":
                    rest = rest.pin_memory().to(self._device, non_blocking=True)
                pixels = torch.cat([pixels, rest])
            yield Frames(batch=made.batch, pixels=pixels, offset=placed.offset, width=placed.width)


def batch_bytes(sizes: npt.NDArray[np.int32], images: int) -> int:
    """Bytes of decoded pixels that hardly any batch exceeds.

    Args:
        sizes: (N, 2) height and width of all images.
        images: images in a batch.
    """
    pixels = sizes[:: max(1, len(sizes) // _LOOKED_AT)].astype(np.float64).prod(axis=1)
    if not len(pixels):
        return 0
    most = images * pixels.mean() + _DEVIATIONS * np.sqrt(images) * pixels.std()
    return 3 * int(min(most, images * pixels.max()) + 1)


class _Space:
    """The room in a slot, of which each thread takes what its next frame needs."""

    def __init__(self, memory: Tensor) -> None:
        self._pixels = memory[: len(memory) // 3 * 3].view(-1, 3).numpy()
        self._used = 0
        self._lock = threading.Lock()

    def place(self, frame: Pixels) -> _Place:
        """Copies a frame (H, W, 3) to the slot; a broken image takes no room, since it has no frame.

        Returns:
            Position of its first pixel, and its width; the pixels in place of the position if there
            is no room for them.
        """
        height, width = frame.shape[:2]
        with self._lock:
            first = self._used
            end = first + height * width
            if end > len(self._pixels):
                return frame.copy(), width
            self._used = end
        np.copyto(self._pixels[first:end].reshape(frame.shape), frame)
        return first, width

    def placed(self, places: list[_Place]) -> _Placed:
        """The batch, from the places of its frames in order."""
        offset, rest, end = [], [], self._used
        for first, _ in places:
            if isinstance(first, int):
                offset.append(first)
            else:
                offset.append(end)
                rest.append(first.reshape(-1, 3))
                end += len(rest[-1])
        return _Placed(
            used=self._used,
            rest=np.concatenate(rest) if rest else np.empty((0, 3), np.uint8),
            offset=np.array(offset, np.int64),
            width=np.array([width for _, width in places], np.int64),
        )
