"""ImageNet as it is downloaded: the tars of ILSVRC 2012 and the devkit, unopened.

The training tar holds a tar for each class. The validation tar holds images alone; their classes are in
the devkit. Images are named and ordered as in class folders.
"""

import importlib
import io
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from fastsimsiam.errors import UserError
from fastsimsiam.storage import passed_over as kinds
from fastsimsiam.storage.base import Report
from fastsimsiam.storage.labels import in_order
from fastsimsiam.storage.listing import is_image
from fastsimsiam.storage.names import Names
from fastsimsiam.storage.packed_images import PackedImages, packed_images
from fastsimsiam.storage.packed_index import Members
from fastsimsiam.storage.record_file import RecordFile
from fastsimsiam.storage.record_files import FileStamp
from fastsimsiam.storage.system_errors import why_not_read
from fastsimsiam.storage.tar_members import BLOCK, Member, TarContent, read_tar
from fastsimsiam.system.optional import require
from fastsimsiam.system.text import printable

_NAME = "ILSVRC2012"
_TRAIN, _VAL, _DEVKIT = (
    f"{_NAME}_{part}" for part in ("img_train.tar", "img_val.tar", "devkit_t12.tar.gz")
)
_FILES = {"train": _TRAIN, "val": _VAL}
_TRUTH, _META = f"{_NAME}_validation_ground_truth.txt", "meta.mat"


def has_split(data: Path, split: str) -> bool:
    """Whether `data` has the tar of a split; False where that cannot be looked up."""
    try:
        return split in _FILES and (data / _FILES[split]).is_file()
    except OSError:  # the storage that is opened instead says why
        return False


def accepts(data: Path, split: str) -> bool:
    """Whether a split is to be opened as a tar of ImageNet."""
    return has_split(data, split)


def open_split(
    data: Path, split: str, *, classes: Sequence[str] | None = None, report: Report | None = None
) -> PackedImages:
    """Opens the tar of a split.

    Args:
        data: the folder of the tars, and of the devkit for the validation split.
        split: `train` or `val`.
        classes: class names that labels refer to (the training split's); None: the split's own.
        report: receives the progress of reading the tar, in megabytes.

    Raises:
        UserError: a tar is damaged or no tar of ImageNet, or the devkit is missing or another one.
    """
    path = data / _FILES[split]
    try:
        stamp = FileStamp.of(path)
    except OSError as error:
        raise UserError(why_not_read(path, error)) from error
    if split == "train":
        return packed_images(path, "ImageNet's training tar 1", [stamp], _classes, classes, report)
    wnids = _classes_of_val(data / _DEVKIT)

    def images(file: RecordFile, progress: Callable[[int], None]) -> Members:
        return _images_of_val(file, wnids, progress)

    return packed_images(path, "ImageNet's validation tar 1", [stamp], images, classes, report)


def _classes(file: RecordFile, progress: Callable[[int], None]) -> Members:
    """The images of the training tar, by class."""
    outer = read_tar(file)
    found: list[tuple[str, Member]] = []
    broken: dict[str, str] = {}
    passed_over = Counter(outer.passed_over)
    for member in outer.members:
        if not member.name.endswith(".tar"):
            passed_over[kinds.NO_IMAGE] += 1
            continue
        wnid = member.name.removesuffix(".tar").rpartition("/")[2]
        end = min(member.length, file.size - member.position)
        if member.name in outer.cut_off and end < BLOCK:  # not even a header
            continue
        inner = read_tar(file, member.position, end)
        if member.name in outer.cut_off:
            del inner.passed_over[kinds.CUT_OFF_TARS]
            broken |= {f"{wnid}/{name}": kinds.CUT_OFF for name in inner.cut_off}
        passed_over += inner.passed_over
        found += ((wnid, image) for image in _images(inner, passed_over))
        progress(member.position + member.length)
    if outer.cut_off:
        passed_over[kinds.CUT_OFF_TARS] += 1
    if not found:
        raise UserError(f"{printable(file.path)} holds no tars of classes: it is not ImageNet's")
    return _members(found, broken, passed_over)


def _images_of_val(
    file: RecordFile, wnids: Sequence[str], progress: Callable[[int], None]
) -> Members:
    """The images of the validation tar; `wnids` has the class of each number in their names."""
    content = read_tar(file, progress=progress)
    passed_over = Counter(content.passed_over)
    found, broken = [], {}
    for image in _images(content, passed_over):
        number = image.name.rpartition("_")[2].partition(".")[0]
        if not number.isdecimal() or not 1 <= int(number) <= len(wnids):
            raise UserError(
                f"{printable(file.path)} holds {printable(image.name)}, for which the devkit has no "
                "class: fetch both again"
            )
        wnid = wnids[int(number) - 1]
        found.append((wnid, image))
        if image.name in content.cut_off:
            broken[f"{wnid}/{image.name}"] = kinds.CUT_OFF
    if not found:
        raise UserError(f"{printable(file.path)} holds no images: it is not ImageNet's")
    return _members(found, broken, passed_over)


def _images(content: TarContent, passed_over: Counter[str]) -> list[Member]:
    images = [member for member in content.members if is_image(member.name)]
    passed_over[kinds.NO_IMAGE] += len(content.members) - len(images)
    return images


def _members(
    found: list[tuple[str, Member]], broken: dict[str, str], passed_over: Counter[str]
) -> Members:
    """Images by class and name, as class folders have them."""
    named = sorted(
        (f"{wnid}/{image.name.rpartition('/')[2]}", wnid, image) for wnid, image in found
    )
    classes = in_order({wnid for _, wnid, _ in named})
    number = {wnid: position for position, wnid in enumerate(classes)}
    return Members(
        names=Names.of(name for name, _, _ in named),
        position=np.array([image.position for _, _, image in named], np.int64),
        length=np.array([image.length for _, _, image in named], np.int64),
        label=np.array([number[wnid] for _, wnid, _ in named], np.int64),
        classes=classes,
        broken={row: broken[name] for row, (name, _, _) in enumerate(named) if name in broken},
        passed_over=+passed_over,
    )


def _classes_of_val(devkit: Path) -> list[str]:
    """The class, by WordNet's number, of each validation image."""
    name = printable(devkit)
    try:
        with tarfile.open(devkit, "r:*") as tar:
            found = {
                info.name.rpartition("/")[2]: content.read()
                for info in tar
                if info.name.endswith((f"data/{_TRUTH}", f"data/{_META}"))
                and (content := tar.extractfile(info)) is not None
            }
        truth = [int(line) for line in found[_TRUTH].split()]
        wnid = _wnids(found[_META])
        return [wnid[number] for number in truth]
    except FileNotFoundError as error:
        raise UserError(
            f"{name} is missing: the classes of {_VAL} are in it, so put it beside"
        ) from error
    except UserError:
        raise
    except OSError as error:
        raise UserError(why_not_read(devkit, error)) from error
    except (tarfile.TarError, EOFError, KeyError, ValueError, TypeError, IndexError) as error:
        raise UserError(f"{name} is damaged or another file ({error}): fetch it again") from error


def _wnids(content: bytes) -> dict[int, str]:
    """WordNet's number of each class of ILSVRC."""
    require(
        "scipy.io",
        f"{_META} in ImageNet's devkit",
        "pip install 'fastsimsiam[imagenet]'",
        name="SciPy",
    )
    loadmat = importlib.import_module("scipy.io").loadmat
    return {  # synsets with children are higher levels of WordNet
        int(synset["ILSVRC2012_ID"]): str(synset["WNID"])
        for synset in loadmat(io.BytesIO(content), squeeze_me=True)["synsets"]
        if int(synset["num_children"]) == 0
    }
