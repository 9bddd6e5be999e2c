"""The tables of FFCV's packed files, read and checked without FFCV; beton_writer.py writes them.

A file holds, in this order and little-endian: a header; a descriptor of each field; a row of all fields
for each sample (an image: mode, width, height, position of its record; an integer: its value); the
records; and, up to the file's end, the allocation table: sample, position and bytes of each record.
Files from elsewhere can claim anything. So every number is compared with the size of the file before
memory is taken for it, and every position is within the records.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastsimsiam.errors import UserError
from fastsimsiam.storage.record_file import RecordFile

MODE_JPEG = 0
"""Mode of an image in the table: its record is a JPEG."""
MODE_RAW = 1
"""Mode of an image in the table: its record is raw pixels."""
VERSION = 2
_MOST_FIELDS = 1000
_MOST_CLASSES = 1 << 20
"""Labels are below this number, or below the number of images: a class takes memory."""

HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("fields", "<u2"),
        ("page_size", "<u4"),
        ("samples", "<u8"),
        ("allocations", "<u8"),
    ]
)
FIELD = np.dtype([("type", "u1"), ("name", "S16"), ("arguments", "V1024")])
ALLOCATION = np.dtype([("sample", "<u8"), ("position", "<u8"), ("bytes", "<u8")])
_IMAGE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("position", "<u8")])
_BYTES = np.dtype([("position", "<u8"), ("bytes", "<u8")])
# By the number of a field's type: float, integer, image, bytes, array, JSON, tensor.
INTEGER_TYPE, IMAGE_TYPE = 1, 2
_TYPES = (
    np.dtype("<f8"),
    np.dtype("<i8"),
    _IMAGE,
    _BYTES,
    np.dtype("<u8"),
    _BYTES,
    np.dtype("<u8"),
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Tables:
    """The checked tables of a packed file of N images, from its first image and integer fields.

    Attributes:
        label: (N,) int64, 0 or more.
        sizes: (N, 2) int32 height and width in pixels that the file claims.
        position: (N,) int64 first byte of each record.
        length: (N,) int64 bytes of each record, 1 or more.
        owner: (N,) int64 sample that each record was written for.
    """

    label: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int32]
    position: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    owner: npt.NDArray[np.int64]


def read_tables(file: RecordFile) -> Tables:
    """Reads the tables of an open packed file.

    Raises:
        UserError: the file is truncated or damaged, or holds no JPEGs with integer labels.
        OSError: the system cannot read the file.
    """
    header = _table(file, HEADER, 0, 1)[0]
    version, fields = int(header["version"]), int(header["fields"])
    samples, allocations = int(header["samples"]), int(header["allocations"])
    if version != VERSION:
        raise _damaged(file.path, f"its version is {version}, not {VERSION}")
    if not 1 <= fields <= _MOST_FIELDS:
        raise _damaged(file.path, f"it claims {fields} fields")
    page_size = int(header["page_size"])
    if page_size == 0 or page_size & (page_size - 1):
        raise _damaged(file.path, f"it claims pages of {page_size} bytes")
    types = _table(file, FIELD, HEADER.itemsize, fields)["type"].tolist()
    image_field, label_field = _fields(file.path, types)
    row = row_type(types)
    start = HEADER.itemsize + fields * FIELD.itemsize
    if samples == 0:
        raise _damaged(file.path, "it holds no images")
    rows = _table(file, row, start, samples)
    records = start + rows.nbytes
    allocated, rest = divmod(file.size - allocations, ALLOCATION.itemsize)
    if not (records <= allocations and rest == 0 and 1 <= allocated <= samples * fields):
        raise _damaged(file.path, f"it claims that its last table is at byte {allocations}")
    table = _table(file, ALLOCATION, allocations, allocated)
    _require_within(file.path, table, records, allocations, page_size)
    return _joined(file.path, rows[image_field], rows[label_field], table)


def row_type(types: Sequence[int]) -> np.dtype[np.void]:
    """The row of a sample, with fields f0, f1, ..., by the numbers of the fields' types."""
    return np.dtype([("", _TYPES[number]) for number in types], align=True)


def _table(
    file: RecordFile, row: np.dtype[np.void], start: int, count: int
) -> npt.NDArray[np.void]:
    """`count` rows of a table from byte `start` on."""
    if start + count * row.itemsize > file.size:
        what = f"{count} rows of {row.itemsize} bytes from byte {start} on"
        raise _damaged(file.path, f"it has {file.size} bytes and claims {what}")
    try:
        return np.frombuffer(file.read_new(start, count * row.itemsize), row)
    except EOFError as error:
        raise _damaged(file.path, "it became shorter while it was opened") from error
    except MemoryError as error:
        raise UserError(f"{file.path} claims {count} images, too many for the memory") from error


def _fields(path: Path, types: list[int]) -> tuple[str, str]:
    """The names, in a row of the table, of the first image and the first integer."""
    unknown = [number for number in types if number >= len(_TYPES)]
    if unknown:
        raise _damaged(path, f"it has a field of the unknown type {unknown[0]}")
    for number, what in ((IMAGE_TYPE, "images"), (INTEGER_TYPE, "integer labels")):
        if number not in types:
            raise _damaged(path, f"it has no field of {what}")
    return f"f{types.index(IMAGE_TYPE)}", f"f{types.index(INTEGER_TYPE)}"


def _require_within(
    path: Path, table: npt.NDArray[np.void], start: int, end: int, page_size: int
) -> None:
    """Refuses records that are not between the tables, or that cross the end of a page."""
    position, length = table["position"], table["bytes"]
    outside = (position < start) | (position > end)
    # Differences of unsigned numbers: none of them is negative where the position is inside.
    outside |= length > np.where(outside, 0, end - position)
    outside |= length > page_size - (position & np.uint64(page_size - 1))
    if outside.any():
        row = int(outside.argmax())
        where = f"{length[row]} bytes from byte {position[row]} on"
        raise _damaged(path, f"it claims a record of {where}, which is not among its records")


def _joined(
    path: Path,
    image: npt.NDArray[np.void],
    label: npt.NDArray[np.int64],
    table: npt.NDArray[np.void],
) -> Tables:
    """Joins images with the allocation table by the position of the record."""
    if (image["mode"] == MODE_RAW).any():
        raise UserError(f"{path} holds raw pixels, not JPEGs: pack it with fastsimsiam pack")
    wrong = image["mode"] != MODE_JPEG
    if wrong.any():
        number = int(wrong.argmax())
        raise _damaged(path, f"image {number} has the unknown mode {image['mode'][number]}")
    wrong = (label < 0) | (label >= max(len(label), _MOST_CLASSES))
    if wrong.any():
        number = int(wrong.argmax())
        raise _damaged(path, f"the label of image {number} is {label[number]}")
    table = table[table["bytes"] > 0]  # an empty record begins where the next one does
    table = table[np.lexsort((table["bytes"], table["position"]))]
    same_place = np.diff(table["position"]) == 0
    if (same_place & (np.diff(table["bytes"]) != 0)).any():
        where = table["position"][:-1][same_place][0]
        raise _damaged(path, f"it claims records of two lengths at byte {where}")
    row = np.searchsorted(table["position"], image["position"])
    missing = row == len(table)
    missing[~missing] = table["position"][row[~missing]] != image["position"][~missing]
    if missing.any():
        raise _damaged(path, f"image {missing.argmax()} has no record")
    found = table[row]
    return Tables(
        label=label.astype(np.int64),
        sizes=np.stack([image["height"], image["width"]], axis=1).astype(np.int32),
        position=found["position"].astype(np.int64),
        length=found["bytes"].astype(np.int64),
        owner=found["sample"].astype(np.int64),
    )


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path} is not a complete packed file of images and labels ({reason}): pack the data set "
        "again, or fetch the file again"
    )
