"""A text file that grows by whole lines, also where the disk is full for a while."""

import os
from pathlib import Path


class LineFile:
    """A file to which lines are added; those that cannot be written wait for the next attempt.

    Attributes:
        waiting: number of lines that could not be written yet.
    """

    def __init__(self, path: Path, *, resumed: bool) -> None:
        """Opens the file, and empties it unless a run is resumed; raises OSError."""
        self._path = path
        self._lines: list[bytes] = []
        self._file = self._open(0 if resumed else os.O_TRUNC)
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            self._lines.append(b"\n")  # what a crash has cut short is a line of its own

    def _open(self, flags: int) -> int:
        return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | flags, 0o666)

    @property
    def waiting(self) -> int:
        """Number of lines that could not be written yet."""
        return len(self._lines)

    def write(self, line: str) -> None:
        """Adds a line, and those that have waited.

        Raises:
            OSError: they wait; the file has no half a line. Or the file was removed, and is made again.
        """
        self._lines.append(line.encode(errors="backslashreplace") + b"\n")
        gone = not os.fstat(self._file).st_nlink
        if gone:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            os.close(self._file)
            self._file = self._open(0)
        self.flush()
        if gone:
            raise FileNotFoundError(None, "it was removed and goes on as a new file")

    def flush(self) -> None:
        """Writes the lines that have waited; raises OSError."""
        end = os.fstat(self._file).st_size
        left = memoryview(b"".join(self._lines))
        try:
            while left:
                left = left[os.write(self._file, left) :]
        except OSError:
            os.ftruncate(self._file, end)
            raise
        self._lines.clear()

    def close(self) -> None:
        """Closes the file after a last attempt; raises OSError."""
        try:
            self.flush()
        finally:
            os.close(self._file)
