"""FFCV's packed files (.beton): a table of sizes and labels, then a storage record, a JPEG, per image.

`fastsimsiam pack` also writes a manifest, FILE.json, with the names of classes and images. FFCV reads
the table, so that opening a file needs the optional library FFCV; any loader can then read the records.
Format: https://docs.ffcv.io/ffcv_examples/custom_datasets.html (images are its RGBImageField).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fastsimsiam.errors import UserError
from fastsimsiam.storage.base import Report, Storage
from fastsimsiam.storage.read_ahead import read_ahead
from fastsimsiam.system.optional import require_ffcv

SUFFIX = ".beton"
MODE_JPEG = 0
"""Mode of an image in the table: its record is a JPEG. Mode 1: raw pixels."""


def manifest_path(file: Path) -> Path:
    """The path of a packed file's manifest."""
    return file.with_name(file.name + ".json")


@dataclass(frozen=True, kw_only=True, eq=False)
class Beton:
    """A `Storage` of one packed file; attributes as there.

    Attributes:
        root: the packed file.
        paths: names of the packed images, from the manifest, or else their numbers.
        classes: class names, from the manifest, or else their numbers.
        orientation: (N,) uint8, all 1: packed images are upright.
        pointer: (N,) int64 position of each record in the file.
        length: (N,) int64 bytes of each record.
        page_size: bytes of a page; no record crosses a page's end.
    """

    root: Path
    paths: Sequence[str]
    classes: Sequence[str]
    label: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int32]
    orientation: npt.NDArray[np.uint8]
    pointer: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    page_size: int
    _bytes: npt.NDArray[np.uint8]
    is_one_file: ClassVar[bool] = True
    unreadable: ClassVar[Mapping[int, str]] = MappingProxyType({})
    passed_over: ClassVar[Mapping[str, int]] = MappingProxyType({})

    @property
    def bytes_total(self) -> int:
        """Total size of the records."""
        return int(self.length.sum())

    def __len__(self) -> int:
        """Number of images."""
        return len(self.label)

    def name(self, index: int) -> str:
        """File, record and original name of an image, for reports."""
        return f"{self.root}, record {index} ({self.paths[index]})"

    def read(self, index: int) -> memoryview:
        """The bytes of a record, in the page cache."""
        start = int(self.pointer[index])
        return self._bytes[start : start + int(self.length[index])].data

    def will_need(self, index: int) -> None:
        """Starts reading a record into the page cache."""
        # Not by `madvise` of the mapping, which holds the GIL.
        read_ahead(self.root, int(self.pointer[index]), int(self.length[index]))

    def require_readable(self) -> None:
        """Refuses nothing: every image was decoded when it was packed."""


def read_manifest(file: Path) -> dict[str, Any] | None:
    """The manifest of a packed file; None if it has none.

    Raises:
        UserError: the manifest is damaged.
    """
    path = manifest_path(file)
    try:
        manifest = json.loads(path.read_text())
        return manifest if isinstance(manifest, dict) else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): pack the data set again") from error


def as_beton(storage: Storage) -> Beton | None:
    """`storage` as a `Beton`; None if it is another storage."""
    return storage if isinstance(storage, Beton) else None


def has_split(data: Path, split: str) -> bool:
    """Whether `data` has a packed file of the split."""
    return (data / f"{split}{SUFFIX}").is_file()


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
        UserError: the file is missing, damaged or holds no JPEGs, has a class that is not in
            `classes`, or FFCV is not installed.
    """
    if not file.is_file():
        raise UserError(f"{file} does not exist: make it with fastsimsiam pack SRC {file}")
    require_ffcv(f"reading {file}")
    from ffcv.fields import IntField, RGBImageField
    from ffcv.reader import Reader

    try:
        reader = Reader(str(file))
        fields = [
            next(i for i, field in enumerate(reader.handlers.values()) if isinstance(field, kind))
            for kind in (RGBImageField, IntField)
        ]
    except (AssertionError, IndexError, KeyError, ValueError, StopIteration) as error:
        raise UserError(
            f"{file} is not a complete packed file of images and labels: pack the data set again"
        ) from error
    image, label = (reader.metadata[f"f{field}"] for field in fields)
    table = reader.alloc_table[np.argsort(reader.alloc_table["ptr"])]
    row = np.searchsorted(table["ptr"], image["data_ptr"])
    size = file.stat().st_size
    if (
        len(table) == 0
        or (row >= len(table)).any()
        or (table["ptr"][row] != image["data_ptr"]).any()
        or (table["ptr"] + table["size"] > size).any()
    ):
        raise UserError(f"{file} is truncated or damaged: pack the data set again")
    if (image["mode"] != MODE_JPEG).any():
        raise UserError(f"{file} holds raw pixels, not JPEGs: pack it with fastsimsiam pack")
    manifest = read_manifest(file) or {}
    file_classes = manifest.get("classes") or [str(i) for i in range(int(label.max()) + 1)]
    names = manifest.get("images") or [str(i) for i in range(len(label))]
    if len(names) != len(label) or int(label.max()) >= len(file_classes):
        raise UserError(f"{manifest_path(file)} belongs to another file than {file}: pack it again")
    return Beton(
        root=file,
        paths=names,
        classes=file_classes if classes is None else list(classes),
        label=_translate(file, label.astype(np.int64), file_classes, classes),
        sizes=np.stack([image["height"], image["width"]], axis=1).astype(np.int32),
        orientation=np.ones(len(label), np.uint8),
        pointer=image["data_ptr"].astype(np.int64),
        length=table["size"][row].astype(np.int64),
        page_size=int(reader.page_size),
        _bytes=np.memmap(file, np.uint8, mode="r"),
    )


def _translate(
    file: Path,
    label: npt.NDArray[np.int64],
    file_classes: Sequence[str],
    classes: Sequence[str] | None,
) -> npt.NDArray[np.int64]:
    """Labels, positions in `file_classes`, as positions in `classes`."""
    if classes is None:
        return label
    number = {name: position for position, name in enumerate(classes)}
    names = [file_classes[i] for i in np.unique(label).tolist()]
    unknown = [name for name in names if name not in number]
    if unknown:
        raise UserError(f"{file} has a class {unknown[0]} that the training split does not have")
    return np.array([number.get(name, -1) for name in file_classes], np.int64)[label]
