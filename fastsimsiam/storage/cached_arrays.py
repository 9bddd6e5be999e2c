"""Arrays in the user's cache folder: what was read of a data set, so that it is not read again.

The cache folder is `XDG_CACHE_HOME`, else ~/.cache. A file holds: the magic with its version; CRC-32
and length of a JSON object; this object, of what the author wants and of each array's data type,
length, position and CRC-32; the arrays, without a gap. Nothing in it is code, and nothing in it is
trusted: whoever can write to the cache folder may have written it.
"""

import hashlib
import json
import mmap
import os
import stat
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastsimsiam.errors import UserError
from fastsimsiam.system.files import written_whole

_MAGIC = b"fastsimsiam index 3\n"
_HEAD = struct.Struct(f"<{len(_MAGIC)}sIQ")
_ALIGNED = 8
_MAPPED = 1 << 28
"""Bytes of a file from which on it is mapped instead of read. It is replaced as a whole alone."""
_CHUNK = 1 << 24
_DTYPES = ("<i8", "<i4", "|u1")
_LARGEST_HEAD = 1 << 30
_forgotten: ContextVar[bool] = ContextVar("forgotten", default=False)

Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Loaded:
    """What was saved.

    Attributes:
        facts: what the author wanted to be known.
        arrays: name -> array, read-only.
        mapped: the memory of a large file; None for one that was read.
    """

    facts: dict[str, Any]
    arrays: dict[str, npt.NDArray[Any]]
    mapped: mmap.mmap | None = None

    def forget_pages(self) -> None:
        """Gives the memory of pages back that were looked at once, to check them."""
        if self.mapped is not None:
            self.mapped.madvise(mmap.MADV_DONTNEED)


@contextmanager
def forgotten() -> Iterator[None]:
    """Reads everything again within the block: nothing that was saved before is loaded."""
    token = _forgotten.set(True)
    try:
        yield
    finally:
        _forgotten.reset(token)


def cache_folder() -> Path | None:
    """The package's folder for what can be made again; None without a home and XDG_CACHE_HOME."""
    cache = os.environ.get("XDG_CACHE_HOME")
    if not cache:
        try:
            cache = os.fspath(Path.home() / ".cache")
        except RuntimeError:
            return None
    return Path(cache) / "fastsimsiam"


def cache_file(root: Path, form: str) -> Path | None:
    """The file for a data set; None where there is no folder for it, see `cache_folder`.

    Args:
        root: the data set's folder or file.
        form: what it is read as: two forms of one folder have two files.
    """
    folder = cache_folder()
    if folder is None:
        return None
    name = os.fsencode(root.resolve()) + (b"\0" + form.encode() if form else b"")
    return folder / f"index-{hashlib.sha256(name).hexdigest()[:20]}.bin"


def load_arrays(file: Path | None, most_bytes: int) -> Loaded | None:
    """What was saved; None if there is nothing that is whole.

    Args:
        file: of `cache_file`.
        most_bytes: a larger file is not read.
    """
    if file is None:
        return None
    if _forgotten.get():
        return None
    with suppress(OSError):
        if stat.S_ISFIFO(file.lstat().st_mode):  # nothing could be saved in its place
            file.unlink()
    try:
        # Without O_NONBLOCK a named pipe would wait for somebody to write to it.
        with open(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as handle:
            status = os.fstat(handle.fileno())
            if not stat.S_ISREG(status.st_mode) or not _HEAD.size <= status.st_size <= most_bytes:
                return None
            mapped = None
            if status.st_size < _MAPPED:
                content = np.fromfile(handle, np.uint8)
            else:
                mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
                content = np.frombuffer(mapped, np.uint8)
            loaded = Loaded(*_parsed(content, handle.fileno()), mapped)
            loaded.forget_pages()
            return loaded
    except OSError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, MemoryError):
        return None


def save_arrays(file: Path | None, facts: Mapping[str, Any], arrays: Arrays) -> None:
    """Saves arrays atomically; does nothing where the cache folder cannot be written.

    Args:
        file: of `cache_file`; several processes may write it together, the last one wins.
        facts: what else is to be known, as JSON has it.
        arrays: (N,) arrays of int64, int32 or uint8.
    """
    if file is None:
        return
    described: dict[str, list[Any]] = {}
    position = 0
    # Each begins at a multiple of the size of its elements.
    arrays = dict(sorted(arrays.items(), key=lambda item: -item[1].itemsize))
    for name, array in arrays.items():
        described[name] = [array.dtype.str, len(array), position, _checksum(_bytes(array))]
        position += array.nbytes
    head = json.dumps({"facts": facts, "arrays": described}).encode()
    head += b" " * (-(_HEAD.size + len(head)) % _ALIGNED)
    # Without it all is read again, which costs time alone.
    with (
        suppress(UserError),
        written_whole(file, "index") as partial,
        open(partial, "wb") as handle,
    ):
        handle.write(_HEAD.pack(_MAGIC, zlib.crc32(head), len(head)) + head)
        for array in arrays.values():
            handle.write(_bytes(array).data)


def _parsed(
    content: npt.NDArray[np.uint8], descriptor: int
) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    magic, checksum, length = _HEAD.unpack(content[: _HEAD.size].tobytes())
    if magic != _MAGIC or length > min(_LARGEST_HEAD, len(content) - _HEAD.size):
        raise ValueError("another file")
    head = content[_HEAD.size : _HEAD.size + length].tobytes()
    if zlib.crc32(head) != checksum:
        raise ValueError("damaged")
    described = json.loads(head)
    start = _HEAD.size + length
    end, arrays = start, {}
    for name, (dtype, count, position, expected) in described["arrays"].items():
        if dtype not in _DTYPES or count < 0 or position < 0:
            raise ValueError("no such array")
        begin = start + position
        part = content[begin : begin + count * np.dtype(dtype).itemsize]
        array = part.view(dtype)
        if len(array) != count or _checksum_of_file(descriptor, begin, len(part)) != expected:
            raise ValueError("damaged")
        array.flags.writeable = False
        arrays[name] = array
        end = max(end, begin + len(part))
    if end != len(content):
        raise ValueError("another length")
    return described["facts"], arrays


def _bytes(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(array).view(np.uint8)


def _checksum(content: npt.NDArray[np.uint8]) -> int:
    value = 0
    for first in range(0, len(content), _CHUNK):
        value = zlib.crc32(content[first : first + _CHUNK].data, value)
    return value


def _checksum_of_file(descriptor: int, start: int, length: int) -> int:
    """Read, not mapped, so that it takes no memory."""
    value = 0
    while length:
        chunk = os.pread(descriptor, min(length, _CHUNK), start)
        if not chunk:
            raise ValueError("cut off")
        value = zlib.crc32(chunk, value)
        start, length = start + len(chunk), length - len(chunk)
    return value
