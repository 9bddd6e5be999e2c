"""Tars of images, as WebDataset, img2dataset and timm's ImageNet have them, or of class folders.

A sample is what has one name up to the first dot: NAME.jpg with NAME.cls (a number or a class name),
NAME.json (its `label` or `cls`), both or neither. Without such labels, images that all lie at
CLASS/NAME have the classes of these folders, and others have none.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from glob import glob, has_magic
from pathlib import Path
from typing import Any

import numpy as np

from fastsimsiam.errors import UserError
from fastsimsiam.storage import passed_over as kinds
from fastsimsiam.storage.base import Report
from fastsimsiam.storage.labels import NO_LABEL, in_order
from fastsimsiam.storage.listing import is_hidden, is_image
from fastsimsiam.storage.names import Names
from fastsimsiam.storage.packed_images import PackedImages, packed_images
from fastsimsiam.storage.packed_index import Members
from fastsimsiam.storage.record_file import RecordFile
from fastsimsiam.storage.record_files import FileStamp
from fastsimsiam.storage.split_names import find_split, kind_of
from fastsimsiam.storage.system_errors import why_not_read
from fastsimsiam.storage.tar_members import Member, read_tar
from fastsimsiam.system.text import printable

FORM = "tars 1"
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_LABEL_KEYS = ("label", "cls", "class")
_LARGEST_LABEL = 1 << 20
"""Bytes of a file with a label; LAION's have some hundred."""
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST_NAMES = 1 << 20


def has_split(data: Path, split: str) -> bool:
    """Whether `data` has tars of a split, in its folder or by their names."""
    return split in _tars_by_split(data) or bool(_tars_in(find_split(data, split)))


def accepts(data: Path, split: str) -> bool:
    """Whether a split is to be opened as tars."""
    return is_pattern(data) or bool(_tars(data, split))


def is_pattern(data: Path) -> bool:
    """Whether a path stands for several tars: `train-{0000..0146}.tar`, `train-*.tar`."""
    return data.name.endswith(".tar") and (has_magic(str(data)) or bool(_BRACES.search(str(data))))


def open_split(
    data: Path, split: str, *, classes: Sequence[str] | None = None, report: Report | None = None
) -> PackedImages:
    """Opens the tars of a split.

    Args:
        data: a folder with a folder of tars for each split, or with tars whose names tell the split,
            or with tars of one split; a tar; or a pattern of tars, which are the training split.
        split: `train` or `val`.
        classes: class names that labels refer to (the training split's); None: the split's own.
        report: receives the progress of reading the tars, in megabytes.

    Raises:
        UserError: a tar is missing, compressed or damaged.
    """
    tars = _tars(data, split)
    root, form = _place(data, split, tars)
    try:
        stamps = [FileStamp.of(tar) for tar in tars]
    except OSError as error:
        raise UserError(why_not_read(error.filename or data, error)) from error
    return packed_images(root, form, stamps, _samples, classes, report)


def _place(data: Path, split: str, tars: Sequence[Path]) -> tuple[Path, str]:
    """The folder or file that all tars lie in, and the form that their index is kept by."""
    if tars == [data]:
        return data, FORM
    if is_pattern(data):
        return Path(os.path.commonpath([tar.parent for tar in tars])), f"{FORM} {data.name}"
    folder = find_split(data, split)
    if folder is not None:
        return folder, FORM
    # Tars of several splits in a folder have an index each.
    return data, FORM if tars == _tars_in(data) else f"{FORM} {split}"


def _tars(data: Path, split: str) -> list[Path]:
    """The tars of a split, in the order of their names; none if there are none.

    Raises:
        UserError: they are compressed, or one of a pattern is missing.
    """
    if is_pattern(data):
        return _of_pattern(data) if split == "train" else []
    if data.name.endswith((".tar", *_COMPRESSED)) and not data.is_dir():
        return [data] if split == "train" and data.exists() else []
    folder = find_split(data, split)
    if folder is not None:
        return _tars_in(folder)
    by_split = _tars_by_split(data)
    return by_split.get(split, by_split.get("", []) if split == "train" else [])


def _tars_by_split(data: Path) -> dict[str, list[Path]]:
    """Split -> tars in `data` whose names tell it; "" -> all, if no name tells a split."""
    found: dict[str, list[Path]] = {}
    tars = _tars_in(data)
    for tar in tars:
        found.setdefault(kind_of(tar.name.partition(".")[0]) or "", []).append(tar)
    if found.keys() & {"train", "val"}:
        found.pop("", None)
        return found
    return {"": tars} if tars else {}


def _tars_in(folder: Path | None) -> list[Path]:
    """The tars in a folder that has no folders: beside others, a tar is what was unpacked."""
    if folder is None:
        return []
    try:
        entries = [path for path in folder.iterdir() if not is_hidden(path.name)]
        if any(path.is_dir() for path in entries):
            return []
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(why_not_read(folder, error)) from error
    tars = sorted(path for path in entries if path.name.endswith(".tar"))
    return tars or sorted(path for path in entries if path.name.endswith(_COMPRESSED))


def _of_pattern(pattern: Path) -> list[Path]:
    """The tars that a pattern stands for: braces name each, other signs those that are there."""
    names = braces_expanded(str(pattern))
    tars = [
        Path(path) for name in names for path in (sorted(glob(name)) if has_magic(name) else [name])
    ]
    missing = next((tar for tar in tars if not tar.exists()), None)
    if missing is not None or not tars:
        what = f"{printable(missing)} does not exist" if missing else "there is no such file"
        raise UserError(f"--data {printable(pattern)}: {what}")
    return tars


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


@dataclass
class _Sample:
    """What has one name up to the first dot."""

    images: list[Member] = field(default_factory=list)
    label: Member | None = None


def _samples(file: RecordFile, progress: Callable[[int], None]) -> Members:
    """The images of a tar, in its order."""
    content = read_tar(file, progress=progress)
    passed_over = Counter(content.passed_over)
    samples: dict[str, _Sample] = {}
    for member in content.members:
        folder, slash, base = member.name.rpartition("/")
        stem, _, ending = base.partition(".")
        sample = samples.setdefault(folder + slash + stem, _Sample())
        if is_image(base):
            # That with the sample's name alone is its image; NAME.mask.png is something about it.
            sample.images.insert(0 if is_image(f".{ending}") else len(sample.images), member)
        elif ending == "cls" or (ending == "json" and sample.label is None):
            sample.label = member
        elif ending not in ("json", "txt"):
            passed_over[kinds.NO_IMAGE] += 1
    with_image = [sample for sample in samples.values() if sample.images]
    passed_over[kinds.FURTHER_IMAGES] += sum(len(sample.images) - 1 for sample in with_image)
    images = [sample.images[0] for sample in with_image]
    labels = [_label(file, sample.label) for sample in with_image]
    parts = [image.name.split("/") for image in images]
    if not any(labels) and all(len(part) == 2 for part in parts):
        labels = [part[0] for part in parts]
    classes = in_order({label for label in labels if label is not None})
    number = {label: position for position, label in enumerate(classes)}
    return Members(
        names=Names.of(f"{file.path.name}/{image.name}" for image in images),
        position=np.array([image.position for image in images], np.int64),
        length=np.array([image.length for image in images], np.int64),
        label=np.array(
            [NO_LABEL if label is None else number[label] for label in labels], np.int64
        ),
        classes=classes,
        broken={
            row: kinds.CUT_OFF for row, image in enumerate(images) if image.name in content.cut_off
        },
        passed_over=+passed_over,
    )


def _label(file: RecordFile, member: Member | None) -> str | None:
    """The class that a .cls or .json file says; None where it says none."""
    if member is None:
        return None
    where = f"{printable(file.path)}: {printable(member.name)}"
    if member.length > _LARGEST_LABEL:
        raise UserError(f"{where} has {member.length} bytes, which is no label")
    try:
        content: Any = file.read_new(member.position, member.length).decode()
        if member.name.endswith(".json"):
            content = json.loads(content)
            content = next((content[key] for key in _LABEL_KEYS if key in content), None)
    except EOFError:
        return None  # the image that it belongs to is cut off as well
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{where} cannot be read ({error}): make the tar again") from error
    if content is None or isinstance(content, (list, dict, float)):
        return None
    return str(content).strip() or None
