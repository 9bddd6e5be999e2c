"""Memory that a GPU copies from by itself while this process goes on: pages that stay where they are.

torch pins memory of its own. Memory that processes share is pinned where it lies.
"""

import mmap
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

PIN = False
"""Whether shared memory is pinned: off until it is measured on a GPU."""
_ALL_CONTEXTS = 1
"""cudaHostRegisterPortable: pinned for every context of this process."""


def shared_memory(size: int) -> tuple[mmap.mmap, Tensor]:
    """New memory that processes forked from now on share; it takes no room in /dev/shm.

    Returns:
        The mapping, and its bytes (N,), whole pages of `size` bytes or more.
    """
    pages = -(-max(1, size) // mmap.PAGESIZE)
    mapping = mmap.mmap(-1, pages * mmap.PAGESIZE)
    return mapping, torch.frombuffer(mapping, dtype=torch.uint8)


def pin(mapping: mmap.mmap, memory: Tensor, device: torch.device) -> bool:
    """Pins memory of `shared_memory` for a GPU; False where the system refuses, or PIN is off."""
    if not PIN:
        return False
    with torch.cuda.device(device):
        cudart: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        if int(cudart.cudaHostRegister(memory.data_ptr(), memory.nbytes, _ALL_CONTEXTS)):
            # CUDA keeps the error for whoever asks next: this kernel, in place of one of the step.
            with suppress(RuntimeError):
                torch.ones(1, device=device)
            return False
    # Processes of the next epoch are to share the memory, too, whatever the driver thinks of it.
    if hasattr(mmap, "MADV_DOFORK"):
        with suppress(OSError):
            mapping.madvise(mmap.MADV_DOFORK)
    return True


def unpin(memory: Tensor, device: torch.device) -> None:
    """Undoes `pin`, before the memory is freed; nothing may be copying from it."""
    with torch.cuda.device(device):
        cudart: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        cudart.cudaHostUnregister(memory.data_ptr())
