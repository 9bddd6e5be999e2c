"""Images that lie in files of many: tars, Arrow files. A `Storage` for every such format.

A format gives what it finds as rows: the file, the position and the length of each encoded image. To
read them needs nothing of the format any more.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from fastsimsiam.errors import BadImageError, UserError
from fastsimsiam.storage.base import Report, Storage, blocks_of
from fastsimsiam.storage.labels import of_split
from fastsimsiam.storage.packed_index import Scan, read_index
from fastsimsiam.storage.passed_over import listed
from fastsimsiam.storage.record_file import why_no_record
from fastsimsiam.storage.record_files import FileStamp, RecordFiles
from fastsimsiam.system.text import printable


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedImages:
    """A `Storage` of N images in S files; attributes as there.

    Attributes:
        root: the folder or file that the user has named.
        files: the files.
        starts: S + 1 numbers: the first image of each file, and N.
        position: (N,) int64 first byte of each encoded image in its file.
        length: (N,) integer bytes of each encoded image.
        unreadable: sample -> reason, completing "NAME is", of images that cannot be used.
    """

    root: Path
    files: RecordFiles
    starts: Sequence[int]
    paths: Sequence[str]
    classes: Sequence[str]
    label: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int32]
    orientation: npt.NDArray[np.uint8]
    position: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    unreadable: Mapping[int, str] = field(default_factory=dict)
    passed_over: Mapping[str, int] = field(default_factory=dict)
    is_packed: ClassVar[bool] = True

    @property
    def bytes_total(self) -> int:
        """Total size of the encoded images."""
        return int(self.length.sum())

    @property
    def blocks(self) -> npt.NDArray[np.int64]:
        """See `Storage`."""
        return blocks_of(self.length, self.starts)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.length)

    def file_of(self, index: int) -> Path:
        """The file that holds an image."""
        return self.files.stamps[self._number_of(index)].path

    def name(self, index: int) -> str:
        """File and name of an image, printable."""
        return printable(f"{self.file_of(index)}: {self.paths[index]}")

    def read(self, index: int) -> memoryview:
        """The encoded bytes of an image, in memory that this thread's next call overwrites.

        Raises:
            BadImageError: the image is one of `unreadable`, or the disk cannot read its part.
            UserError: its file was cut off or changed, or the system cannot read it.
        """
        if index in self.unreadable:
            raise BadImageError(f"{self.name(index)} is {self.unreadable[index]}")
        number = self._number_of(index)
        length = int(self.length[index])
        try:
            return self.files[number].read(int(self.position[index]), length)
        except EOFError as error:
            raise UserError(
                f"{self.name(index)} is beyond the end of its file, which was cut off: restore it and "
                "start the command again"
            ) from error
        except (MemoryError, OSError) as error:
            raise why_no_record(
                self.name(index), self.files.stamps[number].path, length, error
            ) from error

    def will_need(self, index: int) -> None:
        """Starts reading an image into the page cache; errors are left to `read`."""
        try:
            file = self.files[self._number_of(index)]
        except UserError:
            return
        file.will_need(int(self.position[index]), int(self.length[index]))

    def require_readable(self, option: str = "skip") -> None:
        """Refuses a data set with images that cannot be used.

        Args:
            option: value of --on-bad-image that skips them, for the message.

        Raises:
            UserError: names the first such image and how many there are.
        """
        refuse_unreadable(self, option)

    def _number_of(self, index: int) -> int:
        return bisect_right(self.starts, index) - 1


def refuse_unreadable(storage: Storage, option: str) -> None:
    """`Storage.require_readable` of images in files of many."""
    if not storage.unreadable:
        return
    index, reason = next(iter(storage.unreadable.items()))
    more = f" (and {len(storage.unreadable) - 1} more)" if len(storage.unreadable) > 1 else ""
    raise UserError(
        f"{storage.name(index)} is {reason}{more}: fetch or make its file again, or pass "
        f"--on-bad-image {option}"
    )


def packed_images(
    root: Path,
    form: str,
    files: Sequence[FileStamp],
    scan: Scan,
    classes: Sequence[str] | None,
    report: Report | None,
) -> PackedImages:
    """Opens files of images, by their index.

    Args:
        root: see `PackedImages`.
        form: name of the format, with the version of `scan`: another one is another index.
        files: the files.
        scan: finds the images of a file.
        classes: class names of the training split; None: this is the training split.
        report: receives the progress of reading the files, in megabytes.

    Raises:
        UserError: a file cannot be read, holds a class that is not in `classes`, or there is no image.
    """
    index = read_index(root, form, files, scan, report)
    if not len(index.names):
        there = f" (they hold {listed(index.passed_over)})" if index.passed_over else ""
        raise UserError(f"no images in {_counted(files)} of {printable(root)}{there}")
    own, label = of_split(root, index.classes, index.label, classes)
    index.forget_pages()
    return PackedImages(
        root=root,
        files=RecordFiles(files),
        starts=index.starts,
        paths=index.names,
        classes=own,
        label=label,
        sizes=index.sizes,
        orientation=index.orientation,
        position=index.position,
        length=index.length,
        unreadable=index.unreadable,
        passed_over=index.passed_over,
    )


def _counted(files: Sequence[FileStamp]) -> str:
    return "the 1 file" if len(files) == 1 else f"the {len(files)} files"
