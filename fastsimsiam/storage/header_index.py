"""Sizes and orientations from the headers of image files, cached in an index.

Only headers of new and changed files are read again. The index holds what was read, never a failure:
the reason of one may be gone the next time, and a newer library may read what this one refuses.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastsimsiam.errors import BadImageError
from fastsimsiam.storage.base import Report
from fastsimsiam.storage.cached_arrays import cache_file, load_arrays, save_arrays
from fastsimsiam.storage.image_header import read_header
from fastsimsiam.storage.names import Names
from fastsimsiam.storage.system_errors import reason_of

_READ_THREADS = 8
_REPORT_EVERY = 100
_COLUMNS = {"bytes": "<i8", "mtime": "<i8", "height": "<i4", "width": "<i4", "orientation": "|u1"}
_SPARE_ROWS = 1 << 16
"""Rows that an index may have beyond those of the data set, of files that are gone."""
_MEAN_BYTES = 1 << 10
"""Bytes that a row and its path may have on the average."""

ListedFile = tuple[str, int, int]
"""Path relative to the root, bytes, and modification time in ns: tells whether a file has changed."""
_Row = tuple[int, int, int]
"""Height, width and orientation."""


@dataclass(frozen=True)
class _Index:
    """Paths, and bytes, mtime, height, width and orientation of each, (N, 5)."""

    names: Names
    rows: npt.NDArray[np.int64]

    def rows_of(self, names: Names) -> npt.NDArray[np.int64]:
        """The row of each name; zeros for a name that is not there."""
        if names == self.names:
            return self.rows
        number = {name: position for position, name in enumerate(self.names)}
        found = np.array([number.get(name, -1) for name in names], np.int64)
        rows = np.zeros((len(names), len(_COLUMNS)), np.int64)
        rows[found >= 0] = self.rows[found[found >= 0]]
        return rows


class Headers:
    """What was read of N files.

    Attributes:
        rows: (N, 3) height, width and orientation; 0, 0, 1 where the header cannot be read.
        broken: position -> error, of files whose content is at fault.
        out_of_reach: position -> reason, of files that the system does not read now.
    """

    def __init__(self, number: int) -> None:
        """Headers of which none is read."""
        self.rows: npt.NDArray[np.int64] = np.zeros((number, 3), dtype=np.int64)
        self.rows[:, 2] = 1
        self.broken: dict[int, BadImageError] = {}
        self.out_of_reach: dict[int, str] = {}


def read_headers(
    root: Path,
    files: Sequence[ListedFile],
    out_of_reach: Mapping[str, str],
    report: Report | None,
    form: str = "",
) -> Headers:
    """Reads the headers of N files; those of unchanged files come from the index.

    Args:
        root: folder of the files; each root and form has an index.
        files: all image files under `root`.
        out_of_reach: path -> the system's reason, of files that are not to be read.
        report: receives the progress over files that are read.
        form: what the files are listed by; "" for all in the folder.

    Raises:
        UserError: the system cannot read any file now.
    """
    index_file = cache_file(root, form)
    index = _load_index(index_file, len(files))
    headers = Headers(len(files))
    names = Names.of(path for path, _, _ in files)
    stamps = np.array([stamp[1:] for stamp in files], np.int64).reshape(-1, 2)
    rows = index.rows_of(names)
    known = (rows[:, :2] == stamps).all(axis=1) & (rows[:, 2] > 0)
    if out_of_reach:
        for position, (path, _, _) in enumerate(files):
            if path in out_of_reach:
                headers.out_of_reach[position] = out_of_reach[path]
                known[position] = False
    headers.rows[known] = rows[known, 2:]
    changed = [n for n in np.flatnonzero(~known).tolist() if n not in headers.out_of_reach]
    try:
        _read(root, files, changed, headers, report)
    finally:  # what was read is kept, also if the rest could not be
        found = headers.rows[:, 0] > 0
        if found[changed].any() or len(index.names) != np.count_nonzero(found):
            _save_index(index_file, names, stamps, headers.rows, found)
    return headers


def _read(
    root: Path,
    files: Sequence[ListedFile],
    positions: list[int],
    headers: Headers,
    report: Report | None,
) -> None:
    """Reads the headers of the files in these positions."""
    if not positions:
        return
    paths = [root / files[position][0] for position in positions]
    pool = ThreadPoolExecutor(_READ_THREADS)
    try:
        results = pool.map(_header_or_error, paths)
        for done, (position, result) in enumerate(zip(positions, results, strict=True), start=1):
            if isinstance(result, BadImageError):
                headers.broken[position] = result
            elif isinstance(result, OSError):
                headers.out_of_reach[position] = reason_of(paths[done - 1], result)
            else:
                headers.rows[position] = result
            if report and (done % _REPORT_EVERY == 0 or done == len(positions)):
                report(done, len(positions))
    finally:  # a file system that is gone would answer for each of the others as late
        pool.shutdown(cancel_futures=True)


def _header_or_error(path: Path) -> _Row | BadImageError | OSError:
    try:
        return read_header(path)
    except (BadImageError, OSError) as error:
        return error


def _load_index(file: Path | None, number: int) -> _Index:
    """What the index says; nothing if there is no usable index.

    Args:
        file: the index.
        number: files of the data set; an index of many more is not read.
    """
    loaded = load_arrays(file, (number + _SPARE_ROWS) * _MEAN_BYTES)
    try:
        arrays = {} if loaded is None else loaded.arrays
        index = _Index(
            Names.checked(arrays["names"], arrays["ends"]),
            np.stack([arrays[column].astype(np.int64) for column in _COLUMNS], axis=1),
        )
    except (KeyError, ValueError, IndexError):
        return _Index(Names.of(()), np.zeros((0, len(_COLUMNS)), np.int64))
    height, width, orientation = index.rows[:, 2], index.rows[:, 3], index.rows[:, 4]
    sane = (
        len(index.names) == len(index.rows)
        and (np.minimum(height, width) > 0).all()
        and ((orientation >= 1) & (orientation <= 8)).all()
    )
    return index if sane else _Index(Names.of(()), index.rows[:0])


def _save_index(
    file: Path | None,
    names: Names,
    stamps: npt.NDArray[np.int64],
    rows: npt.NDArray[np.int64],
    found: npt.NDArray[np.bool_],
) -> None:
    """Writes the rows that are `found`."""
    if not found.any():
        return
    kept = names if found.all() else names.taken(np.flatnonzero(found))
    values = np.concatenate([stamps, rows], axis=1)[found]
    columns: dict[str, npt.NDArray[Any]] = {
        column: values[:, number].astype(dtype)
        for number, (column, dtype) in enumerate(_COLUMNS.items())
    }
    columns |= {"names": kept.content, "ends": kept.ends}
    save_arrays(file, {}, columns)
