"""A list of image files: text with a path a line, or CSV with a path and a label.

Paths are relative to the folder of the list. A label is a class name or a number, after a comma (.csv),
a tab (.tsv, .txt) or, as Caffe has it, a space (.txt). A first line of column names is recognized.
"""

import csv
import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from fastsimsiam.errors import UserError
from fastsimsiam.storage.base import Report
from fastsimsiam.storage.header_index import ListedFile
from fastsimsiam.storage.image_files import ImageFiles, image_files
from fastsimsiam.storage.listing import is_image
from fastsimsiam.storage.system_errors import reason_of, why_not_read
from fastsimsiam.system.text import printable

SUFFIXES = (".txt", ".csv", ".tsv")
_PATHS = ("path", "paths", "file", "files", "filename", "file_name", "filepath", "file_path")
_PATH_COLUMNS = (*_PATHS, "image", "images", "image_path", "img", "img_path", "name")
_LABEL_COLUMNS = (
    "label",
    "labels",
    "class",
    "class_name",
    "classname",
    "target",
    "category",
    "cls",
)
_CAFFE = re.compile(r"(.+\.\w+) (\d+)")
_LARGEST = 1 << 36


def has_split(data: Path, split: str) -> bool:
    """A list is of one split: the training split, or what --val names."""
    del data, split
    return False


def accepts(data: Path, split: str) -> bool:
    """Whether a path is that of a list."""
    return split == "train" and data.suffix.lower() in SUFFIXES and not data.is_dir()


def open_split(
    data: Path, split: str, *, classes: Sequence[str] | None = None, report: Report | None = None
) -> ImageFiles:
    """Opens the images of a list, in its order.

    Args:
        data: the list.
        split: `train`.
        classes: class names that labels refer to (the training split's); None: the list's own.
        report: receives the progress of reading headers.

    Raises:
        UserError: the list cannot be read, or has a line that is no path of an image.
    """
    del split
    paths, labels = _read(data)
    files, out_of_reach = stamped(data.parent, paths)
    return image_files(
        data.parent,
        files,
        out_of_reach,
        labels,
        classes,
        report,
        passed_over={},
        form=f"list {data.name}",
    )


def stamped(root: Path, paths: Sequence[str]) -> tuple[list[ListedFile], dict[str, str]]:
    """Bytes and time of files, and the system's reason for those that it does not read."""
    files: list[ListedFile] = []
    out_of_reach = {}
    for path in paths:
        file = os.path.join(root, path)
        try:
            status = os.stat(file)
        except OSError as error:
            out_of_reach[path] = reason_of(file, error)
            files.append((path, 0, 0))
            continue
        if not stat.S_ISREG(status.st_mode):
            out_of_reach[path] = "it is no regular file"
        files.append((path, status.st_size, status.st_mtime_ns))
    return files, out_of_reach


def _read(file: Path) -> tuple[list[str], list[str | None]]:
    """Paths and labels of a list."""
    paths: list[str] = []
    labels: list[str | None] = []
    name = printable(file)
    try:
        status = os.stat(file)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST:
            raise UserError(f"{name} is no list of images: give a text or CSV file")
        with open(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as handle:
            for line, (path, label) in _rows(file, handle):
                if "\0" in path:
                    raise UserError(f"{name}, line {line}: a path has a zero byte: remove it")
                if not is_image(path):
                    raise UserError(
                        f"{name}, line {line}: {printable(path)[:200]!r} has no image suffix: give a "
                        "path a line, and in .csv a label after a comma"
                    )
                paths.append(path.removeprefix("./"))
                labels.append(label)
    except FileNotFoundError as error:
        raise UserError(f"{name} does not exist: pass another list or folder of images") from error
    except OSError as error:
        raise UserError(why_not_read(file, error)) from error
    except csv.Error as error:
        raise UserError(f"{name} is no readable CSV ({error})") from error
    if not paths:
        raise UserError(f"{name} lists no images")
    return paths, labels


def _rows(file: Path, lines: Iterator[str]) -> Iterator[tuple[int, tuple[str, str | None]]]:
    """Number, path and label of each line with content."""
    if file.suffix.lower() == ".txt":
        for number, line in enumerate(lines, start=1):
            if text := line.rstrip("\r\n"):
                path, tab, label = text.partition("\t")
                caffe = None if tab else _CAFFE.fullmatch(text)
                yield number, (caffe[1], caffe[2]) if caffe else (path, label.strip() or None)
        return
    reader = csv.reader(lines, delimiter="," if file.suffix.lower() == ".csv" else "\t")
    path_column, label_column = 0, 1
    for cells in reader:
        if not any(cells):
            continue
        if reader.line_num == 1 and not any(is_image(cell) for cell in cells):
            path_column, label_column = _columns(file, cells)
            continue
        if path_column >= len(cells):
            raise UserError(f"{printable(file)}, line {reader.line_num}: no path")
        label = cells[label_column].strip() if 0 <= label_column < len(cells) else ""
        yield reader.line_num, (cells[path_column].strip(), label or None)


def _columns(file: Path, names: Sequence[str]) -> tuple[int, int]:
    """The columns of path and label; -1 for a label that is not there."""
    known = [name.strip().lower() for name in names]
    path = next((known.index(name) for name in _PATH_COLUMNS if name in known), None)
    if path is None:
        raise UserError(
            f"{printable(file)} has the columns {printable(', '.join(names))[:200]}, and none for "
            "paths: call it path"
        )
    return path, next((known.index(name) for name in _LABEL_COLUMNS if name in known), -1)
