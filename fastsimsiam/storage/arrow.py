"""Arrow files of images, as the library `datasets` keeps them: its cache, or a folder of save_to_disk.

An image is a run of bytes in such a file: once it is known where each begins, they are read without
pyarrow. https://arrow.apache.org/docs/format/Columnar.html (both IPC formats)
"""

import json
import mmap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastsimsiam.errors import UserError
from fastsimsiam.storage import passed_over as kinds
from fastsimsiam.storage.base import Report
from fastsimsiam.storage.image_table import (
    ImageTable,
    damaged,
    reading,
    refuse_pointer,
    require_pyarrow,
)
from fastsimsiam.storage.packed_images import PackedImages, packed_images
from fastsimsiam.storage.packed_index import Members
from fastsimsiam.storage.record_file import RecordFile
from fastsimsiam.storage.record_files import FileStamp
from fastsimsiam.storage.split_files import SplitFiles, split_files
from fastsimsiam.storage.system_errors import why_not_read
from fastsimsiam.system.text import printable

_FORM = "arrow 1"
_SUFFIX = ".arrow"
_CACHED = "cache-"
"""Begin of the names of files in which `datasets` keeps the results of `map` and `filter`."""
_STATE = "state.json"
_MAGIC = b"ARROW1"
"""Begin of the IPC file format; the streaming format has none."""
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"

_Places = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


def has_split(data: Path, split: str) -> bool:
    """Whether `data` has Arrow files of a split, in its folder or by their names."""
    found = _files(data, split)
    return found is not None and found.is_told


def accepts(data: Path, split: str) -> bool:
    """Whether a split is to be opened as Arrow files."""
    return _files(data, split) is not None


def open_split(
    data: Path, split: str, *, classes: Sequence[str] | None = None, report: Report | None = None
) -> PackedImages:
    """Opens the Arrow files of a split.

    Args:
        data: see `split_files`; a folder of `datasets`' cache, or one that save_to_disk has written.
        split: `train` or `val`.
        classes: class names that labels refer to (the training split's); None: the split's own.
        report: receives the progress of reading the files, in megabytes.

    Raises:
        UserError: a file is missing, compressed or damaged, holds no images, or pyarrow is missing.
    """
    found = _files(data, split)
    assert found is not None
    saved = _as_saved(found)
    try:
        stamps = [FileStamp.of(file) for file in saved.files]
    except OSError as error:
        raise UserError(why_not_read(error.filename or data, error)) from error

    def scan(file: RecordFile, progress: Callable[[int], None]) -> Members:
        return _rows(file, saved.prefix(file.path), progress)

    # The splits of one folder have an index each.
    form = f"{_FORM} {saved.key}"
    storage = packed_images(saved.root, form, stamps, scan, classes, report)
    others = {kinds.OTHER_FILES: saved.others} if saved.others else {}
    return replace(storage, passed_over={**storage.passed_over, **others})


def _files(data: Path, split: str) -> SplitFiles | None:
    return split_files(data, split, _SUFFIX, besides=_CACHED)


def _as_saved(found: SplitFiles) -> SplitFiles:
    """The files in the order in which save_to_disk has listed them; others are not the data set's."""
    if found.key:  # not all of a folder
        return found
    path = found.root / _STATE
    try:
        state = json.loads(path.read_bytes())
        listed = [found.root / file["filename"] for file in state["_data_files"]]
        indices = state.get("_indices_data_files") or state.get("_indices_files")
    except (FileNotFoundError, NotADirectoryError):
        return found
    except OSError as error:
        raise UserError(why_not_read(path, error)) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(path, f"{type(error).__name__}: {error}") from error
    missing = next((file for file in listed if file not in found.files), None)
    if missing is not None or not listed:
        what = f"{printable(missing)}, which is missing" if missing else "no files"
        raise UserError(f"{printable(path)} lists {what}: copy the folder again")
    if indices:
        raise UserError(
            f"{printable(path)} keeps the order of the images in a file of its own: call "
            "flatten_indices() before save_to_disk"
        )
    return replace(found, files=listed)


def _rows(file: RecordFile, prefix: str, progress: Callable[[int], None]) -> Members:
    """The images of a file, in its order."""
    refuse_pointer(file)
    require_pyarrow(file.path)
    import pyarrow as pa

    # Mapped for the moment: a few bytes of each batch are read, and where its images begin is the
    # address of their memory.
    whole = pa.py_buffer(mmap.mmap(file.descriptor, 0, access=mmap.ACCESS_READ))
    position = [np.zeros(0, np.int64)]
    length = [np.zeros(0, np.int64)]
    schema, batches = _batches(file, whole)
    table = ImageTable(file.path, schema)
    for batch in batches:
        places = _places(file.path, table.add(batch), whole)
        position.append(places[0])
        length.append(places[1])
        if len(batch):
            progress(int(places[0][-1] + places[1][-1]))
    classes, label = table.labels()
    return Members(
        names=table.names(prefix),
        position=np.concatenate(position),
        length=np.concatenate(length),
        label=label,
        classes=classes,
        broken=table.broken,
        passed_over=+table.passed_over,
    )


def _batches(file: RecordFile, whole: Any) -> tuple[Any, Iterator[Any]]:
    """The schema and the batches of a mapped file.

    Raises:
        UserError: the file is damaged; also while the batches are read.
    """
    from pyarrow import BufferReader, ipc

    source = BufferReader(whole)
    with reading(file.path):
        if bytes(whole[: len(_MAGIC)]) == _MAGIC:
            blocks = ipc.open_file(source)
            return blocks.schema, _of_file(file.path, blocks)
        stream = ipc.open_stream(source)
        return stream.schema, _of_stream(file.path, stream, source, whole)


def _of_file(path: Path, blocks: Any) -> Iterator[Any]:
    for number in range(blocks.num_record_batches):
        with reading(path):
            batch = blocks.get_batch(number)
        yield batch


def _of_stream(path: Path, stream: Any, source: Any, whole: Any) -> Iterator[Any]:
    while True:
        with reading(path):
            batch = next(iter(stream), None)
        if batch is None:
            break
        yield batch
    # What ends between two batches, or has zeros where one should begin, is read without an error.
    if source.tell() != len(whole) or bytes(whole[-len(_END_OF_STREAM) :]) != _END_OF_STREAM:
        raise damaged(path, "it does not end as it should")


def _places(path: Path, content: Any, whole: Any) -> _Places:
    """Position in the file and length of n images, which lie in the memory that it is mapped to.

    Raises:
        UserError: they lie elsewhere, because the file is compressed, or nowhere.
    """
    import pyarrow as pa

    if not len(content):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    _, offsets, data = content.buffers()
    kind = np.int64 if pa.types.is_large_binary(content.type) else np.int32
    first = content.offset
    ends = np.frombuffer(offsets, kind)[first : first + len(content) + 1].astype(np.int64)
    length = np.diff(ends)
    if length.min() < 0 or ends[0] < 0 or ends[-1] > (data.size if data else 0):
        raise damaged(path, "positions of images that cannot be")
    if ends[-1] == ends[0]:
        return np.zeros(len(content), np.int64), length
    start = data.address - whole.address
    if not 0 <= start <= whole.size - data.size:
        raise UserError(
            f"{printable(path)} is compressed, so its images cannot be read in any order: save it "
            "without compression (images are compressed already: it hardly grows)"
        )
    return start + ends[:-1], length
