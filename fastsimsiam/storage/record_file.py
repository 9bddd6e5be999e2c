"""A file that stays open and is read at any position, from any thread.

It is not mapped: a mapped file that is cut off in mid-run ends the process by a signal, without a word.
One descriptor sees the same file for the whole run, also where another one is renamed to its name.
"""

import errno
import os
import stat
import weakref
from pathlib import Path

from fastsimsiam.errors import BadImageError, UserError
from fastsimsiam.storage.read_ahead import advise
from fastsimsiam.storage.system_errors import why_not_read
from fastsimsiam.system.scratch import scratch

_State = tuple[Path, tuple[int, int, int]]


class RecordFile:
    """A regular file, open for reading. A copy in another process opens the same file again.

    Attributes:
        path: the file's name when it was opened.
        descriptor: the system's number of the open file; closed when this object is gone.
        size: bytes of the file when it was opened.
    """

    def __init__(self, path: Path) -> None:
        """Opens a file.

        Raises:
            FileNotFoundError: there is no such file.
            UserError: it is no regular file, or the system refuses to open it.
        """
        self._open(path)

    def _open(self, path: Path) -> None:
        self.path = path
        try:
            # Without O_NONBLOCK, opening a named pipe would wait for its writer.
            self.descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise UserError(why_not_read(path, error)) from error
        weakref.finalize(self, os.close, self.descriptor)
        status = os.fstat(self.descriptor)
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no regular file"
            raise UserError(f"{path} is {kind}: give a file")
        self.size = status.st_size
        self._identity = (status.st_dev, status.st_ino, status.st_size)

    def __getstate__(self) -> _State:
        """The name, and what tells the file from another one of its name."""
        return self.path, self._identity

    def __setstate__(self, state: _State) -> None:
        """Opens the file again; raises a UserError if another one has its name now."""
        path, identity = state
        try:
            self._open(path)
        except FileNotFoundError as error:
            raise UserError(f"{path} was removed since it was opened: put it back") from error
        if self._identity != identity:
            raise UserError(f"{path} was replaced since it was opened: start the command again")

    def read(self, start: int, length: int) -> memoryview:
        """Bytes of the file, in memory that this thread's next call overwrites.

        Raises:
            EOFError: the file ends before them.
            OSError: the system cannot read them.
        """
        buffer = scratch("file", length)[:length].data
        self._read_into(buffer, start)
        return buffer

    def read_new(self, start: int, length: int) -> bytearray:
        """Bytes of the file, in new memory; raises as `read` does."""
        content = bytearray(length)
        self._read_into(memoryview(content), start)
        return content

    def will_need(self, start: int, length: int) -> None:
        """Starts reading bytes of the file into the page cache."""
        advise(self.descriptor, start, length)

    def _read_into(self, buffer: memoryview, start: int) -> None:
        done = 0
        while done < len(buffer):  # the system reads 2 GB at most in a call
            count = os.preadv(self.descriptor, [buffer[done:]], start + done)
            if count == 0:
                raise EOFError
            done += count


def why_no_record(name: str, path: Path, length: int, error: MemoryError | OSError) -> UserError:
    """The error for a record that `RecordFile.read` could not read.

    Args:
        name: of the record, printable.
        path: the file.
        length: bytes of the record.
        error: what was raised.

    Returns:
        A BadImageError where the reason may concern this record alone.
    """
    if isinstance(error, MemoryError):
        return BadImageError(f"{name} cannot be read (no memory for {length} bytes)")
    if error.errno == errno.EIO:
        return BadImageError(f"{name} cannot be read ({error.strerror})")
    return UserError(why_not_read(path, error))
