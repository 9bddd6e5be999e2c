"""Tars of images, as WebDataset, img2dataset and timm's ImageNet have them, or of class folders.

A sample is what has one name up to the first dot: NAME.jpg with NAME.cls (a number or a class name),
NAME.json (its `label` or `cls`), both or neither. Without such labels, images that all lie in a folder,
below folders that all lie in, have the classes of these folders, and others have none.
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
from fastsimsiam.storage.split_names import splits_among
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
    """What has one name."""

    images: list[Member] = field(default_factory=list)
    label: Member | None = None


def _samples(file: RecordFile, prefix: str, progress: Callable[[int], None]) -> Members:
    """The images of a tar, in its order; `prefix` is what their names begin with."""
    content = read_tar(file, progress=progress)
    passed_over = Counter(content.passed_over)
    samples = _by_name(content.members, passed_over)
    images = [sample.images[0] for sample in samples]
    folders = _class_folders(file, [image.name for image in images])
    labels = [_label(file, sample.label) for sample in samples]
    broken = {
        row: kinds.CUT_OFF for row, image in enumerate(images) if image.name in content.cut_off
    }
    if not any(labels):
        labels = list(folders) if folders is not None else labels
    elif content.cut_off or passed_over[kinds.CUT_OFF_TARS]:
        # The last image's label may be behind the cut. Any will do, as the image is not used.
        cut = [row for row, label in enumerate(labels) if label is None]
        broken |= dict.fromkeys(cut, kinds.CUT_OFF)
        labels = [label or next(filter(None, labels)) for label in labels]
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
        broken=broken,
        passed_over=+passed_over,
    )


def _by_name(members: Sequence[Member], passed_over: Counter[str]) -> list[_Sample]:
    """The samples with an image, the one with the sample's name alone in front.

    In folders without labels and captions beside them each image is a sample: its name may have dots.
    """
    plain = all("/" in member.name for member in members) and not any(
        member.name.endswith((".cls", ".json", ".txt")) for member in members
    )
    samples: dict[str, _Sample] = {}
    for member in members:
        folder, slash, base = member.name.rpartition("/")
        stem, _, ending = base.rpartition(".") if plain else base.partition(".")
        sample = samples.setdefault(member.name if plain else folder + slash + stem, _Sample())
        if is_image(base):
            # NAME.mask.png is something about NAME.jpg.
            sample.images.insert(len(sample.images) if "." in ending else 0, member)
        elif ending == "cls" or (ending == "json" and sample.label is None):
            sample.label = member
        elif ending not in ("json", "txt"):
            passed_over[kinds.NO_IMAGE] += 1
    with_image = [sample for sample in samples.values() if sample.images]
    passed_over[kinds.FURTHER_IMAGES] += sum(len(sample.images) - 1 for sample in with_image)
    return with_image


def _class_folders(file: RecordFile, names: Sequence[str]) -> list[str] | None:
    """The folder that each image lies in; None unless it lies in one, below what all lie in.

    Raises:
        UserError: they are folders of splits.
    """
    folders = [name.split("/")[:-1] for name in names]
    depth = 0
    while (
        all(len(folder) > depth + 1 for folder in folders)
        and len({folder[depth] for folder in folders}) == 1
    ):
        depth += 1
    below = [folder[depth:] for folder in folders]
    if splits := splits_among({folder[0] for folder in below if folder}):
        raise UserError(
            f"{printable(file.path)} holds {' and '.join(f'{name}/' for name in splits)}, which are "
            "splits, not classes: make a tar of each, train.tar and val.tar"
        )
    return [folder[0] for folder in below] if all(len(folder) == 1 for folder in below) else None


def _label(file: RecordFile, member: Member | None) -> str | None:
    """The class that a .cls or .json file says; None where it says none."""
    if member is None:
        return None
    where = f"{printable(file.path)}: {printable(member.name)}"
    if member.length > _LARGEST_LABEL and member.name.endswith(".json"):
        return None  # notes of another kind
    if member.length > _LARGEST_LABEL:
        raise UserError(f"{where} has {member.length} bytes, which is no label")
    try:
        content: Any = file.read_new(member.position, member.length).decode()
        if member.name.endswith(".json"):
            content = json.loads(content)
            told = (content[key] for key in _LABEL_KEYS if key in content)
            content = next((label for label in told if label is not None), None)
    except EOFError:
        return None  # the image that it belongs to is cut off as well
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{where} cannot be read ({error}): make the tar again") from error
    if content is None or isinstance(content, (list, dict, float)):
        return None
    return str(content).strip() or None
