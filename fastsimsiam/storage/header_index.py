"""Sizes and orientations from the headers of image files, cached in an index.

The index is in the user's cache folder (`XDG_CACHE_HOME`, else ~/.cache). Only headers of new and
changed files are read again.
"""

import hashlib
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastsimsiam.errors import BadImageError, UserError
from fastsimsiam.storage.base import Report
from fastsimsiam.storage.image_header import read_header
from fastsimsiam.system.files import written_whole

_READ_THREADS = 8
_INDEX_VERSION = 1

FileStamp = tuple[str, int, int]
"""Path relative to the root, bytes, and modification time in ns: tells whether a file has changed."""


def read_headers(
    root: Path, files: list[FileStamp], report: Report | None
) -> npt.NDArray[np.int64]:
    """Height, width and orientation of N files as (N, 3); unchanged files come from the index.

    Args:
        root: folder of the files; each root has an index.
        files: all image files under `root`.
        report: receives the progress over files that are read.
    """
    index_file = _index_file(root)
    known = _load_index(index_file)
    rows = np.zeros((len(files), 3), dtype=np.int64)
    changed = []
    for position, (path, size, mtime) in enumerate(files):
        row = known.get(path)
        if row is not None and row[:2] == (size, mtime):
            rows[position] = row[2:]
        else:
            changed.append(position)
    if changed:
        with ThreadPoolExecutor(_READ_THREADS) as pool:
            paths = [root / files[position][0] for position in changed]
            for done, header in enumerate(pool.map(_header_or_zeros, paths), start=1):
                rows[changed[done - 1]] = header
                if report and (done % 1000 == 0 or done == len(changed)):
                    report(done, len(changed))
    if changed or len(known) != len(files):
        _save_index(index_file, files, rows)
    return rows


def _header_or_zeros(path: Path) -> tuple[int, int, int]:
    """The header of a file; 0, 0, 1 if it is unreadable."""
    try:
        return read_header(path)
    except (BadImageError, OSError):
        return 0, 0, 1


def _index_file(root: Path) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:20]
    return cache / "fastsimsiam" / f"index-{digest}.npz"


def _load_index(file: Path) -> dict[str, tuple[int, ...]]:
    """Path -> (bytes, mtime, height, width, orientation); empty if there is no usable index."""
    try:
        # Opened here because np.load does not close a damaged file.
        with open(file, "rb") as handle, np.load(handle, allow_pickle=False) as stored:
            if int(stored["version"]) != _INDEX_VERSION:
                return {}
            paths = stored["paths"].tobytes().decode().split("\n")
            return dict(zip(paths, map(tuple, stored["rows"].tolist()), strict=True))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}  # missing or damaged: all headers are read again


def _save_index(file: Path, files: list[FileStamp], rows: npt.NDArray[np.int64]) -> None:
    """Writes the index atomically; does nothing if the cache folder is not writable."""
    stamps = np.array([(size, mtime) for _, size, mtime in files], dtype=np.int64)
    paths = "\n".join(path for path, _, _ in files).encode()
    # Without the index the headers are read again, which costs time alone. Ranks write it together.
    with (
        suppress(UserError),
        written_whole(file, "index") as partial,
        open(partial, "wb") as handle,  # np.savez would add a suffix to a name
    ):
        np.savez(
            handle,
            version=_INDEX_VERSION,
            paths=np.frombuffer(paths, np.uint8),
            rows=np.concatenate([stamps, rows], axis=1),
        )
