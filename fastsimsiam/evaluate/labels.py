"""The labeled images of semi-supervised learning: a share of each class, or a list."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastsimsiam.errors import UserError
from fastsimsiam.storage.base import Storage
from fastsimsiam.system.files import require_file, written_whole
from fastsimsiam.system.text import as_bytes, printable

ALL = "100%"
"""The labels of all images."""
LIST = "labels.txt"
"""Name of the list in the folder of `finetune`."""
_SHARE = re.compile(r"(\d+(?:\.\d+)?)%")


def choose_labeled(labels: str, storage: Storage, seed: int) -> npt.NDArray[np.int64]:
    """Numbers of the images whose labels may be used, ascending.

    Of a share, each class keeps the images whose hashes are the smallest: the same ones for the same
    seed, on any machine, and those of a smaller share are among those of a larger one.

    Args:
        labels: `1%`, `10%`, `100%` or any other share; or a file that lists images, a line each, by
            their paths within the data set or by their names.
        storage: the training images.
        seed: another one chooses other images.

    Raises:
        UserError: it is neither, or lists images that are not in the data set.
    """
    if share := _SHARE.fullmatch(labels):
        percent = float(share[1])
        if not 0 < percent <= 100:
            raise UserError(f"--labels is {labels}: give more than 0%, at most 100%")
        return _share_of_each_class(percent / 100, storage, seed)
    path = Path(labels)
    if labels.replace(".", "", 1).isdecimal() and not path.exists():
        raise UserError(f"--labels is {labels}: give a share as {labels}%, or a file")
    require_file(path, "list of images", "give a share such as 10%, or a file")
    return _listed(path, storage)


def write_list(images: npt.NDArray[np.int64], storage: Storage, path: Path) -> None:
    """Writes the paths of images, a line each; `choose_labeled` reads the file.

    Raises:
        UserError: the file cannot be written, or there is another list in its place.
    """
    lines = _lines(images, storage)
    if path.exists():
        if path.read_bytes() == lines:
            return
        raise UserError(f"{path} is another list: give another --out, or remove it")
    with written_whole(path, "--out") as file:
        file.write_bytes(lines)


def labels_digest(images: npt.NDArray[np.int64], storage: Storage) -> str:
    """A short text that is another one for other images."""
    return f"{len(images)}, {hashlib.sha256(_lines(images, storage)).hexdigest()[:12]}"


def _lines(images: npt.NDArray[np.int64], storage: Storage) -> bytes:
    return b"".join(as_bytes(storage.paths[image]) + b"\n" for image in images)


def _share_of_each_class(share: float, storage: Storage, seed: int) -> npt.NDArray[np.int64]:
    chosen: list[int] = []
    for label in range(len(storage.classes)):
        images = np.flatnonzero(storage.label == label)
        if not len(images):
            continue
        count = max(1, round(share * len(images)))
        ranked = sorted(images.tolist(), key=lambda image: _hash(storage.paths[image], seed))
        chosen += ranked[:count]
    return np.array(sorted(chosen), dtype=np.int64)


def _hash(path: str, seed: int) -> bytes:
    return hashlib.sha256(as_bytes(f"{seed}\n{path}")).digest()


def _listed(file: Path, storage: Storage) -> npt.NDArray[np.int64]:
    try:
        text = file.read_bytes().decode("utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise UserError(f"--labels {file} cannot be read ({error.strerror})") from error
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    numbers = _numbers(storage.paths)
    # A name may begin or end with a blank, so that it is left as it is where an image has it.
    wanted = [line if line in numbers else line.strip() for line in lines if line.strip()]
    missing = [name for name in wanted if name not in numbers]
    if missing or not wanted:
        what = f"lists {printable(missing[0])}" if missing else "lists no image"
        more = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise UserError(
            f"--labels {file} {what}{more}: give paths of training images, as "
            f"{printable(storage.paths[0])}"
        )
    return np.array(sorted({numbers[name] for name in wanted}), dtype=np.int64)


def _numbers(paths: Sequence[str]) -> dict[str, int]:
    """Number of an image by its path, and by its name where no other has the same."""
    names = [Path(path).name for path in paths]
    counts = Counter(names)
    by_name = {name: number for number, name in enumerate(names) if counts[name] == 1}
    return by_name | {path: number for number, path in enumerate(paths)}
