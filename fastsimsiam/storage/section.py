"""A part of a record file as a file of its own, for libraries that read files."""

import io
from typing import BinaryIO, cast

from fastsimsiam.storage.record_file import RecordFile

_BUFFER = 1 << 13


class _Section(io.RawIOBase):
    """Bytes `start` to `start + length` of a file."""

    def __init__(self, file: RecordFile, start: int, length: int) -> None:
        self._file = file
        self._start = start
        self._length = length
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise ValueError(f"negative position {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: "memoryview") -> int:  # type: ignore[override]
        count = max(0, min(len(buffer), self._length - self._position))
        if count:
            try:
                content = self._file.read_new(self._start + self._position, count)
            except EOFError:  # the file itself is shorter: the end, as for any file
                return 0
            buffer[:count] = content
            self._position += count
        return count


def section(file: RecordFile, start: int = 0, length: int | None = None) -> BinaryIO:
    """A part of an open file.

    Args:
        file: the file.
        start: first byte.
        length: bytes; None: to the file's end.
    """
    length = file.size - start if length is None else length
    return cast(BinaryIO, io.BufferedReader(_Section(file, start, length), _BUFFER))
