"""Memory in which a process of a loader leaves its batches, and from where they go to the device.

It is mapped before the process is forked: it needs no room in /dev/shm, which is small in containers.
For a GPU it is pinned here, so that the GPU copies from it without this process: at 4,900 images/s
crops are 1.5 GB/s, and whole frames twice as much. A slot is then free once the GPU has its content.
"""

import mmap
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any, Protocol

import torch
from torch import Tensor

from fastsimsiam.loaders.prefetch import side_stream
from fastsimsiam.system.buffers import BufferPool
from fastsimsiam.system.pinned import pin, shared_memory, unpin

SLOTS = 2
"""Batches that a process makes before the first of them is taken."""
_BUFFER_SIZES = 16
"""Different sizes of the buffers to which slots are copied."""


class Event(Protocol):
    """The part of `torch.cuda.Event` that is used here."""

    def query(self) -> bool: ...  # noqa: D102
    def synchronize(self) -> None: ...  # noqa: D102


class Slots:
    """The slots of one process, which are filled, sent and freed in turn.

    Attributes:
        size: bytes of each slot.
        memory: the bytes (size,) of each slot.
    """

    def __init__(self, size: int, device: torch.device, buffers: BufferPool) -> None:
        """Maps the memory; the system gives pages to it when they are written.

        Args:
            size: bytes that each slot has to hold.
            device: where the batches go.
            buffers: host memory for batches of `device`.
        """
        self._device, self._buffers = device, buffers
        self._mappings: list[mmap.mmap] = []
        self.memory: list[Tensor] = []
        for _ in range(SLOTS):
            mapping, memory = shared_memory(size)
            self._mappings.append(mapping)
            self.memory.append(memory)
        self.size = self.memory[0].nbytes
        self._pinned: list[bool | None] = [None] * SLOTS  # None: not tried yet
        self._copies: deque[Event] = (
            deque()
        )  # of the slots that are being copied from, oldest first
        self.restart()

    def restart(self) -> None:
        """Frees all slots for new processes: an iteration that was left early has not freed them."""
        self._wait(left=0)
        self._free: Any = get_context("fork").Semaphore(SLOTS)

    def acquire(self, parent: int) -> None:
        """Waits, in the process that fills the slots, for the next one to be free.

        Args:
            parent: the process that frees them; where it has died, this one ends.
        """
        while not self._free.acquire(timeout=1.0):
            if os.getppid() != parent:
                os._exit(0)  # nobody is left to take a batch

    def poll(self) -> None:
        """Frees the slots whose content the GPU has by now."""
        while self._copies and self._copies[0].query():
            self._copies.popleft()
            self._free.release()

    def require_one(self) -> None:
        """Sees to it that the process has a slot that is free or filled: a batch of it will come."""
        self._wait(left=SLOTS - 1)

    def free_after(self, copied: Event) -> None:
        """Frees the slot that is next in turn, by `poll`, once the GPU has copied its content."""
        self._copies.append(copied)

    def send(self, slot: int, parts: Sequence[Tensor]) -> list[Tensor]:
        """Copies parts of a slot to the device, and frees the slot.

        For a GPU the copies are made on the side stream, and may still be under way. On a CPU they are
        in memory of their own, so that a batch stays as it is for as long as it is held.

        Args:
            slot: number of the slot.
            parts: tensors in its memory.
        """
        if self._device.type != "cuda":
            return self._copied(parts)
        # The stream's device is current within, for what pins memory.
        with torch.cuda.stream(side_stream(self._device)):
            if not self._is_pinned(slot):
                parts = self._copied(parts)
                return [part.to(self._device, non_blocking=True) for part in parts]
            on_device = [part.to(self._device, non_blocking=True) for part in parts]
            copied: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()
            self.free_after(copied)
            return on_device

    def close(self) -> None:
        """Gives back the memory; the processes have ended."""
        self._wait(left=0)
        for memory, pinned in zip(self.memory, self._pinned, strict=True):
            if pinned:
                unpin(memory, self._device)
        self._pinned = [False] * SLOTS
        self.memory, self._mappings = [], []

    def _wait(self, left: int) -> None:
        while len(self._copies) > left:
            self._copies.popleft().synchronize()
            self._free.release()

    def _copied(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Copies in host memory, after which the slot is free."""
        total = sum(part.nbytes for part in parts)
        # Buffers of few sizes, so that they can be used again: each batch of frames has another size.
        step = self.size // _BUFFER_SIZES
        buffer = self._buffers.take((-(-total // step) * step,))
        copies, first = [], 0
        for part in parts:
            copies.append(buffer[first : first + part.nbytes].view(part.shape).copy_(part))
            first += part.nbytes
        self._free.release()
        return copies

    def _is_pinned(self, slot: int) -> bool:
        """Pins a slot at its first use, when the process has written it: that takes some time."""
        pinned = self._pinned[slot]
        if pinned is None:
            pinned = pin(self._mappings[slot], self.memory[slot], self._device)
            self._pinned[slot] = pinned
        return pinned


@dataclass(frozen=True, kw_only=True)
class Filled:
    """A slot with a batch in it.

    Attributes:
        slots: the slots of the process that has made the batch.
        number: number of the slot among them.
    """

    slots: Slots
    number: int

    @property
    def memory(self) -> Tensor:
        """The bytes (N,) of the slot."""
        return self.slots.memory[self.number]

    def send(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """See `Slots.send`."""
        return self.slots.send(self.number, parts)
