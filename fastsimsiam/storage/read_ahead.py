"""Asks the system to read parts of files into the page cache ahead of use."""

import os
from contextlib import suppress
from pathlib import Path


def read_ahead(file: Path) -> None:
    """Starts reading a file into the page cache; waits only for the file to open.

    Args:
        file: the file; if it cannot be opened, nothing happens.
    """
    if not hasattr(os, "posix_fadvise"):
        return
    with suppress(OSError):
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)  # a named pipe would wait
        try:
            advise(descriptor)
        finally:
            os.close(descriptor)


def advise(descriptor: int, start: int = 0, length: int = 0) -> None:
    """Starts reading a part of an open file into the page cache, if the system can do that.

    Args:
        descriptor: the open file.
        start: position of the first byte.
        length: number of bytes; 0: to the end.
    """
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):  # some file systems do not support this
            os.posix_fadvise(descriptor, start, length, os.POSIX_FADV_WILLNEED)
