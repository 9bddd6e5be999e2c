"""Asking the system to read what is about to be needed."""

import os
from contextlib import suppress
from pathlib import Path


def read_ahead(file: Path, start: int = 0, length: int = 0) -> None:
    """Has the system fetch a part of a file into its page cache; waits for its opening alone.

    Args:
        file: it; one that cannot be opened is left to its reader to report.
        start: position of the first byte.
        length: bytes; 0: to the end.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    with suppress(OSError):  # not every file system can
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(descriptor)
