"""Class folders of image files: `ROOT/train/CLASS/*.jpg`, or flat, `ROOT/CLASS/*.jpg`.

A folder of images without class folders is read as well: its images have no labels.
"""

import stat
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fastsimsiam.errors import UserError
from fastsimsiam.storage import passed_over as kinds
from fastsimsiam.storage.base import Report
from fastsimsiam.storage.header_index import read_headers
from fastsimsiam.storage.image_files import ImageFiles, image_files
from fastsimsiam.storage.labels import NO_CLASSES
from fastsimsiam.storage.listing import Listing, beside_splits, list_images
from fastsimsiam.storage.names import Names
from fastsimsiam.storage.split_names import (
    find_split,
    missing_split,
    other_splits,
    splits_among,
    what_is,
)
from fastsimsiam.storage.system_errors import why_not_read
from fastsimsiam.system.text import printable


def has_split(data: Path, split: str) -> bool:
    """Whether `data` has a folder for the split; False for a flat data set.

    Raises:
        UserError: `data` cannot be read, or has several folders for the split.
    """
    return find_split(data, split) is not None


def open_split(
    data: Path, split: str, *, classes: Sequence[str] | None = None, report: Report | None = None
) -> ImageFiles:
    """Opens the folder of a split, or `data` itself if it is a flat data set and `split` is `train`.

    Args:
        data: the data set's folder.
        split: `train` or `val`; `split_names.SPELLINGS` has the names of their folders.
        classes: class names that labels refer to (the training split's); None: the split's own.
        report: receives the progress of reading headers.

    Raises:
        UserError: the folder does not exist, holds no images, has folders of splits where classes
            should be, or a class that is not in `classes`.
    """
    root = _root(data, split)
    listing = _list(root, flat=root == data)
    if not listing.files:
        return _without_classes(root, listing, classes, report)
    paths = [path for path, _, _ in listing.files]
    folders = [path.split("/", 1)[0] for path in paths]
    shown = {folder: printable(folder) for folder in set(folders)}
    if classes is not None and tuple(classes) == NO_CLASSES:
        shown = dict.fromkeys(shown, NO_CLASSES[0])
    known = sorted(set(shown.values())) if classes is None else list(classes)
    number = {name: position for position, name in enumerate(known)}
    unknown = sorted(folder for folder, name in shown.items() if name not in number)
    if unknown:
        raise UserError(_unknown_class(data, root / unknown[0], len(unknown)))
    label = {folder: number[name] for folder, name in shown.items()}
    headers = read_headers(root, listing.files, listing.out_of_reach, report)
    passed_over = dict(listing.passed_over)
    if root != data and split == "train":
        passed_over |= beside_splits(data)
    return ImageFiles(
        root=root,
        paths=Names.of(paths),
        classes=known,
        label=np.array([label[folder] for folder in folders], dtype=np.int64),
        sizes=headers.rows[:, :2].astype(np.int32),
        orientation=headers.rows[:, 2].astype(np.uint8),
        bytes_total=sum(size for _, size, _ in listing.files),
        broken=headers.broken,
        out_of_reach=headers.out_of_reach,
        passed_over=passed_over,
    )


def _root(data: Path, split: str) -> Path:
    """The folder that holds the class folders of a split."""
    _require_folder(data)
    root = find_split(data, split)
    if root is not None:
        return root
    if split != "train" or other_splits(data):
        fix = ": make one with a folder for each class"
        raise UserError(missing_split(data, split, otherwise=fix))
    return data


def _require_folder(data: Path) -> None:
    try:
        if stat.S_ISDIR(data.stat().st_mode):
            return
    except (FileNotFoundError, NotADirectoryError) as error:
        if not data.is_symlink():
            raise UserError(
                f"data folder {printable(data)} does not exist: pass another, or fetch a data set with "
                "one of the scripts in datasets/"
            ) from error
    except OSError as error:
        raise UserError(why_not_read(data, error)) from error
    raise UserError(
        f"{printable(data)} is {what_is(data)}, not a folder: pass the folder of a data set, unpacked"
    )


def _without_classes(
    root: Path, listing: Listing, classes: Sequence[str] | None, report: Report | None
) -> ImageFiles:
    """The images that lie in the folder of a split itself."""
    passed_over = dict(listing.passed_over)
    passed_over.pop(kinds.IMAGES_BESIDE_CLASSES)
    return image_files(
        root,
        listing.loose,
        listing.out_of_reach,
        [None] * len(listing.loose),
        classes,
        report,
        passed_over=passed_over,
    )


def _list(root: Path, *, flat: bool) -> Listing:
    """The images of a split.

    Args:
        root: the folder of the class folders.
        flat: whether `root` is the whole data set.

    Raises:
        UserError: there are none, or folders of splits are where classes should be.
    """
    listing = list_images(root)
    where = printable(root)
    if not (listing.files or listing.loose):
        there = f" (it holds {kinds.listed(listing.passed_over)})" if listing.passed_over else ""
        convert = "; convert them to JPEG or PNG" if kinds.pictures(listing.passed_over) else ""
        raise UserError(
            f"no image files under {where}{there}: expected {where}/CLASS/IMAGE.jpg, or "
            f"{where}/IMAGE.jpg without classes{convert}"
        )
    _refuse_splits(root, listing.folders, flat=flat)
    return listing


def _refuse_splits(root: Path, folders: Sequence[str], *, flat: bool) -> None:
    """Refuses folders of splits below `root`, which would become classes or parts of classes."""
    below: dict[str, set[str]] = defaultdict(set)
    for folder in folders:
        while folder:
            above, _, name = folder.rpartition("/")
            below[above].add(name)
            folder = above
    holders = {folder: splits for folder in below if (splits := splits_among(below[folder]))}
    # A folder with images of its own beside `train/` alone is a class.
    with_images = set(folders)
    holders = {
        folder: splits
        for folder, splits in holders.items()
        if len(splits) > 1 or folder not in with_images
    }
    if not holders:
        return
    folder = min(holders, key=lambda path: (path.count("/"), path))
    first = root / folder if folder else root
    names = " and ".join(f"{printable(name)}/" for name in holders[folder])
    others = len(holders) - 1
    more = f", as {others} other folder{'s do' if others > 1 else ' does'}" if others else ""
    training = find_split(first, "train")
    if flat and len(holders) == 1 and training and below.get(f"{folder}/{training.name}"):
        fix = f"pass {printable(first)} as the data set"
    else:
        base = root if flat else root.parent
        fix = f"lay the images out as {printable(base)}/train/CLASS and {printable(base)}/val/CLASS"
    raise UserError(f"{printable(first)} holds {names}{more}, which are splits, not classes: {fix}")


def _unknown_class(data: Path, folder: Path, number: int) -> str:
    """The message about a class folder of another split that the training split does not have."""
    more = f" (and {number - 1} more)" if number > 1 else ""
    training = find_split(data, "train")
    if training and (training / folder.name).is_dir():
        fix = f"add images to {printable(training / folder.name)}, or move it out of the data set"
        return (
            f"{printable(folder)} is a class of which the training split has no images{more}: {fix}"
        )
    return (
        f"{printable(folder)} is a class that the training split does not have{more}: add it there, or "
        "move the folder out of the data set"
    )
