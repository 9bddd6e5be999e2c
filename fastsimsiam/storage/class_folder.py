"""Class folders of JPEG and PNG files: `ROOT/train/CLASS/*.jpg`, or flat, `ROOT/CLASS/*.jpg`."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from fastsimsiam.errors import BadImageError, UserError
from fastsimsiam.storage.base import Report
from fastsimsiam.storage.header_index import FileStamp, read_headers
from fastsimsiam.storage.read_ahead import read_ahead
from fastsimsiam.system.scratch import scratch

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True, kw_only=True)
class ClassFolder:
    """A `Storage` of one split; attributes as there.

    Attributes:
        root: the folder that holds the class folders.
        paths: N paths relative to `root`, sorted by class and name.
        classes: names of the class folders, sorted, or those of the training split.
    """

    root: Path
    paths: Sequence[str]
    classes: Sequence[str]
    label: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int32]
    orientation: npt.NDArray[np.uint8]
    bytes_total: int
    passed_over: Mapping[str, int] = field(default_factory=dict)
    is_one_file: ClassVar[bool] = False

    def __len__(self) -> int:
        """Number of images."""
        return len(self.paths)

    def path(self, index: int) -> Path:
        """The file of an image."""
        return self.root / self.paths[index]

    def name(self, index: int) -> str:
        """The file of an image, for reports."""
        return str(self.path(index))

    def read(self, index: int) -> memoryview:
        """The bytes of a file, in memory that this thread's next call overwrites.

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
        """Starts reading a file into the page cache; errors are left to `read`."""
        read_ahead(self.path(index))

    @property
    def unreadable(self) -> Mapping[int, str]:
        """Sample -> reason, of files without a readable header."""
        return dict.fromkeys(
            np.flatnonzero(self.sizes[:, 0] == 0).tolist(), "not a readable JPEG or PNG image"
        )

    def require_readable(self) -> None:
        """Refuses a data set with files that are no images.

        Raises:
            UserError: names the first such file and how many there are.
        """
        bad = self.unreadable
        if bad:
            index, reason = next(iter(bad.items()))
            more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
            raise UserError(
                f"{self.name(index)} is {reason}{more}: remove it, or pass --on-bad-image skip"
            )


def has_split(data: Path, split: str) -> bool:
    """Whether `data` has a folder for the split; False for a flat data set."""
    return (data / split).is_dir()


def open_split(
    data: Path, split: str, *, classes: Sequence[str] | None = None, report: Report | None = None
) -> ClassFolder:
    """Opens `data/SPLIT`, or `data` itself if it is a flat data set and `split` is `train`.

    Args:
        data: the data set's folder.
        split: `train` or `val`.
        classes: class names that labels refer to (the training split's); None: the split's own.
        report: receives the progress of reading headers.

    Raises:
        UserError: the folder does not exist, holds no images, or has a class that is not in `classes`.
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
    files = _list_images(root)
    if not files:
        raise UserError(
            f"no {', '.join(IMAGE_SUFFIXES)} files in class folders under {root}: "
            f"expected {root}/CLASS/IMAGE"
        )
    paths = [path for path, _, _ in files]
    names = [path.split("/", 1)[0] for path in paths]
    known = sorted(set(names)) if classes is None else list(classes)
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise UserError(f"{root / unknown[0]} is a class that the training split does not have")
    number = {name: position for position, name in enumerate(known)}
    headers = read_headers(root, files, report)
    return ClassFolder(
        root=root,
        paths=paths,
        classes=known,
        label=np.array([number[name] for name in names], dtype=np.int64),
        sizes=headers[:, :2].astype(np.int32),
        orientation=headers[:, 2].astype(np.uint8),
        bytes_total=sum(size for _, size, _ in files),
    )


def _list_images(root: Path) -> list[FileStamp]:
    """All image files within class folders, sorted by path."""
    files: list[FileStamp] = []

    def walk(folder: str, prefix: str) -> None:
        with os.scandir(folder) as entries:
            for entry in entries:
                relative = prefix + entry.name
                if entry.is_dir():
                    walk(entry.path, relative + "/")
                elif prefix and entry.name.lower().endswith(IMAGE_SUFFIXES):
                    try:
                        status = entry.stat()
                        files.append((relative, status.st_size, status.st_mtime_ns))
                    except FileNotFoundError:  # a dangling link: kept and reported as unreadable
                        files.append((relative, 0, 0))

    try:
        walk(str(root), "")
    except OSError as error:
        raise UserError(f"cannot read {error.filename} ({error.strerror})") from error
    return sorted(files)
