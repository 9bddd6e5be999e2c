"""FFCV's packed files (.beton): a table of sizes and labels, and a storage record, a JPEG, per image.

`fastsimsiam pack` also writes a manifest, FILE.json, with the names of classes and images. Neither
reading nor writing needs FFCV: only the loader `ffcv` does, and any other one reads the records.
Format: https://docs.ffcv.io/ffcv_examples/custom_datasets.html (images are its RGBImageField),
beton_tables.py and beton_writer.py.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from fastsimsiam.errors import BadImageError, UserError
from fastsimsiam.storage.base import Report, Storage, blocks_of
from fastsimsiam.storage.beton_tables import Tables, read_tables
from fastsimsiam.storage.image_file import open_image
from fastsimsiam.storage.labels import of_split
from fastsimsiam.storage.manifest import Manifest, manifest_path, read_manifest
from fastsimsiam.storage.record_file import RecordFile, why_no_record
from fastsimsiam.storage.system_errors import why_not_read
from fastsimsiam.system.text import printable

SUFFIX = ".beton"
_PLAUSIBLE = 1 << 26
"""Pixels; larger images are compared with their JPEG's header when the file is opened, because loaders
reserve memory by the claimed sizes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Beton:
    """A `Storage` of one packed file; attributes as there.

    Attributes:
        root: the packed file.
        paths: names of the packed images, from the manifest, or else their numbers.
        classes: class names, from the manifest, or else their numbers.
        sizes: (N, 2) int32 as the file claims them; 0, 0 for the images of `unreadable`.
        orientation: (N,) uint8, all 1: packed images are upright.
        pointer: (N,) int64 position of each record in the file.
        length: (N,) int64 bytes of each record.
        owner: (N,) int64 image that each record was written for: its own, in an intact file.
        file: the open file.
        unreadable: sample -> reason, of images whose claimed size is impossible.
    """

    root: Path
    paths: Sequence[str]
    classes: Sequence[str]
    label: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int32]
    orientation: npt.NDArray[np.uint8]
    pointer: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    owner: npt.NDArray[np.int64]
    file: RecordFile
    unreadable: Mapping[int, str]
    is_packed: ClassVar[bool] = True
    passed_over: ClassVar[Mapping[str, int]] = MappingProxyType({})

    @property
    def bytes_total(self) -> int:
        """Total size of the records."""
        return int(self.length.sum())

    def __len__(self) -> int:
        """Number of images."""
        return len(self.label)

    @property
    def blocks(self) -> npt.NDArray[np.int64]:
        """See `Storage`."""
        return blocks_of(self.length, [0, len(self)])

    def file_of(self, index: int) -> Path:
        """The packed file."""
        del index
        return self.root

    def name(self, index: int) -> str:
        """File, record and original name of an image, printable."""
        return printable(f"{self.root}, record {index} ({self.paths[index]})")

    def read(self, index: int) -> memoryview:
        """The bytes of a record, in memory that this thread's next call overwrites.

        Raises:
            BadImageError: the record is on a part of the disk that cannot be read.
            UserError: the file was cut off since it was opened, or the system cannot read it.
        """
        position, length = int(self.pointer[index]), int(self.length[index])
        try:
            return self.file.read(position, length)
        except EOFError as error:
            raise UserError(
                f"{self.root} was cut off during the run (record {index} is missing): restore the file "
                "and start the command again"
            ) from error
        except (MemoryError, OSError) as error:
            raise why_no_record(self.name(index), self.root, length, error) from error

    def will_need(self, index: int) -> None:
        """Starts reading a record into the page cache."""
        self.file.will_need(int(self.pointer[index]), int(self.length[index]))

    def require_readable(self, option: str = "skip") -> None:
        """Refuses a file with images of impossible sizes.

        Args:
            option: value of --on-bad-image that skips them, for the message.

        Raises:
            UserError: names the first such image and how many there are.
        """
        if self.unreadable:
            index, reason = next(iter(self.unreadable.items()))
            more = f" (and {len(self.unreadable) - 1} more)" if len(self.unreadable) > 1 else ""
            raise UserError(
                f"{self.name(index)} {reason}{more}: pack the data set again, or pass --on-bad-image "
                f"{option}"
            )


def as_beton(storage: Storage) -> Beton | None:
    """`storage` as a `Beton`; None if it is another storage."""
    return storage if isinstance(storage, Beton) else None


def has_split(data: Path, split: str) -> bool:
    """Whether `data` has a packed file of the split; False where that cannot be looked up."""
    try:
        return (data / f"{split}{SUFFIX}").is_file()
    except OSError:  # the storage that is opened instead says why
        return False


def accepts(data: Path, split: str) -> bool:
    """Whether a split is to be opened as a packed file."""
    return data.suffix == SUFFIX or has_split(data, split)


def open_split(
    data: Path, split: str, *, classes: Sequence[str] | None = None, report: Report | None = None
) -> Beton:
    """Opens `data/SPLIT.beton`, or `data` itself if it is a packed file and `split` is `train`.

    Args:
        data: the data set's folder, or a packed file.
        split: `train` or `val`.
        classes: see `open_beton`.
        report: unused: opening takes no time.

    Raises:
        UserError: see `open_beton`.
    """
    del report
    is_file = data.suffix == SUFFIX and split == "train"
    return open_beton(data if is_file else data / f"{split}{SUFFIX}", classes=classes)


def open_beton(file: Path, *, classes: Sequence[str] | None = None) -> Beton:
    """Opens a packed file of JPEGs and integer labels, written by `fastsimsiam pack` or by FFCV.

    Args:
        file: the packed file.
        classes: class names that labels refer to (the training split's); None: the file's own.

    Raises:
        UserError: the file is missing, damaged or holds no JPEGs, or has a class that is not in
            `classes`.
    """
    try:
        opened = RecordFile(file)
    except FileNotFoundError as error:
        raise UserError(
            f"{file} does not exist: make it with fastsimsiam pack SRC {file}"
        ) from error
    try:
        tables = read_tables(opened)
        unreadable = _impossible(opened, tables)
    except OSError as error:
        raise UserError(why_not_read(file, error)) from error
    manifest = read_manifest(file) or Manifest()
    _require_match(opened, tables, manifest)
    file_classes = manifest.classes or [str(i) for i in range(int(tables.label.max()) + 1)]
    known, label = of_split(file, file_classes, tables.label, classes)
    count = len(tables.label)
    sizes = tables.sizes.copy()
    sizes[list(unreadable)] = 0
    return Beton(
        root=file,
        paths=manifest.images or [str(i) for i in range(count)],
        classes=known,
        label=label,
        sizes=sizes,
        orientation=np.ones(count, np.uint8),
        pointer=tables.position,
        length=tables.length,
        owner=tables.owner,
        file=opened,
        unreadable=unreadable,
    )


def _require_match(file: RecordFile, tables: Tables, manifest: Manifest) -> None:
    """Refuses the manifest of another file."""
    if (
        (manifest.images is not None and len(manifest.images) != len(tables.label))
        or (manifest.classes is not None and int(tables.label.max()) >= len(manifest.classes))
        or (manifest.bytes is not None and manifest.bytes != file.size)
    ):
        path = manifest_path(file.path)
        raise UserError(
            f"{path} belongs to another file than {file.path}: pack the data set again, or remove "
            f"{path.name} to use the images without their names"
        )


def _impossible(file: RecordFile, tables: Tables) -> dict[int, str]:
    """Sample -> reason, of images whose claimed size is 0 or huge and not that of their JPEG."""
    claimed = tables.sizes.astype(np.int64).prod(axis=1)
    reasons = {}
    for index in np.flatnonzero((claimed == 0) | (claimed > _PLAUSIBLE)).tolist():
        height, width = tables.sizes[index].tolist()
        if claimed[index] == 0 or _header_size(file, tables, index) != (height, width):
            reasons[index] = f"claims {width}x{height} pixels, and its JPEG does not"
    return reasons


def _header_size(file: RecordFile, tables: Tables, index: int) -> tuple[int, int] | None:
    """Height and width by the header of a record's image; None if it has none that can be read."""
    try:
        record = file.read(int(tables.position[index]), int(tables.length[index]))
        with open_image(io.BytesIO(record)) as image:
            return image.pil.height, image.pil.width
    except (BadImageError, EOFError, MemoryError):
        return None
