"""Whether freed memory stays with the process or returns to the system (GNU's malloc).

By default the C library returns part of the large blocks. The system then hands out zeroed pages one
by one: thousands of page faults per step on a CPU (`eager-returned-memory` of
benchmarks/regimes/step.py).
"""

import ctypes
import sys

# From malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_MMAP_MAX = -4
_NEVER = -1
_RETURNED_FROM_BYTES = 4 << 20

_kept = False


def keep_freed_memory() -> bool:
    """Keeps the memory that the main thread frees with the process, from now on: for steps on a CPU.

    The process then holds its peak memory, and fragmented: with ResNet-50 at 224 pixels 6 % more for a
    step, 60 % more for features without gradients (benchmarks/LOG.md).

    Returns:
        Whether the C library supports this: GNU's does, macOS's and musl do not.
    """
    global _kept
    # Not by the threshold for mapped blocks: older versions refuse one above 32 MiB.
    _kept = _set(_M_MMAP_MAX, 0) and _set(_M_TRIM_THRESHOLD, _NEVER)
    return _kept


def return_large_blocks() -> None:
    """Returns freed blocks of 4 MiB and more to the system: DALI's frames fragment the heap otherwise.

    By default each larger block raises the library's threshold, up to 32 MiB, and frames of all sizes
    share heaps that fragment: 709 MiB, 802, 833 in epochs of 1,000 photographs decoded by DALI; with a
    fixed threshold 559, 560, 563 (benchmarks/LOG.md). Does nothing after `keep_freed_memory`.
    """
    if not _kept:
        _set(_M_MMAP_THRESHOLD, _RETURNED_FROM_BYTES)


def _set(option: int, value: int) -> bool:
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(option, value) == 1
