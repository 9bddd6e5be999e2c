"""Reused memory of a thread, for one image at a time: fresh memory costs a page fault per 4 KiB."""

import threading

import numpy as np
import numpy.typing as npt

_thread = threading.local()


def scratch(use: str, size: int) -> npt.NDArray[np.uint8]:
    """At least `size` bytes of this thread; its next call with the same `use` returns them again."""
    block: npt.NDArray[np.uint8] | None = getattr(_thread, use, None)
    if block is None or block.size < size:
        # A quarter more than needed, or sizes that grow slowly would allocate each time.
        block = np.empty(size + size // 4, dtype=np.uint8)
        setattr(_thread, use, block)
    return block
