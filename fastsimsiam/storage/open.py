"""Opens a split of a data set, whatever it is stored as."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fastsimsiam.config.evaluation import Split
from fastsimsiam.config.location import spelled, url_of
from fastsimsiam.errors import UserError
from fastsimsiam.storage import (
    arrays,
    arrow,
    beton,
    class_folder,
    image_list,
    imagenet_tars,
    kaggle,
    parquet,
    split_names,
    webdataset,
)
from fastsimsiam.storage.base import Report, Storage
from fastsimsiam.storage.cloud.local_copy import local_copy

__all__ = [
    "has_split",
    "has_val",
    "is_data_set_file",
    "missing_split",
    "open_source",
    "open_split",
    "open_val",
    "whole_or_val",
]


class _OpenSplit(Protocol):
    def __call__(
        self, data: Path, split: str, *, classes: Sequence[str] | None, report: Report | None
    ) -> Storage: ...


@dataclass(frozen=True)
class _Opener:
    """A storage: whether `data` has a split in its form, whether it opens the split, and how.

    `refusal` is the error for whoever wants the images in any order; None: they can be read so.
    """

    has_split: Callable[[Path, str], bool]
    accepts: Callable[[Path, str], bool]
    open_split: _OpenSplit
    refusal: Callable[[Path, str], UserError] | None = None


_PACKED = _Opener(beton.has_split, beton.accepts, beton.open_split)
_CLASS_FOLDERS = _Opener(class_folder.has_split, lambda data, split: True, class_folder.open_split)
# The first that accepts a split opens it. Packed files come before class folders beside them: the user
# has packed them to be used. Class folders accept everything, and report what is missing.
_OPENERS = (
    _PACKED,
    _Opener(imagenet_tars.has_split, imagenet_tars.accepts, imagenet_tars.open_split),
    _Opener(webdataset.has_split, webdataset.accepts, webdataset.open_split),
    _Opener(arrow.has_split, arrow.accepts, arrow.open_split),
    _Opener(parquet.has_split, parquet.accepts, parquet.open_split, parquet.refusal),
    _Opener(arrays.has_split, arrays.accepts, arrays.open_split),
    _Opener(image_list.has_split, image_list.accepts, image_list.open_split),
    _Opener(kaggle.has_split, kaggle.accepts, kaggle.open_split),
    _CLASS_FOLDERS,
)


def has_split(data: Path, split: str) -> bool:
    """Whether `data` contains the split; False for a flat folder and for a packed file itself."""
    with local_copy(data) as local:
        return any(opener.has_split(local, split) for opener in _OPENERS)


def missing_split(data: Path, split: str) -> str:
    """Says that `data` has no folder for a split, and which folders seem to be meant for it."""
    if url := url_of(data):
        return f"{url} has no split {split}"
    return split_names.missing_split(data, split)


def has_val(data: Path, val: Path | None) -> bool:
    """Whether there are validation images: in `data`, or where `--val` says."""
    return val is not None or has_split(data, "val")


def open_val(
    data: Path,
    val: Path | None,
    *,
    classes: Sequence[str] | None = None,
    report: Report | None = None,
) -> Storage:
    """Opens the validation images.

    Args:
        data: the data set.
        val: another data set: its validation split, or all of one without splits; None: that of
            `data`.
        classes: see `open_split`.
        report: see `open_split`.

    Raises:
        UserError: there are none; or see `open_split`.
    """
    if val is None and not has_split(data, "val"):
        told = missing_split(data, "val") if data.is_dir() else f"{spelled(data)} has no split val"
        either = ", or" if ": rename" in told else ":"
        raise UserError(f"{told}{either} pass validation images by --val PATH")
    if val is None:
        return open_split(data, "val", classes=classes, report=report)
    return open_split(val, whole_or_val(val), classes=classes, report=report)


def whole_or_val(data: Path) -> Split:
    """The split of another data set that is evaluated: `val`, or all of one without splits."""
    return "val" if has_split(data, "val") else "train"


def is_data_set_file(path: Path) -> bool:
    """Whether a file holds a data set: a packed file, a tar, an Arrow file; not an image."""
    known = (opener for opener in _OPENERS if opener is not _CLASS_FOLDERS)
    return path.is_file() and any(opener.accepts(path, "train") for opener in known)


def open_split(
    data: Path, split: str, *, classes: Sequence[str] | None = None, report: Report | None = None
) -> Storage:
    """Opens a split, in whatever form it is there.

    Args:
        data: the data set's folder, or a file of images or a list of them: a training split; or the URL
            of one of these, see `cloud/local_copy.py`.
        split: `train` or `val`.
        classes: class names that labels refer to (the training split's); None: the split's own.
        report: receives the progress of reading headers, or of fetching.

    Raises:
        UserError: the split is missing, empty or damaged, or can be read only in its order.
    """
    # The training split is opened first: a run sees the data set as it is then.
    with local_copy(data, again=split == "train", report=report) as local:
        opener = next(opener for opener in _OPENERS if opener.accepts(local, split))
        if opener.refusal:
            raise opener.refusal(local, split)
        return opener.open_split(local, split, classes=classes, report=report)


def open_source(data: Path, split: str | None = None, *, report: Report | None = None) -> Storage:
    """Opens a split that is to be packed: each image is read once, in order.

    As `open_split`, but what can be read in no other order is opened as well, and of packed files only
    one that `data` names: what was packed before may lie beside its source.

    Args:
        data: the data set's folder, or a file, or its URL.
        split: `train` or `val`; None: `train`, or the `val` of a folder with files of nothing else.
        report: receives the progress of reading headers, or of fetching.

    Raises:
        UserError: the split is missing, empty or damaged.
    """
    sources = [opener for opener in _OPENERS if opener not in (_PACKED, _CLASS_FOLDERS)]
    with local_copy(data, again=True, report=report) as local:
        splits = (split,) if split else ("train", "val") if _has_no_folders(local) else ("train",)
        if local.suffix == beton.SUFFIX:  # named itself, to be packed with other options
            return beton.open_split(local, "train", report=report)
        for name in splits:
            for opener in sources:
                if opener.accepts(local, name):
                    return opener.open_split(local, name, classes=None, report=report)
        return class_folder.open_split(local, split or "train", report=report)


def _has_no_folders(data: Path) -> bool:
    """Whether there are files alone: beside class folders, others are what was unpacked."""
    try:
        with os.scandir(data) as entries:
            return not any(entry.is_dir() for entry in entries)
    except OSError:  # a file, or something of which the storage says what is wrong
        return False
