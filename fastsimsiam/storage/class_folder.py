"""Class folders of JPEG and PNG files: `ROOT/train/CLASS/*.jpg`, or flat, `ROOT/CLASS/*.jpg`.

The files' headers are read once, for sizes and EXIF orientation, and kept in an index under the
user's cache folder (`XDG_CACHE_HOME`, else ~/.cache); only new or changed files are read again.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from fastsimsiam.errors import BadImageError, UserError
from fastsimsiam.storage.base import Report
from fastsimsiam.storage.header_index import read_headers
from fastsimsiam.storage.read_ahead import read_ahead
from fastsimsiam.system.scratch import scratch

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True, kw_only=True)
class ClassFolder:
    """The images of one split.

    Attributes:
        root: folder that holds the class folders.
        paths: N paths relative to `root`, sorted by class and name.
        classes: names of the classes, sorted; a label is a position in it.
        label: (N,) int64.
        sizes: (N, 2) int32 height and width of the upright image in pixels; 0, 0 where the file has
            no readable header.
        orientation: (N,) uint8 EXIF orientation, 1 to 8.
        bytes_total: size of all files together.
        is_one_file: False.
    """

    root: Path
    paths: Sequence[str]
    classes: Sequence[str]
    label: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int32]
    orientation: npt.NDArray[np.uint8]
    bytes_total: int
    is_one_file: ClassVar[bool] = False

    def __len__(self) -> int:
        """Number of images."""
        return len(self.paths)

    def path(self, index: int) -> Path:
        """The file of a sample."""
        return self.root / self.paths[index]

    def name(self, index: int) -> str:
        """The file of a sample, for reports."""
        return str(self.path(index))

    def read(self, index: int) -> memoryview:
        """The bytes of a file, in this thread's memory: its next call overwrites them.

        Raises:
            BadImageError: the file cannot be read.
        """
        try:
            file = os.open(self.path(index), os.O_RDONLY)
            try:
                length = os.fstat(file).st_size
                buffer = scratch("file", length)
                length = os.readv(file, [buffer[:length].data]) if length else 0
            finally:
                os.close(file)
        except OSError as error:
            raise BadImageError(f"{self.name(index)} cannot be read ({error.strerror})") from error
        return buffer[:length].data

    def will_need(self, index: int) -> None:
        """Has the system fetch a file; waits for its opening alone, and leaves errors to `read`."""
        read_ahead(self.path(index))

    @property
    def unreadable(self) -> list[Path]:
        """Files whose header cannot be read."""
        return [self.path(i) for i in np.flatnonzero(self.sizes[:, 0] == 0).tolist()]

    def require_readable(self) -> None:
        """Refuses a data set with files that are no images.

        Raises:
            UserError: names the first such file and how many there are.
        """
        bad = self.unreadable
        if bad:
            more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
            raise UserError(
                f"{bad[0]} is not a readable JPEG or PNG image{more}: "
                f"remove it, or pass --on-bad-image skip"
            )


def has_split(data: Path, split: str) -> bool:
    """Whether `data` has a folder for the split; a flat data set has none."""
    return (data / split).is_dir()


def open_split(
    data: Path, split: str, *, classes: Sequence[str] | None = None, report: Report | None = None
) -> ClassFolder:
    """Opens `data/split`, or `data` itself where it is a flat class folder and split is train.

    Args:
        data: the data set's folder.
        split: `train` or `val`.
        classes: the classes that labels refer to (the training split's); None: those found.
        report: told of the progress of reading headers.

    Raises:
        UserError: there is no such folder, or there are no images in it.
    """
    if not data.is_dir():
        raise UserError(
            f"data folder {data} does not exist: pass --data PATH, or fetch a data set with one of "
            f"the scripts in datasets/"
        )
    root = data / split
    if not root.is_dir():
        if split != "train" or any(has_split(data, name) for name in ("val", "test")):
            raise UserError(f"{data} has no folder {split}/: make one with a folder for each class")
        root = data
    found = _list_images(root)
    if not found:
        raise UserError(
            f"no {', '.join(IMAGE_SUFFIXES)} files in class folders under {root}: "
            f"expected {root}/CLASS/IMAGE"
        )
    paths = [path for path, _, _ in found]
    names = [path.split("/", 1)[0] for path in paths]
    known = sorted(set(names)) if classes is None else list(classes)
    strange = sorted(set(names) - set(known))
    if strange:
        raise UserError(f"{root / strange[0]} is a class that the training split does not have")
    number = {name: position for position, name in enumerate(known)}
    headers = read_headers(root, found, report)
    return ClassFolder(
        root=root,
        paths=paths,
        classes=known,
        label=np.array([number[name] for name in names], dtype=np.int64),
        sizes=headers[:, :2].astype(np.int32),
        orientation=headers[:, 2].astype(np.uint8),
        bytes_total=sum(size for _, size, _ in found),
    )


def _list_images(root: Path) -> list[tuple[str, int, int]]:
    """(relative path, bytes, mtime in ns) of every image file under a class folder, sorted."""
    found: list[tuple[str, int, int]] = []

    def walk(folder: str, prefix: str) -> None:
        with os.scandir(folder) as entries:
            for entry in entries:
                relative = prefix + entry.name
                if entry.is_dir():
                    walk(entry.path, relative + "/")
                elif prefix and entry.name.lower().endswith(IMAGE_SUFFIXES):
                    try:
                        status = entry.stat()
                        found.append((relative, status.st_size, status.st_mtime_ns))
                    except FileNotFoundError:  # a dangling link: kept, and reported as unreadable
                        found.append((relative, 0, 0))

    try:
        walk(str(root), "")
    except OSError as error:
        raise UserError(f"cannot read {error.filename} ({error.strerror})") from error
    return sorted(found)
