"""Opens a data set, whichever way it is stored: class folders, or packed files."""

from collections.abc import Sequence
from pathlib import Path

from fastsimsiam.storage import class_folder
from fastsimsiam.storage.base import Report, Storage
from fastsimsiam.storage.beton import SUFFIX, open_beton


def has_split(data: Path, split: str) -> bool:
    """Whether `data` holds the split; a flat data set or a packed file has none but train."""
    return (data / f"{split}{SUFFIX}").is_file() or class_folder.has_split(data, split)


def open_split(
    data: Path, split: str, *, classes: Sequence[str] | None = None, report: Report | None = None
) -> Storage:
    """Opens `data/split.beton`, or class folders (see `class_folder.open_split`).

    Args:
        data: the data set's folder, or a packed file, which is the training split.
        split: `train` or `val`.
        classes: the classes that labels refer to (the training split's); None: those found.
        report: told of the progress of reading headers.

    Raises:
        UserError: there is no such split, there is nothing in it, or FFCV is not installed.
    """
    packed = data if data.suffix == SUFFIX and split == "train" else data / f"{split}{SUFFIX}"
    # A packed file wins over folders beside it: somebody took the trouble to make it.
    if packed.is_file() or data.suffix == SUFFIX:
        return open_beton(packed, classes=classes)
    return class_folder.open_split(data, split, classes=classes, report=report)
