"""The headers of image files, read once and kept in an index under the user's cache folder.

The folder is `XDG_CACHE_HOME`, else ~/.cache; only new or changed files are read again.
"""

import hashlib
import os
import tempfile
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from fastsimsiam.storage.base import Report

_EXIF_ORIENTATION = 0x0112
_READ_THREADS = 8
_INDEX_VERSION = 1
# PIL warns of images over 89 megapixels and refuses those over 179: the refusal is enough.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def read_headers(
    root: Path, found: list[tuple[str, int, int]], report: Report | None
) -> npt.NDArray[np.int64]:
    """(N, 3) height, width, orientation, from the index where files are unchanged."""
    index_file = _index_file(root)
    known = _load_index(index_file)
    rows = np.zeros((len(found), 3), dtype=np.int64)
    fresh = []
    for position, (path, size, mtime) in enumerate(found):
        row = known.get(path)
        if row is not None and row[:2] == (size, mtime):
            rows[position] = row[2:]
        else:
            fresh.append(position)
    if fresh:
        with ThreadPoolExecutor(_READ_THREADS) as pool:
            files = [root / found[position][0] for position in fresh]
            for done, header in enumerate(pool.map(read_header, files), start=1):
                rows[fresh[done - 1]] = header
                if report and (done % 1000 == 0 or done == len(fresh)):
                    report(done, len(fresh))
    if fresh or len(known) != len(found):
        _save_index(index_file, found, rows)
    return rows


def read_header(path: Path) -> tuple[int, int, int]:
    """Height, width and orientation of the upright image; 0, 0, 1 where there is no image."""
    try:
        with Image.open(path, formats=("JPEG", "PNG")) as image:
            width, height = image.size
            orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    # PIL raises these for what is no image, for a broken header or EXIF block, or a monstrous size.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return 0, 0, 1
    if orientation not in range(1, 9):
        orientation = 1
    # Orientations 5 to 8 lie on their side.
    return (width, height, orientation) if orientation >= 5 else (height, width, orientation)


def _index_file(root: Path) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:20]
    return cache / "fastsimsiam" / f"index-{digest}.npz"


def _load_index(file: Path) -> dict[str, tuple[int, ...]]:
    """Path -> (bytes, mtime, height, width, orientation); empty where there is no usable index."""
    try:
        # Opened here, because np.load leaves a damaged file open.
        with open(file, "rb") as handle, np.load(handle, allow_pickle=False) as stored:
            if int(stored["version"]) != _INDEX_VERSION:
                return {}
            paths = stored["paths"].tobytes().decode().split("\n")
            return dict(zip(paths, map(tuple, stored["rows"].tolist()), strict=True))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}  # missing, or damaged: the headers are read again


def _save_index(file: Path, found: list[tuple[str, int, int]], rows: npt.NDArray[np.int64]) -> None:
    """Writes the index atomically. A cache folder that cannot be written costs time, no more."""
    stamps = np.array([(size, mtime) for _, size, mtime in found], dtype=np.int64)
    paths = "\n".join(path for path, _, _ in found).encode()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as handle:
            np.savez(
                handle,
                version=_INDEX_VERSION,
                paths=np.frombuffer(paths, np.uint8),
                rows=np.concatenate([stamps, rows], axis=1),
            )
        os.replace(handle.name, file)
    except OSError:
        return
