"""What every storage of one split offers: counts, labels, sizes and file bytes, but no pixels."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

Report = Callable[[int, int], None]
"""Called with (done, total) while something long goes on."""


class Storage(Protocol):
    """The images of one split.

    Attributes:
        root: the folder or file they lie in.
        paths: N names of the images within `root`.
        classes: names of the classes; a label is a position in it.
        label: (N,) int64.
        sizes: (N, 2) int32 height and width of the upright image in pixels; 0, 0 where it has no
            readable header.
        orientation: (N,) uint8 EXIF orientation, 1 to 8.
        is_one_file: all images lie in `root`, which is a file.
        bytes_total: size of all encoded images together.
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
    def is_one_file(self) -> bool: ...  # noqa: D102
    @property
    def bytes_total(self) -> int: ...  # noqa: D102

    def __len__(self) -> int:
        """Number of images."""

    def name(self, index: int) -> str:
        """What a report calls a sample: its file, or its record."""

    def read(self, index: int) -> memoryview:
        """The encoded image, JPEG or PNG, in this thread's memory: its next call overwrites it.

        Raises:
            BadImageError: the file cannot be read.
        """

    def will_need(self, index: int) -> None:
        """Has the system fetch a sample's bytes, where it can; `read` is going to ask for them."""

    def require_readable(self) -> None:
        """Refuses a data set with files that are no images.

        Raises:
            UserError: names the first such file and how many there are.
        """


def fingerprint(storage: Storage) -> str:
    """A short text that changes when the images of a data set change (by path or size)."""
    digest = hashlib.sha256("\n".join(storage.paths).encode())
    digest.update(np.ascontiguousarray(storage.sizes).tobytes())
    return f"{len(storage)} images, {digest.hexdigest()[:12]}"
