"""Whether memory that was freed stays with the process or goes back to the system.

GNU's C library by itself gives large blocks back, in part. The system then hands out cleared pages, one
by one: thousands of page faults in each step on a CPU (`eager-returned-memory` of
benchmarks/regimes/step.py).
"""

import ctypes
import sys

# Of malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_MMAP_MAX = -4
_NEVER = -1
_RETURNED_FROM_BYTES = 4 << 20

_kept = False


def keep_freed_memory() -> bool:
    """Has this process keep what its main thread frees, from now on: for steps on a CPU.

    It then has the peak of all that it does, and in pieces: with ResNet-50 at 224 pixels 6 % more for a
    step, 60 % more for features without gradients (benchmarks/LOG.md).

    Returns:
        Whether its C library can: GNU's can, macOS's and musl cannot.
    """
    global _kept
    # Not a threshold for mapping blocks: older versions refuse one above 32 MiB.
    _kept = _set(_M_MMAP_MAX, 0) and _set(_M_TRIM_THRESHOLD, _NEVER)
    return _kept


def return_large_blocks() -> None:
    """Has every large block go back, unless freed memory is to be kept: for frames of all sizes.

    By itself the library raises the size from which it does so with each larger block, up to 32 MiB,
    and frames of all sizes then share heaps that fragment: 709 MiB, 802, 833 in epochs of 1,000
    photographs that DALI decodes; with a size that stays 559, 560, 563 (benchmarks/LOG.md).
    """
    if not _kept:
        _set(_M_MMAP_THRESHOLD, _RETURNED_FROM_BYTES)


def _set(option: int, value: int) -> bool:
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(option, value) == 1
