"""Sizes and orientations from the headers of image files, cached in an index.

The index is in the user's cache folder (`XDG_CACHE_HOME`, else ~/.cache). Only headers of new and
changed files are read again. It holds what was read, never a failure: the reason of one may be gone the
next time, and a newer library may read what this one refuses.

The file: `_HEAD`, the rows as (N, 5) int64 (bytes, mtime, height, width, orientation), the paths as
bytes, each ended by a zero byte.
"""

import hashlib
import os
import re
import stat
import struct
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastsimsiam.errors import BadImageError, UserError
from fastsimsiam.storage.base import Report
from fastsimsiam.storage.image_header import read_header
from fastsimsiam.storage.system_errors import reason_of
from fastsimsiam.system.files import written_whole

_READ_THREADS = 8
_REPORT_EVERY = 100
_MAGIC = b"fastsimsiam index 2\n"
_HEAD = struct.Struct(f"<{len(_MAGIC)}sIqq")
"""Magic with the version, CRC-32 of the rest, number of rows, bytes of the paths."""
_ROW = np.dtype("<i8")
_COLUMNS = 5
_SPARE_ROWS = 1 << 16
"""Rows that an index may have beyond those of the data set, of files that are gone."""
_MEAN_PATH = 1 << 10
"""Bytes that the paths may have on the average."""
_PARTIAL = re.compile(r"index-[0-9a-f]{20}\.\w+\.(\d{1,7})\.partial")
"""An index that a process writes; the group is its number."""

FileStamp = tuple[str, int, int]
"""Path relative to the root, bytes, and modification time in ns: tells whether a file has changed."""
_Row = tuple[int, int, int]
"""Height, width and orientation."""


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
    root: Path, files: list[FileStamp], out_of_reach: Mapping[str, str], report: Report | None
) -> Headers:
    """Reads the headers of N files; those of unchanged files come from the index.

    Args:
        root: folder of the files; each root has an index.
        files: all image files under `root`.
        out_of_reach: path -> the system's reason, of files that are not to be read.
        report: receives the progress over files that are read.

    Raises:
        UserError: the system cannot read any file now.
    """
    index_file = _index_file(root)
    if index_file:
        _remove_leftovers(index_file)
    known = _load_index(index_file, len(files))
    headers = Headers(len(files))
    changed = []
    for position, (path, size, mtime) in enumerate(files):
        row = known.get(path)
        if path in out_of_reach:
            headers.out_of_reach[position] = out_of_reach[path]
        elif row is not None and row[:2] == (size, mtime):
            headers.rows[position] = row[2:]
        else:
            changed.append(position)
    try:
        _read(root, files, changed, headers, report)
    finally:  # what was read is kept, also if the rest could not be
        found = headers.rows[:, 0] > 0
        if found[changed].any() or len(known) != np.count_nonzero(found):
            _save_index(index_file, files, headers.rows, found)
    return headers


def _read(
    root: Path,
    files: list[FileStamp],
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


def _index_file(root: Path) -> Path | None:
    """The index of a root; None where there is no folder for it: no home, and no XDG_CACHE_HOME."""
    cache = os.environ.get("XDG_CACHE_HOME")
    if not cache:
        try:
            cache = os.fspath(Path.home() / ".cache")
        except RuntimeError:
            return None
    digest = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:20]
    return Path(cache) / "fastsimsiam" / f"index-{digest}.bin"


def _load_index(file: Path | None, number: int) -> dict[str, tuple[int, ...]]:
    """Path -> (bytes, mtime, height, width, orientation); empty if there is no usable index.

    Nothing in the file is trusted: whoever can write to the cache folder may have written it.

    Args:
        file: the index.
        number: files of the data set; an index of many more is not read.
    """
    content = None if file is None else _content(file, number)
    if content is None:
        return {}
    rows, names = content
    paths = os.fsdecode(names).split("\0")[:-1]
    height, width, orientation = rows[:, 2], rows[:, 3], rows[:, 4]
    sane = (
        len(paths) == len(rows) == len(set(paths))
        and (np.minimum(height, width) > 0).all()
        and (np.maximum(height, width) <= np.iinfo(np.int32).max).all()
        and ((orientation >= 1) & (orientation <= 8)).all()
    )
    return dict(zip(paths, map(tuple, rows.tolist()), strict=True)) if sane else {}


def _content(file: Path, number: int) -> tuple[npt.NDArray[np.int64], bytes] | None:
    """Rows and paths of an index whose length and checksum are right."""
    try:
        # Without O_NONBLOCK a named pipe would wait for somebody to write to it.
        with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as handle:
            status = os.fstat(handle.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size < _HEAD.size:
                return None
            magic, checksum, count, length = _HEAD.unpack(handle.read(_HEAD.size))
            of_rows = count * _COLUMNS * _ROW.itemsize
            if (
                magic != _MAGIC
                or not 0 < count <= number + _SPARE_ROWS
                or not 0 < length <= count * _MEAN_PATH
                or status.st_size != _HEAD.size + of_rows + length
            ):
                return None
            content = handle.read(of_rows + length)
    except OSError:
        return None
    if len(content) != of_rows + length or zlib.crc32(content) != checksum:
        return None
    rows = np.frombuffer(content, _ROW, count * _COLUMNS).reshape(count, _COLUMNS)
    return rows, content[of_rows:]


def _save_index(
    file: Path | None,
    files: list[FileStamp],
    rows: npt.NDArray[np.int64],
    found: npt.NDArray[np.bool_],
) -> None:
    """Writes the rows that are `found` atomically; does nothing if the cache folder is not writable."""
    if file is None or not found.any():
        return
    kept = [stamp for stamp, is_found in zip(files, found.tolist(), strict=True) if is_found]
    stamps = np.array([stamp[1:] for stamp in kept], dtype=_ROW).reshape(-1, 2)
    content = np.concatenate([stamps, rows[found]], axis=1).astype(_ROW).tobytes()
    paths = os.fsencode("".join(path + "\0" for path, _, _ in kept))
    checksum = zlib.crc32(paths, zlib.crc32(content))
    # Without the index the headers are read again, which costs time alone. Ranks write it together.
    with suppress(UserError), written_whole(file, "index") as partial:
        partial.write_bytes(_HEAD.pack(_MAGIC, checksum, len(kept), len(paths)) + content + paths)


def _remove_leftovers(file: Path) -> None:
    """Removes what cannot be used any more: files of killed processes and of earlier versions."""
    with suppress(OSError):
        if stat.S_ISFIFO(file.lstat().st_mode):
            file.unlink()
    with suppress(OSError):
        file.with_suffix(".npz").unlink()
    with suppress(OSError), os.scandir(file.parent) as entries:
        for entry in entries:
            written_by = _PARTIAL.fullmatch(entry.name)
            if entry.name.startswith("tmp") or (written_by and not _is_alive(int(written_by[1]))):
                with suppress(OSError):
                    os.unlink(entry.path)


def _is_alive(process: int) -> bool:
    """Whether there is a process with this number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
