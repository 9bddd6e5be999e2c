"""Images that are files of their own, in class folders or elsewhere."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from fastsimsiam.errors import BadImageError, UserError
from fastsimsiam.storage.base import Report
from fastsimsiam.storage.header_index import ListedFile, read_headers
from fastsimsiam.storage.labels import NO_LABEL, in_order, of_split
from fastsimsiam.storage.names import Names
from fastsimsiam.storage.read_ahead import read_ahead
from fastsimsiam.storage.system_errors import RESTORE, reason_of
from fastsimsiam.system.scratch import scratch
from fastsimsiam.system.text import printable


@dataclass(frozen=True, kw_only=True)
class ImageFiles:
    """A `Storage` of one split; attributes as there.

    Attributes:
        root: the folder that holds them.
        paths: N paths relative to `root`.
        classes: printable names.
        broken: sample -> error, of files whose content has no readable header.
        out_of_reach: sample -> the system's reason, of files that it does not read now.
    """

    root: Path
    paths: Sequence[str]
    classes: Sequence[str]
    label: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int32]
    orientation: npt.NDArray[np.uint8]
    bytes_total: int
    broken: Mapping[int, BadImageError] = field(default_factory=dict)
    out_of_reach: Mapping[int, str] = field(default_factory=dict)
    passed_over: Mapping[str, int] = field(default_factory=dict)
    is_packed: ClassVar[bool] = False
    blocks: ClassVar[None] = None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.paths)

    def file_of(self, index: int) -> Path:
        """The file of an image."""
        return self.root / self.paths[index]

    def name(self, index: int) -> str:
        """The file of an image, for reports; what cannot be printed is escaped."""
        return printable(self.file_of(index))

    def read(self, index: int) -> memoryview:
        """The bytes of a file, in memory that this thread's next call overwrites.

        Raises:
            BadImageError: the file cannot be read.
            UserError: the system cannot read any file now.
        """
        try:
            # Without O_NONBLOCK a named pipe, in the place of the file by now, would wait for a writer.
            file = os.open(self.file_of(index), os.O_RDONLY | os.O_NONBLOCK)
            try:
                length = os.fstat(file).st_size
                buffer = scratch("file", length)
                length = os.readv(file, [buffer[:length].data]) if length else 0
            finally:
                os.close(file)
        except OSError as error:
            reason = reason_of(self.file_of(index), error)
            raise BadImageError(
                f"{self.name(index)} cannot be read ({reason})", fix=RESTORE
            ) from error
        return buffer[:length].data

    def will_need(self, index: int) -> None:
        """Starts reading a file into the page cache; errors are left to `read`."""
        read_ahead(self.file_of(index))

    @property
    def unreadable(self) -> Mapping[int, str]:
        """Sample -> reason, of files without a readable header."""
        out_of_reach = {
            index: f"cannot be read ({reason})" for index, reason in self.out_of_reach.items()
        }
        broken = {index: str(error) for index, error in self.broken.items()}
        return dict(sorted((broken | out_of_reach).items()))

    def require_readable(self, option: str = "skip") -> None:
        """Refuses a data set with files that are no images.

        Args:
            option: value of --on-bad-image that skips them, for the message.

        Raises:
            UserError: names the first such file and how many there are.
        """
        bad = self.unreadable
        if not bad:
            return
        index, reason = next(iter(bad.items()))
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        what, fix = reason, RESTORE
        if broken := self.broken.get(index):
            what, fix = f"is {reason}", f"{broken.fix}, remove the file"
        raise UserError(f"{self.name(index)} {what}{more}: {fix}, or pass --on-bad-image {option}")


def image_files(
    root: Path,
    files: Sequence[ListedFile],
    out_of_reach: Mapping[str, str],
    labels: Sequence[str | None],
    classes: Sequence[str] | None,
    report: Report | None,
    *,
    passed_over: Mapping[str, int],
    form: str = "",
) -> ImageFiles:
    """Opens files whose classes are known.

    Args:
        root: folder that the paths are relative to.
        files: path, bytes and time of each file.
        out_of_reach: path -> the system's reason, of files that cannot be read.
        labels: class name of each file; None: it has none.
        classes: class names of the training split; None: this is the training split.
        report: receives the progress of reading headers.
        passed_over: see `ImageFiles`.
        form: see `header_index.read_headers`.

    Raises:
        UserError: some images have labels and others none, or a class is not in `classes`.
    """
    own = in_order({label for label in labels if label is not None})
    number = {name: position for position, name in enumerate(own)}
    label = np.array([NO_LABEL if name is None else number[name] for name in labels], np.int64)
    known, label = of_split(root, own, label, classes)
    headers = read_headers(root, files, out_of_reach, report, form)
    return ImageFiles(
        root=root,
        paths=Names.of(path for path, _, _ in files),
        classes=known,
        label=label,
        sizes=headers.rows[:, :2].astype(np.int32),
        orientation=headers.rows[:, 2].astype(np.uint8),
        bytes_total=sum(size for _, size, _ in files),
        broken=headers.broken,
        out_of_reach=headers.out_of_reach,
        passed_over=passed_over,
    )
