"""Folders of splits, as people name them: `train` or `Training`, `val` or `validation`."""

import os
import re
import stat
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from fastsimsiam.errors import UserError
from fastsimsiam.storage.system_errors import why_not_read
from fastsimsiam.system.text import printable

SPELLINGS = {"train": ("train", "training"), "val": ("val", "valid", "validation")}
"""Split -> names of its folder, in any case."""
_KINDS = {
    "train": ("train", "training", "trainset", "trainval", "trn"),
    "val": ("val", "valid", "validation", "valset", "dev", "eval", "evaluation"),
    "test": ("test", "testing", "testset"),
}
_KIND = {word: kind for kind, words in _KINDS.items() for word in words}
# Parts of names: `TrainSet` has Train and Set, `val2017` val and 2017.
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+|[^\W\d_a-zA-Z]+")
_PLAIN = ("train", "training", "val", "valid", "validation", "test", "testing")
"""Names of splits that no set of class folders without splits has beside its classes."""


def find_split(data: Path, split: str) -> Path | None:
    """The folder of a split in `data`; None if there is none with one of its usual names.

    Raises:
        UserError: `data` cannot be read, or several of its folders have names of the split.
    """
    spellings = SPELLINGS.get(split, (split,))
    found = [data / name for name in _folders(data, lambda name: name.casefold() in spellings)]
    different = [path for path in found if not path.samefile(found[0])]
    if different:
        raise UserError(
            f"{printable(data)} has the folders {found[0].name}/ and {different[0].name}/, which are "
            f"both names of the split {split}: keep one of them there"
        )
    return found[0] if found else None


def missing_split(data: Path, split: str, *, otherwise: str = "") -> str:
    """Says that `data` has no folder for a split, and which folders seem to be meant for it.

    Args:
        data: the data set's folder.
        split: `train` or `val`.
        otherwise: how the text ends if no folder seems to be meant.
    """
    wanted = (split, "test") if split == "val" else (split,)
    spellings = SPELLINGS.get(split, (split,))
    near = _folders(data, lambda name: kind_of(name) in wanted and name.casefold() not in spellings)
    text = f"{printable(data)} has no folder {split}/"
    if os.path.lexists(data / split):  # not a folder, or `find_split` would have found it
        text += f" ({split} is {what_is(data / split)})"
    if not near:
        return text + otherwise
    names = " and ".join(f"{printable(name)}/" for name in near)
    return f"{text}, but {names}: rename {'it' if len(near) == 1 else 'one'} to {split} to use it"


def other_splits(data: Path) -> list[str]:
    """Folders in `data` that have a usual name of a split."""
    return _folders(data, lambda name: name.casefold() in _PLAIN)


def what_is(path: Path) -> str:
    """What a path is that is no folder: `a file`, `a named pipe`, `a link to nothing`."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return "a link to nothing" if path.is_symlink() else "out of reach"
    if stat.S_ISREG(mode):
        return "a file"
    if stat.S_ISFIFO(mode):
        return "a named pipe"
    return "a socket" if stat.S_ISSOCK(mode) else "a device"


def splits_among(names: Iterable[str]) -> list[str]:
    """Those of a folder's subfolders that are splits, sorted; names of classes are none.

    `train` among `bus` and `car` is a class. `train` beside `val` is a split, as `img_train` beside
    `img_test` is, and so is a `train` that has nothing but splits beside it.
    """
    names = list(names)
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in names:
        if kind_of(name):
            groups[_rest(name)].append(name)
    several = [group for group in groups.values() if len({kind_of(name) for name in group}) > 1]
    alone = groups.get((), [])
    if len(alone) == len(names):
        several.append(alone)
    return sorted({name for group in several for name in group})


def kind_of(name: str) -> str | None:
    """The split that a name speaks of: `train`, `val` or `test`; None if of none or of several."""
    kinds = [_KIND[word] for word in _words(name) if word in _KIND]
    return kinds[0] if len(kinds) == 1 else None


def _rest(name: str) -> tuple[str, ...]:
    """A name without its word for the split."""
    return tuple(word for word in _words(name) if word not in _KIND)


def _words(name: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(name)]


def _folders(data: Path, wanted: Callable[[str], bool]) -> list[str]:
    """Names of the folders in `data` that are wanted, sorted; empty if `data` is no folder."""
    try:
        with os.scandir(data) as entries:
            return sorted(entry.name for entry in entries if wanted(entry.name) and entry.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(why_not_read(data, error)) from error
