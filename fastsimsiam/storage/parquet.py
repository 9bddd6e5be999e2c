"""Parquet files of images, as the Hugging Face Hub has them: a source for `fastsimsiam pack` alone.

Whoever reads an image by itself decodes the hundred that it is stored with. So no run reads them in
the order of its plan, and each is packed first, by one who reads them in the order of the files.
"""

import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fastsimsiam.errors import BadImageError, UserError
from fastsimsiam.storage import passed_over as kinds
from fastsimsiam.storage.base import Report
from fastsimsiam.storage.image_header import header_of
from fastsimsiam.storage.image_table import ImageTable, refuse_pointer, require_pyarrow
from fastsimsiam.storage.labels import Labels, merged, of_split
from fastsimsiam.storage.names import Names
from fastsimsiam.storage.packed_images import refuse_unreadable
from fastsimsiam.storage.record_file import RecordFile
from fastsimsiam.storage.record_files import FileStamp, RecordFiles
from fastsimsiam.storage.row_groups import RowGroup, RowGroups, open_parquet, read_group
from fastsimsiam.storage.split_files import SplitFiles, split_files
from fastsimsiam.storage.system_errors import why_not_read
from fastsimsiam.system.text import printable

_SUFFIX = ".parquet"
_HUB = "data"
"""Folder of the files in most data sets of the Hub."""
_REPORT_EVERY = 256


@dataclass(frozen=True, kw_only=True, eq=False)
class ParquetImages:
    """A `Storage` of N images whose `read` is slow, unless it is called about in their order.

    Attributes:
        length: (N,) int64 bytes of each encoded image.
        rows: reads them.
        unreadable: sample -> reason, completing "NAME is", of images that cannot be used.
    """

    root: Path
    paths: Sequence[str]
    classes: Sequence[str]
    label: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int32]
    orientation: npt.NDArray[np.uint8]
    length: npt.NDArray[np.int64]
    rows: RowGroups
    unreadable: Mapping[int, str] = field(default_factory=dict)
    passed_over: Mapping[str, int] = field(default_factory=dict)
    is_packed: ClassVar[bool] = True
    blocks: ClassVar[None] = None

    @property
    def bytes_total(self) -> int:
        """Total size of the encoded images."""
        return int(self.length.sum())

    def __len__(self) -> int:
        """Number of images."""
        return len(self.length)

    def file_of(self, index: int) -> Path:
        """The file that holds an image."""
        return self.rows.files.stamps[self.rows.of(index).file].path

    def name(self, index: int) -> str:
        """File and name of an image, printable."""
        return printable(f"{self.file_of(index)}: {self.paths[index]}")

    def read(self, index: int) -> memoryview:
        """The encoded bytes of an image.

        Raises:
            UserError: its file is damaged, was changed, or cannot be read.
        """
        return self.rows.read(index)

    def will_need(self, index: int) -> None:
        """Does nothing: in their order, the system reads ahead by itself."""

    def require_readable(self, option: str = "skip") -> None:
        """As `PackedImages`."""
        refuse_unreadable(self, option)


def has_split(data: Path, split: str) -> bool:
    """Whether `data` has Parquet files of a split, in its folder or by their names."""
    found = _files(data, split)
    return found is not None and found.is_told


def accepts(data: Path, split: str) -> bool:
    """Whether a split is to be opened as Parquet files."""
    return _files(data, split) is not None


def refusal(data: Path, split: str) -> UserError:
    """The error for whoever wants the images of a split in any order."""
    found = _files(data, split)
    assert found is not None
    source = found.root if found.is_told and not found.key else data
    option = f" --split {split}" if found.key else ""
    return UserError(
        f"{printable(source)} holds Parquet files, which can be read only in their order (for each "
        f"image a row group, of 100 or so, would be decoded): fastsimsiam pack {printable(source)} "
        f"{split}.beton{option}"
    )


def open_split(
    data: Path, split: str, *, classes: Sequence[str] | None = None, report: Report | None = None
) -> ParquetImages:
    """Opens the Parquet files of a split, and reads all of their images for the headers.

    Args:
        data: see `split_files`; or the folder of a data set of the Hub, with the files in its data/.
        split: `train` or `val`.
        classes: class names that labels refer to (the training split's); None: the split's own.
        report: receives the progress, in images.

    Raises:
        UserError: a file is missing or damaged, holds no images, or pyarrow is missing.
    """
    found = _files(data, split)
    assert found is not None
    require_pyarrow(found.files[0])
    try:
        files = RecordFiles([FileStamp.of(file) for file in found.files])
        total = sum(_rows(files[number]) for number in range(len(files)))
        parts: list[_Part] = []
        for number, stamp in enumerate(files.stamps):
            before = sum(len(part.names) for part in parts)

            def progress(done: int, before: int = before) -> None:
                if report:
                    report(before + done, total)

            parts.append(_scanned(files[number], number, found.prefix(stamp.path), progress))
    except OSError as error:
        raise UserError(why_not_read(error.filename or data, error)) from error
    return _joined(found, files, parts, classes)


def _files(data: Path, split: str) -> SplitFiles | None:
    return split_files(data, split, _SUFFIX) or split_files(data / _HUB, split, _SUFFIX)


def _rows(file: RecordFile) -> int:
    refuse_pointer(file)
    return int(open_parquet(file).metadata.num_rows)


@dataclass(frozen=True, kw_only=True)
class _Part:
    """What is in one file: n images in g row groups."""

    names: Names
    classes: Sequence[str]
    label: Labels
    length: npt.NDArray[np.int64]
    headers: npt.NDArray[np.int32]
    groups: list[RowGroup]
    rows: list[int]
    broken: Mapping[int, str]
    passed_over: Mapping[str, int]


def _scanned(file: RecordFile, number: int, prefix: str, progress: Callable[[int], None]) -> _Part:
    """Reads a file, a row group at a time."""
    parquet = open_parquet(file)
    table = ImageTable(file.path, parquet.schema_arrow)
    length: list[int] = []
    headers: list[tuple[int, int, int]] = []
    rows: list[int] = []
    broken: dict[int, str] = {}
    for group in range(parquet.num_row_groups):
        start = len(headers)
        for batch in read_group(file.path, parquet, group, table.columns).to_batches():
            images: Any = table.add(batch)
            for image in images:
                content = image.as_buffer()
                length.append(0 if content is None else content.size)
                header = (0, 0, 1)
                if len(headers) not in table.broken:
                    try:
                        header = header_of(io.BytesIO(content))
                    except BadImageError as error:
                        broken[len(headers)] = str(error)
                headers.append(header)
                if len(headers) % _REPORT_EVERY == 0:
                    progress(len(headers))
        rows.append(len(headers) - start)
    progress(len(headers))
    classes, label = table.labels()
    return _Part(
        names=table.names(prefix),
        classes=classes,
        label=label,
        length=np.array(length, np.int64),
        headers=np.array(headers, np.int32).reshape(-1, 3),
        groups=[RowGroup(number, group, table.columns[0]) for group in range(len(rows))],
        rows=rows,
        broken=table.broken | broken,
        passed_over=table.passed_over,
    )


def _joined(
    found: SplitFiles, files: RecordFiles, parts: Sequence[_Part], classes: Sequence[str] | None
) -> ParquetImages:
    names = Names.joined([part.names for part in parts])
    if not len(names):
        raise UserError(f"no images in the Parquet files of {printable(found.root)}")
    own, label = merged([(part.classes, part.label) for part in parts])
    own, label = of_split(found.root, own, label, classes)
    headers = np.concatenate([part.headers for part in parts])
    first = np.cumsum([0] + [len(part.names) for part in parts]).tolist()
    passed_over: Counter[str] = Counter({kinds.OTHER_FILES: found.others})
    for part in parts:
        passed_over.update(part.passed_over)
    broken = {
        start + row: reason
        for start, part in zip(first, parts, strict=False)
        for row, reason in part.broken.items()
    }
    groups = [group for part in parts for group in part.groups]
    starts = np.cumsum([0] + [rows for part in parts for rows in part.rows]).tolist()
    return ParquetImages(
        root=found.root,
        paths=names,
        classes=own,
        label=label,
        sizes=np.ascontiguousarray(headers[:, :2]),
        orientation=headers[:, 2].astype(np.uint8),
        length=np.concatenate([part.length for part in parts]),
        rows=RowGroups(files, groups, starts),
        unreadable=dict(sorted(broken.items())),
        passed_over=+passed_over,
    )
