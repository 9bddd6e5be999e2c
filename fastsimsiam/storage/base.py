"""The contract of all storages, and what the author of a new one needs to know.

A storage holds the encoded images of one split, with labels and sizes. Loaders read any image at any
time, in the order of the plan, so a storage needs random access. To add one:

- a file in this folder with a class that implements `Storage` and functions `has_split`, `accepts` and
  `open_split`
- a line in `_OPENERS` of open.py, above class folders, which accept everything

Files that hold many images need no class of their own: a function that says where the images lie, with
their names and labels, is enough for `packed_images.packed_images`.

Images without a readable header have size 0, 0. `require_readable` refuses them at the start of a run;
with `--on-bad-image skip` it is not called, and the loader replaces the images when it cannot decode
them. The encoded images are in one of `IMAGE_FORMATS`, which `loaders.decode` decodes.

`read` and `will_need` are called from many threads at once. The loader `reference` uses the storage in
worker processes: it must be picklable.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fastsimsiam.storage.names import Names

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF")
"""Formats of the encoded images, by PIL's names: `image_file.open_image` opens them by content."""

_BLOCK_BYTES = 1 << 26

Report = Callable[[int, int], None]
"""Called with (done, total) during long work."""


class Storage(Protocol):
    """The encoded images of one split: N images with labels.

    Attributes:
        root: the folder or file that holds the images.
        paths: N names of the images within `root`; they identify the data set, see `fingerprint`.
        classes: names of the classes; a label is a position in this sequence.
        label: (N,) int64.
        sizes: (N, 2) int32 height and width in pixels of the upright image; 0, 0 where an image has no
            readable header. A decoded image of another size is an error.
        orientation: (N,) uint8 EXIF orientation, 1 to 8, by which loaders turn the decoded image. The
            EXIF data in an image's bytes is ignored.
        is_packed: whether images lie in files of many; if not, each is a file of its own.
        blocks: (S + 1,) int64 first sample of each run of images that lie together, and N, for
            `--shuffle blocks`; None where there are none.
        bytes_total: total size of the encoded images.
        unreadable: sample -> reason, of images without a readable header.
        passed_over: kind -> number, of entries of the data set that are not among the images.
    """

    @property
    def root(self) -> Path: ...  # noqa: D102
    @property
    def paths(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def classes(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def label(self) -> npt.NDArray[np.int64]: ...  # noqa: D102
    @property
    def sizes(self) -> npt.NDArray[np.int32]: ...  # noqa: D102
    @property
    def orientation(self) -> npt.NDArray[np.uint8]: ...  # noqa: D102
    @property
    def is_packed(self) -> bool: ...  # noqa: D102
    @property
    def blocks(self) -> npt.NDArray[np.int64] | None: ...  # noqa: D102
    @property
    def bytes_total(self) -> int: ...  # noqa: D102
    @property
    def unreadable(self) -> Mapping[int, str]: ...  # noqa: D102
    @property
    def passed_over(self) -> Mapping[str, int]: ...  # noqa: D102

    def __len__(self) -> int:
        """Number of images."""

    def file_of(self, index: int) -> Path:
        """The file that holds an image."""

    def name(self, index: int) -> str:
        """Name of an image in reports and errors: its file or its record, printable."""

    def read(self, index: int) -> memoryview:
        """The encoded bytes of an image, uint8.

        The next call from the same thread may overwrite the memory. Reading must release the GIL,
        because threads read in parallel.

        Raises:
            BadImageError: the image cannot be read; the message begins with `name(index)`.
            UserError: the storage as a whole cannot be read any more; ends the run in any case.
        """

    def will_need(self, index: int) -> None:
        """Hints that `read(index)` follows soon, so that the system can read ahead.

        Must not wait for the data and must not raise: errors are left to `read`.
        """

    def require_readable(self, option: str = "skip") -> None:
        """Refuses a data set with files that are no images.

        Args:
            option: value of --on-bad-image that skips them, for the message.

        Raises:
            UserError: names the first such file, how many there are, and what to do.
        """


class Images(Protocol):
    """What identifies the images of a data set: `paths` and `sizes`, as in `Storage`."""

    @property
    def paths(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def sizes(self) -> npt.NDArray[np.int32]: ...  # noqa: D102
    def __len__(self) -> int: ...


def blocks_of(length: npt.NDArray[np.int64], starts: Sequence[int]) -> npt.NDArray[np.int64]:
    """Cuts files of images into blocks of about 64 MiB, of images that follow each other.

    Args:
        length: (N,) bytes of each image.
        starts: S + 1 numbers: the first image of each of S files, and N.

    Returns:
        As `Storage.blocks`.
    """
    parts = []
    for first, end in pairwise(starts):
        before = np.cumsum(length[first:end]) - length[first:end]
        parts.append(first + np.flatnonzero(np.diff(before // _BLOCK_BYTES, prepend=-1)))
    return np.concatenate([*parts, [starts[-1]]]).astype(np.int64)


def as_names(paths: Sequence[str]) -> Names:
    """The same names, in arrays."""
    return paths if isinstance(paths, Names) else Names.of(paths)


def fingerprint(storage: Images) -> str:
    """A short text that changes when the images of a data set change (by path or size)."""
    digest = hashlib.sha256(as_names(storage.paths).lines())
    digest.update(np.ascontiguousarray(storage.sizes).tobytes())
    return f"{len(storage)} images, {digest.hexdigest()[:12]}"
