"""Class names of labels: those of several files as one list, and those of another split."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastsimsiam.errors import UserError
from fastsimsiam.system.text import printable

NO_CLASSES = ("unlabeled",)
"""Classes of images without labels: all are of one class, so that no score says anything."""
NO_LABEL = -1

Labels = npt.NDArray[np.int64]


def in_order(names: set[str]) -> list[str]:
    """Class names, sorted; by value where all are numbers."""
    if all(name.isascii() and name.isdigit() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def merged(parts: Sequence[tuple[Sequence[str], Labels]]) -> tuple[list[str], Labels]:
    """One list of classes, and the labels of all parts by it.

    Args:
        parts: class names, and labels that are positions among them or `NO_LABEL`; classes that no
            label is of are left out.
    """
    used = [np.unique(label[label != NO_LABEL]).tolist() for _, label in parts]
    names = in_order(
        {classes[i] for (classes, _), i_s in zip(parts, used, strict=True) for i in i_s}
    )
    number = {name: position for position, name in enumerate(names)}
    labels = [
        renumbered(label, [number.get(name, NO_LABEL) for name in classes])
        for classes, label in parts
    ]
    return names, np.concatenate(labels) if labels else np.zeros(0, np.int64)


def renumbered(label: Labels, numbers: Sequence[int]) -> Labels:
    """Labels by another list of classes.

    Args:
        label: (N,) labels, or `NO_LABEL`.
        numbers: the new number of each class.
    """
    if list(numbers) == list(range(len(numbers))):
        return label
    # The last entry is that of NO_LABEL, which is -1.
    return np.array([*numbers, NO_LABEL], np.int64)[label]


def of_split(
    where: Path, own: Sequence[str], label: Labels, classes: Sequence[str] | None
) -> tuple[list[str], Labels]:
    """Classes and labels as the training split numbers them.

    Args:
        where: the images' folder or file, for messages.
        own: class names of the split.
        label: (N,) positions in `own`, or `NO_LABEL`.
        classes: class names of the training split; None: this is the training split.

    Returns:
        `NO_CLASSES` and zeros where no image has a label.

    Raises:
        UserError: some images have labels and others none, or a class is not in `classes`.
    """
    missing = int(np.count_nonzero(label == NO_LABEL))
    if 0 < missing < len(label):
        raise UserError(
            f"{printable(where)}: {missing} of {len(label)} images have no label, and the others have: "
            "give labels to all or to none"
        )
    if missing == len(label) or (classes is not None and tuple(classes) == NO_CLASSES):
        own, label = NO_CLASSES, np.zeros(len(label), np.int64)
    if classes is None:
        return list(own), label
    number = {name: position for position, name in enumerate(classes)}
    unknown = [name for i, name in enumerate(own) if name not in number and (label == i).any()]
    if unknown and tuple(own) == NO_CLASSES:
        raise UserError(
            f"{printable(where)} has no labels, and the training split has: sort its images into class "
            "folders, or rename it to leave it out"
        )
    if unknown:
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        raise UserError(
            f"{printable(where)} has a class {printable(unknown[0])}{more} that the training split "
            "does not have"
        )
    return list(classes), renumbered(label, [number.get(name, NO_LABEL) for name in own])
