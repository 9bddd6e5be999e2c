"""FFCV's packed files (.beton): JPEGs one after the other, with sizes and labels in front.

Beside a file that `fastsimsiam pack` wrote lies a manifest, FILE.json, with the names of classes and
images. FFCV reads the format; this module needs it, and nothing else of the package does but its
loader. Format: https://docs.ffcv.io/ffcv_examples/custom_datasets.html (images are its RGBImageField).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fastsimsiam.errors import UserError
from fastsimsiam.storage.base import Storage
from fastsimsiam.storage.read_ahead import read_ahead
from fastsimsiam.system.optional import require_ffcv

SUFFIX = ".beton"
MODE_JPEG = 0
"""In the metadata of an image: its record is a JPEG. 1: raw pixels."""


def manifest_path(file: Path) -> Path:
    """Where the manifest of a packed file lies."""
    return file.with_name(file.name + ".json")


@dataclass(frozen=True, kw_only=True, eq=False)
class Beton:
    """The images of one packed file.

    Attributes:
        root: the file.
        paths: names of the images: those they were packed from, or their numbers.
        classes: names of the classes.
        label: (N,) int64.
        sizes: (N, 2) int32 height and width in pixels.
        orientation: (N,) uint8, all 1: packed images are upright.
        pointer: (N,) position of each record in the file.
        length: (N,) its bytes.
        page_size: records lie within pages of this many bytes.
        is_one_file: True.
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

    @property
    def bytes_total(self) -> int:
        """Size of all records together."""
        return int(self.length.sum())

    def __len__(self) -> int:
        """Number of images."""
        return len(self.label)

    def name(self, index: int) -> str:
        """File, record and original name of a sample, for reports."""
        return f"{self.root}, record {index} ({self.paths[index]})"

    def read(self, index: int) -> memoryview:
        """The JPEG of a record, where it lies in the page cache."""
        start = int(self.pointer[index])
        return self._bytes[start : start + int(self.length[index])].data

    def will_need(self, index: int) -> None:
        """Has the system fetch a record, without waiting for it."""
        # Not by its mapping: Python's `madvise` holds the interpreter's lock.
        read_ahead(self.root, int(self.pointer[index]), int(self.length[index]))

    def require_readable(self) -> None:
        """Nothing to refuse: what is packed was decoded."""


def read_manifest(file: Path) -> dict[str, Any] | None:
    """The manifest beside a packed file; None where there is none.

    Raises:
        UserError: it is damaged.
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
    """The storage as what FFCV needs to know of it; None if it is no packed file."""
    return storage if isinstance(storage, Beton) else None


def open_beton(file: Path, *, classes: Sequence[str] | None = None) -> Beton:
    """Opens a packed file, one of `fastsimsiam pack` or another with JPEGs and integer labels.

    Args:
        file: it.
        classes: the classes that labels refer to (the training split's); None: the file's own.

    Raises:
        UserError: it is missing, damaged or of another kind, or FFCV is not installed.
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
            f"{file} is no whole packed file of images and labels: pack the data set again"
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
        raise UserError(f"{file} is cut short or damaged: pack the data set again")
    if (image["mode"] != MODE_JPEG).any():
        raise UserError(f"{file} holds raw pixels, not JPEGs: pack it with fastsimsiam pack")
    manifest = read_manifest(file) or {}
    own = manifest.get("classes") or [str(i) for i in range(int(label.max()) + 1)]
    names = manifest.get("images") or [str(i) for i in range(len(label))]
    if len(names) != len(label) or int(label.max()) >= len(own):
        raise UserError(f"{manifest_path(file)} is not the manifest of {file}: pack it again")
    return Beton(
        root=file,
        paths=names,
        classes=own if classes is None else list(classes),
        label=_translate(file, label.astype(np.int64), own, classes),
        sizes=np.stack([image["height"], image["width"]], axis=1).astype(np.int32),
        orientation=np.ones(len(label), np.uint8),
        pointer=image["data_ptr"].astype(np.int64),
        length=table["size"][row].astype(np.int64),
        page_size=int(reader.page_size),
        _bytes=np.memmap(file, np.uint8, mode="r"),
    )


def _translate(
    file: Path, label: npt.NDArray[np.int64], own: Sequence[str], classes: Sequence[str] | None
) -> npt.NDArray[np.int64]:
    """Labels as positions in `classes`."""
    if classes is None:
        return label
    number = {name: position for position, name in enumerate(classes)}
    strange = [own[i] for i in np.unique(label).tolist() if own[i] not in number]
    if strange:
        raise UserError(f"{file} has a class {strange[0]} that the training split does not have")
    return np.array([number.get(name, -1) for name in own], np.int64)[label]
