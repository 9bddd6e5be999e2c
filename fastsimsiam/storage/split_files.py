"""Files of one format that hold a split: in the split's folder, or told by their names.

The library `datasets` calls them NAME-train-00000-of-00256.arrow, the Hub train-00000-of-00294.parquet.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastsimsiam.errors import UserError
from fastsimsiam.storage.listing import is_hidden, is_image
from fastsimsiam.storage.patterns import files_of_pattern, is_pattern
from fastsimsiam.storage.split_names import find_split, kind_of
from fastsimsiam.storage.system_errors import why_not_read

_SHARD = re.compile(r"-\d+-of-\d+(-[0-9a-f]+)?$")


@dataclass(frozen=True, kw_only=True)
class SplitFiles:
    """The files of a split.

    Attributes:
        root: the folder that all of them lie in or below; the file itself, if the user has named one.
        files: in the order of their names.
        key: what tells them from other files in `root`; "" if they are all that is there.
        is_told: whether a folder or names say that they are of this split.
        others: number of files beside them that are of neither split.
    """

    root: Path
    files: Sequence[Path]
    key: str = ""
    is_told: bool = False
    others: int = 0

    def prefix(self, file: Path) -> str:
        """What names of images in a file begin with, so that no two files have the same."""
        return file.name if file == self.root else file.relative_to(self.root).as_posix()


def split_files(data: Path, split: str, suffix: str, *, besides: str = "") -> SplitFiles | None:
    """The files of a split; None if there are none.

    Args:
        data: a folder with a folder of files for each split, or with files whose names tell the split,
            or with files of one split; a file, or a pattern, which are the training split.
        split: `train` or `val`.
        suffix: of the files' names.
        besides: files whose names begin so are left out; "": none.

    Raises:
        UserError: the pattern stands for no file, or a folder cannot be read.
    """
    if data.name.endswith(suffix) and not _is(Path.is_dir, data):
        if split != "train":
            return None
        if _is(Path.exists, data):
            return SplitFiles(root=data, files=[data])
        return _of_pattern(data) if is_pattern(data) else None
    folder = find_split(data, split)
    if folder is not None:
        files = _files_in(folder, suffix, besides)
        return SplitFiles(root=folder, files=files, is_told=True) if files else None
    by_split: dict[str, list[Path]] = {}
    files = _files_in(data, suffix, besides)
    for file in files:
        by_split.setdefault(_split_of(file.name.removesuffix(suffix)) or "", []).append(file)
    if not by_split.keys() & {"train", "val"}:
        told = by_split.get("") or files  # a test split beside them is left alone
        others = len(files) - len(told)
        return (
            SplitFiles(root=data, files=told, others=others) if told and split == "train" else None
        )
    if split not in by_split:
        return None
    others = sum(len(of_kind) for kind, of_kind in by_split.items() if kind not in ("train", "val"))
    return SplitFiles(root=data, files=by_split[split], key=split, is_told=True, others=others)


def _split_of(name: str) -> str | None:
    """The split that a file's name tells: by its last part, or else by any."""
    name = _SHARD.sub("", name)
    return kind_of(name.rpartition("-")[2]) or kind_of(name)


def _files_in(folder: Path, suffix: str, besides: str) -> list[Path]:
    """The files in a folder without folders and images, beside which a file is what was unpacked."""
    try:
        with os.scandir(folder) as entries:
            shown = [entry for entry in entries if not is_hidden(entry.name)]
            files = [
                folder / entry.name
                for entry in shown
                if entry.name.endswith(suffix) and not (besides and entry.name.startswith(besides))
            ]
            alone = not any(entry.is_dir() or is_image(entry.name) for entry in shown)
            return sorted(files) if files and alone else []
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(why_not_read(folder, error)) from error


def _of_pattern(pattern: Path) -> SplitFiles:
    files = files_of_pattern(pattern)
    root = Path(os.path.commonpath([file.parent for file in files]))
    return SplitFiles(root=root, files=files, key=str(pattern))


def _is(what: Callable[[Path], bool], path: Path) -> bool:
    try:
        return what(path)
    except OSError as error:
        raise UserError(why_not_read(path, error)) from error
