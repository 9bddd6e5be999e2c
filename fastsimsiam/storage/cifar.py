"""CIFAR-10 and CIFAR-100 as they are downloaded and unpacked, the Python and the binary version.

https://www.cs.toronto.edu/~kriz/cifar.html describes both. The Python version is made of pickles: only
arrays, dictionaries, lists, numbers and texts are taken from them.
"""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastsimsiam.errors import UserError
from fastsimsiam.storage.system_errors import why_not_read
from fastsimsiam.system.text import printable

_PIXELS = 3 * 32 * 32
_ALLOWED = {
    (module, name)
    for module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
    for name in ("ndarray", "dtype", "_reconstruct")
}


@dataclass(frozen=True)
class _Form:
    """A version: its files of each split, that of the class names, and the bytes of labels.

    Attributes:
        train, val: names of files.
        meta: name of the file with the names of the classes.
        key: of these names, and of labels, in pickles.
        label_bytes: labels before each image in the binary version, of which the last is used; 0 for
            pickles.
    """

    train: Sequence[str]
    val: Sequence[str]
    meta: str
    key: tuple[bytes, bytes]
    label_bytes: int


_BATCHES = [f"data_batch_{number}" for number in range(1, 6)]
_FINE = (b"fine_label_names", b"fine_labels")
_FORMS = (
    _Form(_BATCHES, ["test_batch"], "batches.meta", (b"label_names", b"labels"), 0),
    _Form(["train"], ["test"], "meta", _FINE, 0),
    _Form([f"{name}.bin" for name in _BATCHES], ["test_batch.bin"], "batches.meta.txt", _FINE, 1),
    _Form(["train.bin"], ["test.bin"], "fine_label_names.txt", _FINE, 2),
)


def has_split(data: Path, split: str) -> bool:
    """Whether a folder is one of CIFAR's; both splits belong to it."""
    return split in ("train", "val") and _form(data) is not None


def read_split(
    data: Path, split: str
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], list[str]]:
    """Reads a split into memory.

    Returns:
        Images (N, 32, 32, 3), labels (N,) and names of the classes.

    Raises:
        UserError: a file is missing or damaged.
    """
    form = _form(data)
    assert form is not None
    names = form.train if split == "train" else form.val
    parts = [_read(data / name, form) for name in names]
    images = np.concatenate([images for images, _ in parts])
    images = np.ascontiguousarray(images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return images, np.concatenate([label for _, label in parts]), _classes(data / form.meta, form)


def _form(data: Path) -> _Form | None:
    try:
        return next(
            (
                form
                for form in _FORMS
                if (data / form.meta).is_file() and (data / form.train[0]).is_file()
            ),
            None,
        )
    except OSError:  # the storage that is opened instead says why
        return None


def _read(file: Path, form: _Form) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Pixels (N, 3072) and labels (N,) of a file."""
    if form.label_bytes:
        content = np.frombuffer(_bytes(file), np.uint8)
        row = form.label_bytes + _PIXELS
        if not len(content) or len(content) % row:
            raise _damaged(file, f"{len(content)} bytes are no multiple of {row}")
        rows = content.reshape(-1, row)
        return rows[:, form.label_bytes :], rows[:, form.label_bytes - 1].astype(np.int64)
    pickled = _unpickled(file)
    images, labels = pickled.get(b"data"), pickled.get(form.key[1])
    if (
        not isinstance(images, np.ndarray)
        or images.dtype != np.uint8
        or images.ndim != 2
        or images.shape[1] != _PIXELS
        or not isinstance(labels, list)
        or len(labels) != len(images)
        or not all(isinstance(label, int) for label in labels)
    ):
        raise _damaged(file, "it holds no images and labels of CIFAR")
    return images, np.array(labels, np.int64)


def _classes(file: Path, form: _Form) -> list[str]:
    names: Any = _bytes(file).split() if form.label_bytes else _unpickled(file).get(form.key[0], [])
    if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
        raise _damaged(file, "it holds no names of classes")
    return [name.decode(errors="replace") for name in names]


class _Unpickler(pickle.Unpickler):
    """Takes nothing but what CIFAR's files are made of."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # bytes, as Python 3 writes them for Python 2
            return lambda text, encoding: text.encode("latin-1")
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it holds {module}.{name}")
        return super().find_class(module, name)


def _unpickled(file: Path) -> dict[bytes, Any]:
    try:
        with open(file, "rb") as handle:
            content = _Unpickler(handle, encoding="bytes").load()
    except OSError as error:
        raise UserError(why_not_read(file, error)) from error
    except Exception as error:  # a damaged pickle may raise anything
        raise _damaged(file, str(error) or type(error).__name__) from error
    if not isinstance(content, dict):
        raise _damaged(file, "it holds no dictionary")
    return content


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(why_not_read(file, error)) from error


def _damaged(file: Path, reason: str) -> UserError:
    return UserError(
        f"{printable(file)} is damaged or no file of CIFAR ({reason}): unpack the archive again"
    )
