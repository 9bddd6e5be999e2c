"""The images of Parquet files, read in order: the row groups that were read last stay in memory.

To read one row, a row group has to be read and decoded as a whole. Who reads the rows in their order,
with some threads that are a little ahead of others, has each decoded once.
"""

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastsimsiam.errors import UserError
from fastsimsiam.storage.image_table import encoded_images, reading
from fastsimsiam.storage.record_file import RecordFile
from fastsimsiam.storage.record_files import RecordFiles
from fastsimsiam.storage.section import section
from fastsimsiam.system.text import printable

_KEPT_BYTES = 1 << 28
_LEAST_KEPT = 2
"""Row groups that are kept whatever they take: threads read on both sides of their border."""
_LARGEST = 1 << 32
"""Bytes of images in a row group. Most have 100 images, some a gigabyte."""


@dataclass(frozen=True)
class RowGroup:
    """A row group: the number of its file, its number in this file, and the column of images."""

    file: int
    number: int
    column: str


class RowGroups:
    """The encoded images of N rows in G row groups, for many threads.

    Attributes:
        files: the files.
        groups: the row groups, in order.
        starts: G + 1 numbers: the first row of each, and N.
    """

    def __init__(
        self, files: RecordFiles, groups: Sequence[RowGroup], starts: Sequence[int]
    ) -> None:
        """Opens nothing."""
        self.files, self.groups, self.starts = files, groups, starts
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._opened: tuple[int, Any] | None = None
        # Who waits for it wants the same row group, or has had its images decoded by then.
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process reads the files itself."""
        return RowGroups, (self.files, self.groups, self.starts)

    def of(self, row: int) -> RowGroup:
        """The row group that holds a row."""
        return self.groups[self._number_of(row)]

    def read(self, row: int) -> memoryview:
        """The encoded image of a row; empty where it has none.

        Raises:
            UserError: the file is damaged or has changed since it was opened.
        """
        number = self._number_of(row)
        with self._lock:
            images = self._kept.get(number)
            if images is None:
                images = self._decoded(self.groups[number])
                self._keep(number, images)
            else:
                self._kept.move_to_end(number)
        content = images[row - self.starts[number]].as_buffer()
        return memoryview(b"" if content is None else content).cast("B")  # pyarrow has signed bytes

    def _number_of(self, row: int) -> int:
        return bisect_right(self.starts, row) - 1

    def _keep(self, number: int, images: Any) -> None:
        self._kept[number] = images
        total = sum(kept.nbytes for kept in self._kept.values())
        while total > _KEPT_BYTES and len(self._kept) > _LEAST_KEPT:
            total -= self._kept.popitem(last=False)[1].nbytes

    def _decoded(self, group: RowGroup) -> Any:
        import pyarrow as pa

        if self._opened is None or self._opened[0] != group.file:
            self._opened = group.file, open_parquet(self.files[group.file])
        path = self.files.stamps[group.file].path
        table = read_group(path, self._opened[1], group.number, [group.column])
        with reading(path):
            column = table.column(0)
            images = [encoded_images(chunk) for chunk in column.chunks]
            for part in images:
                part.validate(full=True)
        return pa.chunked_array(images)


def open_parquet(file: RecordFile) -> Any:
    """An open file as a `pyarrow.parquet.ParquetFile`.

    Raises:
        UserError: it is no Parquet file, or damaged.
    """
    from pyarrow import parquet

    with reading(file.path):
        return parquet.ParquetFile(section(file), page_checksum_verification=True)


def read_group(path: Path, parquet: Any, number: int, columns: Sequence[str]) -> Any:
    """Some columns of a row group, as a `pyarrow.Table`.

    Args:
        path: the file, for messages.
        parquet: the open file.
        number: of the row group.
        columns: names of columns; the first holds the images.

    Raises:
        UserError: the file is damaged, or the images take more memory than is allowed.
    """
    about = parquet.metadata.row_group(number)
    parts = [about.column(part) for part in range(about.num_columns)]
    size = sum(
        part.total_uncompressed_size
        for part in parts
        if part.path_in_schema.partition(".")[0] == columns[0]
    )
    if size > _LARGEST:
        raise UserError(
            f"{printable(path)} has row groups of {size / 1e9:.0f} GB, each of which has to be in "
            "memory as a whole: write it again with row groups of 100 images"
        )
    with reading(path):
        return parquet.read_row_group(number, columns=list(columns))
