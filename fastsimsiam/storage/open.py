"""Opens a split of a data set, whatever it is stored as."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from fastsimsiam.storage import beton, class_folder, imagenet_tars, webdataset
from fastsimsiam.storage.base import Report, Storage
from fastsimsiam.storage.split_names import missing_split

__all__ = ["has_split", "missing_split", "open_split"]


class _OpenSplit(Protocol):
    def __call__(
        self, data: Path, split: str, *, classes: Sequence[str] | None, report: Report | None
    ) -> Storage: ...


@dataclass(frozen=True)
class _Opener:
    """A storage: whether `data` has a split in its form, whether it opens the split, and how."""

    has_split: Callable[[Path, str], bool]
    accepts: Callable[[Path, str], bool]
    open_split: _OpenSplit


# The first that accepts a split opens it. Packed files come before class folders beside them: the user
# has packed them to be used. Class folders accept everything, and report what is missing.
_OPENERS = (
    _Opener(beton.has_split, beton.accepts, beton.open_split),
    _Opener(imagenet_tars.has_split, imagenet_tars.accepts, imagenet_tars.open_split),
    _Opener(webdataset.has_split, webdataset.accepts, webdataset.open_split),
    _Opener(class_folder.has_split, lambda data, split: True, class_folder.open_split),
)


def has_split(data: Path, split: str) -> bool:
    """Whether `data` contains the split; False for a flat folder and for a packed file itself."""
    return any(opener.has_split(data, split) for opener in _OPENERS)


def open_split(
    data: Path, split: str, *, classes: Sequence[str] | None = None, report: Report | None = None
) -> Storage:
    """Opens a split: `data/SPLIT.beton`, `data` if it is a packed file, or class folders.

    Args:
        data: the data set's folder, or a packed file, which is the training split.
        split: `train` or `val`.
        classes: class names that labels refer to (the training split's); None: the split's own.
        report: receives the progress of reading headers.

    Raises:
        UserError: the split is missing, empty or damaged.
    """
    opener = next(opener for opener in _OPENERS if opener.accepts(data, split))
    return opener.open_split(data, split, classes=classes, report=report)
