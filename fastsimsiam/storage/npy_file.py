"""NumPy's files: .npy read row by row, .npz opened."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from fastsimsiam.errors import UserError
from fastsimsiam.storage.record_file import RecordFile
from fastsimsiam.storage.system_errors import why_not_read
from fastsimsiam.system.text import printable

_HEADERS_OF: Mapping[tuple[int, int], Callable[[BinaryIO], Any]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class NpyFile:
    """A .npy file of which single rows are read; not mapped, for the reason in record_file.py.

    Attributes:
        shape, dtype: of the array.
    """

    def __init__(self, path: Path) -> None:
        """Opens a file.

        Raises:
            ValueError: it is no .npy file in C order, or cut off.
            OSError: the system cannot read it.
        """
        self._file = RecordFile(path)
        with open(path, "rb") as handle:
            read = _HEADERS_OF[np.lib.format.read_magic(handle)]
            self.shape, fortran_order, self.dtype = read(handle)
            self._start = handle.tell()
        if fortran_order or not self.shape:
            raise ValueError("it is in Fortran's order" if self.shape else "it is a single number")
        self._row = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        missing = self._start + self._row * self.shape[0] - self._file.size
        if missing > 0:
            raise ValueError(f"{missing} bytes are missing at its end")

    def __getitem__(self, index: int) -> npt.NDArray[Any]:
        """A row, in new memory.

        Raises:
            UserError: the file was cut off, or the system cannot read it.
        """
        try:
            content = self._file.read_new(self._start + int(index) * self._row, self._row)
        except EOFError as error:
            raise UserError(
                f"{printable(self._file.path)} was cut off: restore it and start the command again"
            ) from error
        except OSError as error:
            raise UserError(why_not_read(self._file.path, error)) from error
        return np.frombuffer(content, self.dtype).reshape(self.shape[1:])


def open_npz(file: Path) -> "np.lib.npyio.NpzFile":
    """An open .npz file; raises a ValueError for one of another kind."""
    opened = np.load(file, allow_pickle=False)
    if not isinstance(opened, np.lib.npyio.NpzFile):
        raise ValueError("it holds one array, as .npy does")
    return opened
