"""Writes FFCV's packed files without FFCV. The tables are those of beton_tables.py.

A file is what FFCV's own writer makes with one process and the fields `{"image":
RGBImageField(write_mode="jpg"), "label": IntField()}`, to the byte, as long as all records fit into
pages of the smallest size. FFCV's readers load whole pages, so a record never crosses the end of one.

Records are written as they come, the tables last. In memory are a buffer and 32 bytes per sample.
"""

from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from fastsimsiam.storage.beton_tables import (
    ALLOCATION,
    FIELD,
    HEADER,
    IMAGE_TYPE,
    INTEGER_TYPE,
    MODE_JPEG,
    VERSION,
    row_type,
)

LARGEST_RECORD = 1 << 31
"""Bytes of the largest page: the size of a page is a power of two and has 32 bits."""
_SMALLEST_PAGE = 1 << 23
"""FFCV's default."""
_BUFFER = 1 << 20
_FIELDS = ((IMAGE_TYPE, "image"), (INTEGER_TYPE, "label"))


class BetonWriter:
    """A packed file in the making: damaged for every reader until `finish` has returned.

    Use it in a `with` statement, which closes the file.
    """

    def __init__(self, file: Path, capacity: int, *, page_size: int = _SMALLEST_PAGE) -> None:
        """Creates the file, or empties it.

        Args:
            file: the file to write.
            capacity: number of samples for which the table, which comes before the records, has room.
            page_size: bytes of a page, a power of two; pages become larger with the largest record.

        Raises:
            OSError: the system refuses to write the file, as in all methods.
        """
        assert page_size & (page_size - 1) == 0
        self._rows = np.zeros(capacity, row_type([number for number, _ in _FIELDS]))
        self._length = np.zeros(capacity, np.uint64)
        self._count = 0
        self._page_size = page_size
        tables = HEADER.itemsize + len(_FIELDS) * FIELD.itemsize + self._rows.nbytes
        self._end = _next_page(tables, page_size)
        self._file = open(file, "wb", buffering=_BUFFER)  # noqa: SIM115 (closed by __exit__)
        self._file.seek(self._end)

    def __enter__(self) -> Self:
        """Returns the writer."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the file, which is complete only after `finish`."""
        self._file.close()

    def add(self, jpeg: bytes, height: int, width: int, label: int) -> None:
        """Writes the record of the next sample.

        Args:
            jpeg: the encoded image, 1 to `LARGEST_RECORD` bytes.
            height, width: its size in pixels, 1 to 65,535.
            label: its class number, 0 or more.
        """
        assert 0 < len(jpeg) <= LARGEST_RECORD
        assert 0 < height < 1 << 16
        assert 0 < width < 1 << 16
        # Records that cross no end of a page cross none of larger pages either.
        self._page_size = max(self._page_size, 1 << (len(jpeg) - 1).bit_length())
        page_end = _next_page(self._end + 1, self._page_size)
        if self._end + len(jpeg) > page_end:
            self._end = page_end
            self._file.seek(
                self._end
            )  # what is skipped reads as zeros and takes no room on the disk
        self._file.write(jpeg)
        self._rows[self._count] = ((MODE_JPEG, width, height, self._end), label)
        self._length[self._count] = len(jpeg)
        self._count += 1
        self._end += len(jpeg)

    def finish(self) -> None:
        """Writes the tables, after which the file is complete."""
        header, fields = np.zeros(1, HEADER), np.zeros(len(_FIELDS), FIELD)
        allocations = np.zeros(self._count, ALLOCATION)
        allocations["sample"] = np.arange(self._count)
        allocations["position"] = self._rows["f0"]["position"][: self._count]
        allocations["bytes"] = self._length[: self._count]
        self._end = _next_page(self._end, self._page_size)
        self._file.seek(self._end)
        self._file.write(allocations.tobytes())
        header["version"], header["fields"] = VERSION, len(_FIELDS)
        header["page_size"], header["samples"] = self._page_size, self._count
        header["allocations"] = self._end
        fields["type"] = [number for number, _ in _FIELDS]
        fields["name"] = [name for _, name in _FIELDS]
        self._file.seek(0)
        for table in (header, fields, self._rows):
            self._file.write(table.tobytes())
        self._file.flush()


def _next_page(position: int, page_size: int) -> int:
    """The first position, from `position` on, at which a page begins."""
    return -(-position // page_size) * page_size
