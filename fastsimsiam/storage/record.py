"""The list of a run's training images, kept in its folder, so that a resumed run has the same plan.

Without it, a run could not go on after an image was lost: the order of the images, their replacements
and the boxes of their views depend on how many there are and on their sizes.
"""

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from fastsimsiam.errors import BadImageError, UserError
from fastsimsiam.storage.base import Storage, fingerprint
from fastsimsiam.system.files import written_whole
from fastsimsiam.system.text import printable

MOST_RECORDED = 10_000_000
"""Images of a data set whose list is kept. Larger ones lie in shards, which lose no single images."""
_VERSION = 1
_MISSING = -1
_UNREADABLE = (0, 0)


@dataclass(frozen=True, kw_only=True)
class Record:
    """The images of a storage, as of the start of a run; attributes as in `Storage`."""

    paths: Sequence[str]
    classes: Sequence[str]
    label: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int32]
    orientation: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.paths)


def write_record(file: Path, storage: Storage | Record) -> None:
    """Writes the list: about 7 bytes an image, a few seconds for ImageNet.

    Raises:
        UserError: the file cannot be written.
    """
    with written_whole(file, "the list of images") as partial, open(partial, "wb") as handle:
        np.savez_compressed(
            handle,
            version=_VERSION,
            paths=_joined(storage.paths),
            classes=_joined(storage.classes),
            label=storage.label.astype(np.int32),
            sizes=storage.sizes,
            orientation=storage.orientation,
        )


def read_record(file: Path, data: str) -> Record | None:
    """Reads the list that `write_record` wrote.

    Args:
        file: the list.
        data: fingerprint of the images that it must have.

    Returns:
        The list; None if there is none, or none of these images.
    """
    try:
        with open(file, "rb") as handle:
            record = _read(handle)
    except (
        OSError,
        EOFError,
        KeyError,
        ValueError,
        TypeError,
        MemoryError,
        NotImplementedError,
        zipfile.BadZipFile,
        zlib.error,
    ):
        return None
    return record if fingerprint(record) == data else None


def _read(handle: IO[bytes]) -> Record:
    with np.load(handle, allow_pickle=False) as stored:
        if int(stored["version"]) != _VERSION:
            raise ValueError("another version")
        record = Record(
            paths=_split(stored["paths"]),
            classes=_split(stored["classes"]),
            label=stored["label"].astype(np.int64),
            sizes=stored["sizes"].astype(np.int32),
            orientation=stored["orientation"].astype(np.uint8),
        )
    count = len(record)
    shapes = (record.label.shape, record.sizes.shape, record.orientation.shape)
    if shapes != ((count,), (count, 2), (count,)) or not count:
        raise ValueError("arrays of different lengths")
    if record.label.min() < 0 or record.label.max() >= len(record.classes):
        raise ValueError("labels without a class")
    return record


def _joined(texts: Sequence[str]) -> npt.NDArray[np.uint8]:
    # No name has a zero byte; a name that is not UTF-8 keeps its bytes.
    joined = "\0".join(texts).encode(errors="surrogateescape")
    return np.frombuffer(joined, np.uint8)


def _split(joined: npt.NDArray[np.uint8]) -> list[str]:
    return joined.tobytes().decode(errors="surrogateescape").split("\0")


@dataclass(frozen=True, kw_only=True)
class Changes:
    """How the images of a storage differ from a record.

    Attributes:
        position: (N,) for each image of the record its number in the storage; -1 where it is missing.
        missing: paths of images that are gone.
        unreadable: paths of images whose header can no longer be read, with the reason.
        resized: paths of images of another size or orientation.
        other_class: paths of images of another class.
        recovered: paths of images that could not be read at the start of the run, and now can.
        new: paths of images that the record does not have.
    """

    position: npt.NDArray[np.int64]
    missing: Sequence[str]
    unreadable: Sequence[str]
    resized: Sequence[str]
    other_class: Sequence[str]
    recovered: Sequence[str]
    new: Sequence[str]

    @property
    def can_be_skipped(self) -> bool:
        """Whether all of it is damage to single images, which a run may replace by other images."""
        return not (self.resized or self.other_class or self.new)

    def __str__(self) -> str:
        """Counts, each with the first of its images."""
        parts = (
            (self.missing, "missing"),
            (self.unreadable, "no longer readable"),
            (self.resized, "of another size"),
            (self.other_class, "of another class"),
            (self.recovered, "readable, which was not so before"),
            (self.new, "new"),
        )
        return "; ".join(
            f"{len(paths)} {'image is' if len(paths) == 1 else 'images are'} {what} "
            f"({'' if len(paths) == 1 else 'the first: '}{printable(paths[0])})"
            for paths, what in parts
            if paths
        )


def changes(record: Record, storage: Storage) -> Changes:
    """Compares the images of today with those of the start of the run."""
    number = {path: index for index, path in enumerate(storage.paths)}
    position = np.array([number.get(path, _MISSING) for path in record.paths], np.int64)
    here = np.flatnonzero(position != _MISSING)
    there = position[here]
    sizes, old_sizes = storage.sizes[there], record.sizes[here]
    differ = (sizes != old_sizes).any(axis=1) | (
        storage.orientation[there] != record.orientation[here]
    )
    unreadable = differ & (sizes == _UNREADABLE).all(axis=1)
    # They go on being replaced, since their views would need another plan.
    recovered = (old_sizes == _UNREADABLE).all(axis=1)
    classes = np.array(storage.classes, object)[storage.label[there]]
    old_classes = np.array(record.classes, object)[record.label[here]]

    reasons = storage.unreadable

    def why(index: int) -> str:
        position = int(number[record.paths[index]])
        reason = reasons.get(position, "")
        return f"{record.paths[index]}{': ' if reason else ''}{reason}"

    def paths(chosen: npt.NDArray[np.bool_]) -> list[str]:
        return [record.paths[index] for index in here[chosen].tolist()]

    known = set(record.paths)
    return Changes(
        position=position,
        missing=[record.paths[i] for i in np.flatnonzero(position == _MISSING).tolist()],
        unreadable=[why(index) for index in here[unreadable].tolist()],
        resized=paths(differ & ~unreadable & ~recovered),
        other_class=paths(classes != old_classes),
        recovered=paths(differ & recovered),
        new=[path for path in storage.paths if path not in known],
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordedStorage:
    """A `Storage` with the images of a record, of which some are damaged or gone; attributes as there.

    The loader replaces those as it would have done in a run that was never interrupted.
    """

    paths: Sequence[str]
    classes: Sequence[str]
    label: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int32]
    orientation: npt.NDArray[np.uint8]
    _storage: Storage
    _position: npt.NDArray[np.int64]

    @property
    def root(self) -> Path:
        """The folder of the images."""
        return self._storage.root

    @property
    def is_packed(self) -> bool:
        """Whether images lie in files of many."""
        return self._storage.is_packed

    @property
    def blocks(self) -> None:
        """None: images of a block may be gone."""
        return None

    @property
    def bytes_total(self) -> int:
        """Size of the images that are left."""
        return self._storage.bytes_total

    @property
    def unreadable(self) -> Mapping[int, str]:
        """Nothing: the loader finds out which images are damaged."""
        return {}

    @property
    def passed_over(self) -> Mapping[str, int]:
        """Entries that are not among the images."""
        return self._storage.passed_over

    def __len__(self) -> int:
        """Number of images in the record."""
        return len(self.paths)

    def file_of(self, index: int) -> Path:
        """The file of an image, or where it was."""
        position = int(self._position[index])
        if position == _MISSING:
            return self.root / self.paths[index]
        return self._storage.file_of(position)

    def name(self, index: int) -> str:
        """The image's name, for reports."""
        position = int(self._position[index])
        if position == _MISSING:
            return printable(self.root / self.paths[index])
        return self._storage.name(position)

    def read(self, index: int) -> memoryview:
        """The encoded bytes of an image.

        Raises:
            BadImageError: the image is gone, or cannot be read.
        """
        position = int(self._position[index])
        if position == _MISSING:
            raise BadImageError(f"{self.name(index)} is missing")
        return self._storage.read(position)

    def will_need(self, index: int) -> None:
        """See `Storage.will_need`."""
        if self._position[index] != _MISSING:
            self._storage.will_need(int(self._position[index]))

    def require_readable(self, option: str = "skip") -> None:
        """Refuses nothing: damaged images are to be skipped."""


def as_recorded(
    storage: Storage, record: Record | None, data: str, *, skip: bool, option: str = "skip"
) -> tuple[Storage, str]:
    """The images of a run that goes on.

    Args:
        storage: the images of today.
        record: the images at the run's start; None: only their fingerprint is known.
        data: that fingerprint.
        skip: whether damaged images are replaced by others.
        option: value of --on-bad-image that does so, for the messages.

    Returns:
        `storage` itself, or one with the images of the record, and what the log should say of it.

    Raises:
        UserError: the images are others; names them and what to do.
    """
    now = fingerprint(storage)
    if now == data:
        return storage, ""
    if record is None:
        raise UserError(
            f"--resume: the training images changed since the checkpoint ({data} -> {now}): restore "
            "them, or start again with another --out"
        )
    found = changes(record, storage)
    start = f"--resume: the training images changed since the run started: {found}"
    if storage.is_packed or not found.can_be_skipped:
        raise UserError(f"{start}: restore them, or start again with another --out")
    if not skip:
        raise UserError(f"{start}: restore them, or go on with --resume --on-bad-image {option}")
    kept = RecordedStorage(
        paths=record.paths,
        classes=record.classes,
        label=record.label,
        sizes=record.sizes,
        orientation=record.orientation,
        _storage=storage,
        _position=found.position,
    )
    return (
        kept,
        f"since the run started, {found}: replaced by others, as --on-bad-image {option} says",
    )
