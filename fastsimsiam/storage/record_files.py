"""Many files of records, of which the system allows only some to be open at a time."""

import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastsimsiam.errors import UserError
from fastsimsiam.storage.record_file import RecordFile
from fastsimsiam.system.text import printable

_MOST_OPEN = 512
_SHARE_OF_LIMIT = 4
"""A quarter of the descriptors that the process may have."""


@dataclass(frozen=True)
class FileStamp:
    """What tells whether a file has changed: its path, bytes, and modification time in ns."""

    path: Path
    size: int
    mtime: int

    @classmethod
    def of(cls, path: Path) -> "FileStamp":
        """The stamp of a file as it is now; raises the system's OSError."""
        status = os.stat(path)
        return cls(path, status.st_size, status.st_mtime_ns)


class RecordFiles:
    """Files that are opened when they are read and closed when others are; for many threads.

    Attributes:
        stamps: S files, as they were when their index was made.
    """

    def __init__(self, stamps: Sequence[FileStamp]) -> None:
        """Opens nothing."""
        self.stamps = stamps
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        most = limit // _SHARE_OF_LIMIT if limit != resource.RLIM_INFINITY else _MOST_OPEN
        self._most = max(2, min(_MOST_OPEN, most))
        self._open: OrderedDict[int, RecordFile] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Number of files."""
        return len(self.stamps)

    def __getitem__(self, number: int) -> RecordFile:
        """A file, open as long as somebody holds it.

        Raises:
            UserError: the file cannot be opened, or has changed since its index was made.
        """
        with self._lock:
            file = self._open.get(number)
            if file is not None:
                self._open.move_to_end(number)
                return file
        file = self._opened(self.stamps[number])
        with self._lock:
            self._open[number] = file
            # A thread that reads one of them keeps it open until it is done.
            while len(self._open) > self._most:
                self._open.popitem(last=False)
        return file

    def __getstate__(self) -> Sequence[FileStamp]:
        """The stamps: another process opens the files itself."""
        return self.stamps

    def __setstate__(self, state: Sequence[FileStamp]) -> None:
        """Files of these stamps."""
        self.__init__(state)  # type: ignore[misc]

    @staticmethod
    def _opened(stamp: FileStamp) -> RecordFile:
        name = printable(stamp.path)
        try:
            file = RecordFile(stamp.path)
        except FileNotFoundError as error:
            raise UserError(f"{name} was removed since it was opened: put it back") from error
        if (file.size, os.fstat(file.descriptor).st_mtime_ns) != (stamp.size, stamp.mtime):
            raise UserError(f"{name} was changed since it was opened: start the command again")
        return file
