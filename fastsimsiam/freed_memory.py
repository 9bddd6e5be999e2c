"""Memory that one step on a CPU has freed stays with the process, for the next one.

GNU's C library gives large blocks back to the system, which then hands out cleared pages one by one:
thousands of page faults a step (`eager-returned-memory` of benchmarks/step.py).
"""

import ctypes
import sys

# Of malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Has this process keep the memory it frees, from now on.

    Returns:
        Whether its C library can: GNU's can, macOS's and musl cannot.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(
        mallopt(option, _LARGEST) == 1 for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD)
    )
