"""Tars of images, as WebDataset, img2dataset and timm's ImageNet have them, or of class folders.

A sample is what has one name up to the first dot: NAME.jpg with NAME.cls (a number or a class name),
NAME.json (its `label` or `cls`), both or neither. Without such labels, images that all lie at
CLASS/NAME have the classes of these folders, and others have none.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastsimsiam.errors import UserError
from fastsimsiam.storage import passed_over as kinds
from fastsimsiam.storage.base import Report
from fastsimsiam.storage.labels import NO_LABEL, in_order
from fastsimsiam.storage.listing import is_image
from fastsimsiam.storage.names import Names
from fastsimsiam.storage.packed_images import PackedImages, packed_images
from fastsimsiam.storage.packed_index import Members
from fastsimsiam.storage.record_file import RecordFile
from fastsimsiam.storage.record_files import FileStamp
from fastsimsiam.storage.split_files import SplitFiles, split_files
from fastsimsiam.storage.system_errors import why_not_read
from fastsimsiam.storage.tar_members import Member, read_tar
from fastsimsiam.system.text import printable

FORM = "tars 1"
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_LABEL_KEYS = ("label", "cls", "class")
_LARGEST_LABEL = 1 << 20
"""Bytes of a file with a label; LAION's have some hundred."""


def has_split(data: Path, split: str) -> bool:
    """Whether `data` has tars of a split, in its folder or by their names."""
    found = _files(data, split)
    return found is not None and found.is_told


def accepts(data: Path, split: str) -> bool:
    """Whether a split is to be opened as tars."""
    return _files(data, split) is not None


def open_split(
    data: Path, split: str, *, classes: Sequence[str] | None = None, report: Report | None = None
) -> PackedImages:
    """Opens the tars of a split.

    Args:
        data: see `split_files`.
        split: `train` or `val`.
        classes: class names that labels refer to (the training split's); None: the split's own.
        report: receives the progress of reading the tars, in megabytes.

    Raises:
        UserError: a tar is missing, compressed or damaged.
    """
    found = _files(data, split)
    assert found is not None
    try:
        stamps = [FileStamp.of(tar) for tar in found.files]
    except OSError as error:
        raise UserError(why_not_read(error.filename or data, error)) from error

    def samples(file: RecordFile, progress: Callable[[int], None]) -> Members:
        return _samples(file, found.prefix(file.path), progress)

    # Tars of several splits in a folder have an index each.
    form = f"{FORM} {found.key}".rstrip()
    storage = packed_images(found.root, form, stamps, samples, classes, report)
    others = {kinds.OTHER_FILES: found.others} if found.others else {}
    return replace(storage, passed_over={**storage.passed_over, **others})


def _files(data: Path, split: str) -> SplitFiles | None:
    """The tars of a split; or compressed ones, which are refused when they are read."""
    suffixes = (".tar", *_COMPRESSED)
    return next((found for suffix in suffixes if (found := split_files(data, split, suffix))), None)


@dataclass
class _Sample:
    """What has one name up to the first dot."""

    images: list[Member] = field(default_factory=list)
    label: Member | None = None


def _samples(file: RecordFile, prefix: str, progress: Callable[[int], None]) -> Members:
    """The images of a tar, in its order; `prefix` is what their names begin with."""
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
        names=Names.of(f"{prefix}/{image.name}" for image in images),
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
