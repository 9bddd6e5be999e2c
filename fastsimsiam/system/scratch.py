"""Memory of a thread for one image at a time: fresh memory costs a page fault for every 4 kB."""

import threading

import numpy as np
import numpy.typing as npt

_thread = threading.local()


def scratch(use: str, size: int) -> npt.NDArray[np.uint8]:
    """At least `size` bytes of this thread's own; the next call for the same `use` gives them anew."""
    block: npt.NDArray[np.uint8] | None = getattr(_thread, use, None)
    if block is None or block.size < size:
        # With room to spare: sizes that grow little by little would allocate again and again.
        block = np.empty(size + size // 4, dtype=np.uint8)
        setattr(_thread, use, block)
    return block
