"""ImageNet as Kaggle has it: `ILSVRC/Data/CLS-LOC/{train,val}`, where `val` has no class folders.

The classes of the validation images are in LOC_val_solution.csv, beside `ILSVRC`.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

from fastsimsiam.errors import UserError
from fastsimsiam.storage import class_folder
from fastsimsiam.storage.base import Report
from fastsimsiam.storage.image_files import ImageFiles, image_files
from fastsimsiam.storage.listing import list_images
from fastsimsiam.storage.passed_over import IMAGES_BESIDE_CLASSES, tell
from fastsimsiam.storage.system_errors import why_not_read
from fastsimsiam.system.text import printable

_FOLDER = "CLS-LOC"
_BELOW = (Path("ILSVRC", "Data", _FOLDER), Path("Data", _FOLDER), Path(_FOLDER))
_SOLUTION = "LOC_val_solution.csv"


def has_split(data: Path, split: str) -> bool:
    """Whether `data` has a split of Kaggle's ImageNet."""
    return accepts(data, split)


def accepts(data: Path, split: str) -> bool:
    """Whether a split is to be opened as Kaggle's."""
    folder = _folder(data)
    return folder is not None and (folder / split).is_dir()


def open_split(
    data: Path, split: str, *, classes: Sequence[str] | None = None, report: Report | None = None
) -> ImageFiles:
    """Opens a split.

    Args:
        data: the folder that was unpacked, or one on the way to CLS-LOC.
        split: `train` or `val`.
        classes: class names that labels refer to (the training split's); None: the split's own.
        report: receives the progress of reading headers.

    Raises:
        UserError: as for class folders; or the file with the classes of `val` is missing or damaged.
    """
    folder = _folder(data)
    assert folder is not None
    root = folder / split
    listing = list_images(root) if split == "val" else None
    if listing is None or listing.files or not listing.loose:  # sorted into class folders
        return class_folder.open_split(folder, split, classes=classes, report=report)
    solution, class_of = _classes(folder)
    labels = [class_of.get(path.rpartition(".")[0]) for path, _, _ in listing.loose]
    if unknown := [
        path for (path, _, _), label in zip(listing.loose, labels, strict=True) if not label
    ]:
        raise UserError(
            f"{printable(root / unknown[0])} is not in {_SOLUTION}: remove it, or fetch the file again"
        )
    tell(
        root, [f"{printable(root)} is Kaggle's ImageNet: its classes are in {printable(solution)}"]
    )
    return image_files(
        root,
        listing.loose,
        listing.out_of_reach,
        labels,
        classes,
        report,
        passed_over={k: n for k, n in listing.passed_over.items() if k != IMAGES_BESIDE_CLASSES},
    )


def _folder(data: Path) -> Path | None:
    """The folder CLS-LOC; None where there is none."""
    try:
        if data.resolve().name == _FOLDER and data.is_dir():
            return data
    except OSError:  # a loop of links; class folders say what is wrong
        return None
    return next((data / below for below in _BELOW if (data / below).is_dir()), None)


def _classes(folder: Path) -> tuple[Path, dict[str, str]]:
    """The file of the classes, and name of a validation image without its suffix -> class."""
    places = [folder, *folder.resolve().parents[:3]]
    file = next((place / _SOLUTION for place in places if (place / _SOLUTION).is_file()), None)
    if file is None:
        raise UserError(
            f"{printable(folder / 'val')} has no class folders, as Kaggle's ImageNet: put its "
            f"{_SOLUTION} into {printable(folder)} or beside ILSVRC"
        )
    try:
        with open(file, encoding="utf-8-sig", newline="") as handle:
            # "n03995372 85 1 499 272 ...": a class and a box, for each object.
            rows = csv.DictReader(handle)
            return file, {row["ImageId"]: row["PredictionString"].split()[0] for row in rows}
    except OSError as error:
        raise UserError(why_not_read(file, error)) from error
    except (csv.Error, KeyError, IndexError, AttributeError, ValueError) as error:
        raise UserError(
            f"{printable(file)} is no file of ImageNet's classes ({error!r}): fetch it again"
        ) from error
