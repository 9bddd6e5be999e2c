"""Images that are pixels in an array: .npy and .npz of uint8, CIFAR's own files, arrays in memory.

Loaders read encoded images, so each is given as an uncompressed BMP, which costs microseconds.
"""

import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from fastsimsiam.errors import UserError
from fastsimsiam.storage import cifar
from fastsimsiam.storage.base import Report, blocks_of
from fastsimsiam.storage.labels import NO_LABEL, of_split
from fastsimsiam.storage.names import Names
from fastsimsiam.storage.npy_file import NpyFile, open_npz
from fastsimsiam.storage.system_errors import why_not_read
from fastsimsiam.system.scratch import scratch
from fastsimsiam.system.text import printable

_IMAGES = {
    "train": ("train_images", "x_train", "train_x", "images", "image", "x", "X", "data", "arr_0"),
    "val": ("val_images", "x_val", "val_x", "valid_images", "test_images", "x_test", "test_x"),
}
_LABELS = {
    "train": (
        "train_labels",
        "y_train",
        "train_y",
        "labels",
        "label",
        "y",
        "Y",
        "targets",
        "arr_1",
    ),
    "val": ("val_labels", "y_val", "val_y", "valid_labels", "test_labels", "y_test", "test_y"),
}
"""Names of arrays in .npz files, of MedMNIST, Keras and others."""
SEVERAL_LABELS = "images with several labels, which are not used"
_BMP = struct.Struct("<2sIHHIIiiHHIIiiII")
_GRAY = b"".join(bytes((level, level, level, 0)) for level in range(256))
_LARGEST_SIDE = 1 << 15


class Images(Protocol):
    """An array, or a file that is read like one, image by image."""

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def dtype(self) -> np.dtype[Any]: ...  # noqa: D102
    def __getitem__(self, index: int, /) -> npt.NDArray[Any]: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class ArrayImages:
    """A `Storage` of an array; attributes as there.

    Attributes:
        images: (N, H, W, 3), (N, H, W, 1), (N, H, W) or (N, 3, H, W) uint8.
        channels_first: whether an image is (3, H, W).
    """

    root: Path
    images: "Images"
    channels_first: bool
    paths: Sequence[str]
    classes: Sequence[str]
    label: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int32]
    orientation: npt.NDArray[np.uint8]
    passed_over: Mapping[str, int] = field(default_factory=dict)
    unreadable: ClassVar[Mapping[int, str]] = {}
    is_packed: ClassVar[bool] = True

    @property
    def bytes_total(self) -> int:
        """Bytes of the pixels."""
        return int(np.prod(self.images.shape, dtype=np.int64))

    @property
    def blocks(self) -> npt.NDArray[np.int64] | None:
        """See `Storage`; None for arrays in memory."""
        if not isinstance(self.images, NpyFile):
            return None
        row = int(np.prod(self.images.shape[1:], dtype=np.int64))
        return blocks_of(np.full(len(self), row), [0, len(self)])

    def __len__(self) -> int:
        """Number of images."""
        return len(self.label)

    def file_of(self, index: int) -> Path:
        """The file of the array, or where it would be."""
        del index
        return self.root

    def name(self, index: int) -> str:
        """Array and position of an image."""
        return printable(f"{self.root}: image {index}")

    def read(self, index: int) -> memoryview:
        """An image as BMP, in memory that this thread's next call overwrites.

        Raises:
            UserError: the file of the array was cut off, or the system cannot read it.
        """
        image = self.images[index]
        if self.channels_first:
            image = np.moveaxis(image, 0, -1)
        height, width = image.shape[:2]
        channels = 3 if image.shape[2:] == (3,) else 1
        row = -(-channels * width // 4) * 4
        start = _BMP.size + (len(_GRAY) if channels == 1 else 0)
        buffer = scratch("file", start + row * height)[: start + row * height]
        # A negative height: the first row comes first.
        header = _BMP.pack(
            *(b"BM", len(buffer), 0, 0, start, 40, width, -height, 1, 8 * channels, 0),
            *(row * height, 0, 0, 256 if channels == 1 else 0, 0),
        )
        buffer[: _BMP.size] = np.frombuffer(header, np.uint8)
        rows = buffer[start:].reshape(height, row)
        rows[:, channels * width :] = 0
        pixels = rows[:, : channels * width]
        if channels == 1:
            buffer[_BMP.size : start] = np.frombuffer(_GRAY, np.uint8)
            pixels[:] = image.reshape(height, width)
        else:
            pixels.reshape(height, width, 3)[:] = image[..., ::-1]  # blue comes first
        return buffer.data

    def will_need(self, index: int) -> None:
        """Nothing to do."""

    def require_readable(self, option: str = "skip") -> None:
        """Refuses nothing: pixels are not damaged."""


def has_split(data: Path, split: str) -> bool:
    """Whether `data` holds arrays of a split."""
    if data.suffix == ".npz":
        try:
            with open_npz(data) as arrays:
                return _key(arrays, _IMAGES.get(split, ())) is not None
        except (OSError, ValueError, EOFError, zipfile.BadZipFile):
            return False
    return cifar.has_split(data, split) or _file(data, split) is not None


def accepts(data: Path, split: str) -> bool:
    """Whether a split is to be opened as arrays."""
    if data.suffix in (".npy", ".npz") and not data.is_dir():
        return split == "train" or has_split(data, split)
    return has_split(data, split)


def open_split(
    data: Path, split: str, *, classes: Sequence[str] | None = None, report: Report | None = None
) -> ArrayImages:
    """Opens arrays.

    Args:
        data: a .npy of images; a .npz of images and labels; a folder with `train.npy` or `train.npz`,
            and the same of `val`, and labels of a .npy in `train_labels.npy`; a folder of CIFAR.
        split: `train` or `val`.
        classes: class names that labels refer to (the training split's); None: the split's own.
        report: unused: opening takes no time.

    Raises:
        UserError: a file cannot be read, or holds no images of uint8.
    """
    del report
    if cifar.has_split(data, split):
        pixels, numbers, names = cifar.read_split(data, split)
        return array_images(data, pixels, numbers, classes, own=names)
    file = data if data.suffix in (".npy", ".npz") else _file(data, split)
    assert file is not None
    named = file
    try:
        if file.suffix == ".npy":
            images = NpyFile(file)
            beside = file.with_name(f"{file.stem}_labels.npy")
            if not beside.is_file():
                return array_images(file, images, None, classes)
            named = beside
            labels = np.load(beside, allow_pickle=False)
            return array_images(file, images, labels, classes)
        with open_npz(file) as arrays:
            key, of_labels = _key(arrays, _IMAGES[split]), _key(arrays, _LABELS[split])
            if key is None and file != data:  # a file for each split
                key, of_labels = _key(arrays, _IMAGES["train"]), _key(arrays, _LABELS["train"])
            if key is None:
                held = printable(", ".join(arrays.files))[:200]
                raise UserError(
                    f"{printable(file)} holds the arrays {held}, and no images: call them images, or "
                    "x_train"
                )
            labels = arrays[of_labels] if of_labels else None
            return array_images(file, arrays[key], labels, classes)
    except UserError:
        raise
    except MemoryError as error:
        raise UserError(f"{printable(file)} does not fit the memory: save it as .npy") from error
    except OSError as error:
        if error.errno is not None:
            raise UserError(why_not_read(named, error)) from error
        raise _damaged(named, error) from error
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, KeyError) as error:
        raise _damaged(named, error) from error


def array_images(
    root: Path,
    images: "Images",
    labels: npt.NDArray[Any] | None = None,
    classes: Sequence[str] | None = None,
    *,
    own: Sequence[str] | None = None,
) -> ArrayImages:
    """A storage of an array.

    Args:
        root: the array's file, or its name in messages.
        images: (N, H, W, 3), (N, H, W, 1), (N, H, W) or (N, 3, H, W) uint8.
        labels: (N,) or (N, 1) whole numbers from 0; None: there are none. Of several labels an image,
            none is used.
        classes: class names that labels refer to (the training split's); None: the array's own.
        own: class names of the array; None: the numbers.

    Raises:
        UserError: the array holds no images of uint8, or the labels are not as described.
    """
    name, shape = printable(root), images.shape
    if images.dtype != np.uint8 or len(shape) not in (3, 4):
        raise UserError(
            f"{name} has the shape {shape} and the type {images.dtype}: give images of uint8, "
            "(N, H, W, 3), with values from 0 to 255"
        )
    channels_first = len(shape) == 4 and shape[3] not in (1, 3)
    if channels_first:
        shape = (shape[0], *shape[2:], shape[1])
    if len(shape) == 4 and shape[3] not in (1, 3):
        raise UserError(f"{name} has the shape {images.shape}: give images of 1 or 3 channels")
    count, height, width = shape[:3]
    if not count or not 0 < min(height, width) <= max(height, width) <= _LARGEST_SIDE:
        raise UserError(f"{name} has the shape {images.shape}: there is no image in it")
    passed_over: dict[str, int] = {}
    label = np.full(count, NO_LABEL, np.int64)
    if labels is not None:
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if len(labels) != count or labels.ndim > 2 or labels.dtype.kind not in "iub":
            raise UserError(
                f"{name} has {count} images, and labels of the shape {labels.shape} and the type "
                f"{labels.dtype}: give a whole number for each image"
            )
        if labels.ndim == 2:
            passed_over[SEVERAL_LABELS] = count
        else:
            label = labels.astype(np.int64)
            largest = (len(own) if own is not None else max(count, 1 << 20)) - 1
            if label.min() < 0 or label.max() > largest:
                raise UserError(
                    f"{name} has labels from {label.min()} to {label.max()}: give them from 0 to "
                    f"{largest}"
                )
    if own is None:
        own = [str(number) for number in range(int(label.max()) + 1)]
    known, label = of_split(root, own, label, classes)
    return ArrayImages(
        root=root,
        images=images,
        channels_first=channels_first,
        paths=Names.of(f"{root.name}/{number}" for number in range(count)),
        classes=known,
        label=label,
        sizes=np.tile(np.array([[height, width]], np.int32), (count, 1)),
        orientation=np.ones(count, np.uint8),
        passed_over=passed_over,
    )


def _key(arrays: Any, names: Sequence[str]) -> str | None:
    """The first of some names that is among the arrays of a file."""
    return next((name for name in names if name in arrays.files), None)


def _file(data: Path, split: str) -> Path | None:
    """The file of a split in a folder."""
    files = (data / f"{split}{suffix}" for suffix in (".npy", ".npz"))
    try:
        return next((file for file in files if file.is_file()), None)
    except OSError:  # the storage that is opened instead says why
        return None


def _damaged(file: Path, error: Exception) -> UserError:
    return UserError(
        f"{printable(file)} is damaged or no file of NumPy ({error}): save it again, by numpy.save or "
        "numpy.savez"
    )
