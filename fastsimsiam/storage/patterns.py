"""Paths that stand for several files: `train-{0000..0146}.tar`, `train-*.tar`."""

import re
from glob import glob, has_magic
from pathlib import Path

from fastsimsiam.errors import UserError
from fastsimsiam.system.text import printable

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST_NAMES = 1 << 20


def is_pattern(path: Path) -> bool:
    """Whether a path has signs or braces that stand for something."""
    return has_magic(str(path)) or bool(_BRACES.search(str(path)))


def files_of_pattern(pattern: Path) -> list[Path]:
    """The files that a pattern stands for: braces name each, other signs those that are there.

    Raises:
        UserError: a file that is named does not exist, or there is none.
    """
    files = [
        Path(path)
        for name in braces_expanded(str(pattern))
        for path in (sorted(glob(name)) if has_magic(name) else [name])
    ]
    missing = next((file for file in files if not file.exists()), None)
    if missing is not None or not files:
        what = f"{printable(missing)} does not exist" if missing else "there is no such file"
        raise UserError(f"--data {printable(pattern)}: {what}")
    return files


def braces_expanded(pattern: str) -> list[str]:
    """The names that braces stand for: `{000..146}` for numbers, `{a,b}` for words.

    Raises:
        UserError: they are too many.
    """
    names = [pattern]
    while names and _BRACES.search(names[0]):
        names = [
            name[: found.start()] + choice + name[found.end() :]
            for name in names
            if (found := _BRACES.search(name))
            for choice in _choices(found[1])
        ]
        if len(names) > _MOST_NAMES:
            raise UserError(f"{printable(pattern)} stands for more than {_MOST_NAMES} files")
    return names


def _choices(text: str) -> list[str]:
    """What a pair of braces stands for: `0..12`, with leading zeros or without; or `a,b`."""
    found = _RANGE.fullmatch(text)
    if not found:
        return text.split(",")
    first, last = int(found[1]), int(found[2])
    width = len(found[1]) if found[1].startswith("0") else 0
    if last - first >= _MOST_NAMES:
        raise UserError(f"{{{text}}} stands for more than {_MOST_NAMES} files")
    return [str(number).zfill(width) for number in range(first, last + 1)]
