"""The index of files that hold many images: where each lies, its size and its label; cached.

A format says what is in a file (`Members`). The headers of the images are read here, a few kilobytes of
each. A file that has not changed is not read again.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fastsimsiam.errors import BadImageError, UserError
from fastsimsiam.storage.base import Report
from fastsimsiam.storage.cached_arrays import cache_file
from fastsimsiam.storage.image_header import header_of
from fastsimsiam.storage.labels import Labels
from fastsimsiam.storage.names import Names
from fastsimsiam.storage.packed_parts import Part, joined, load_part, save_part
from fastsimsiam.storage.record_file import RecordFile
from fastsimsiam.storage.record_files import FileStamp
from fastsimsiam.storage.section import section
from fastsimsiam.storage.system_errors import why_not_read

_READ_THREADS = 8
_AHEAD = 4096
_REPORT_EVERY = 256
_SPARE_BYTES = 1 << 20
"""Bytes that an index may have beyond those of the data set: each image takes more than its row."""
_MEGABYTE = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Members:
    """The n images of a file, as a format finds them.

    Attributes:
        names: of the images; they identify the data set.
        position, length: (n,) int64 bytes of each encoded image in the file.
        label: (n,) int64 position in `classes`, or `NO_LABEL`.
        classes: class names of this file's labels.
        broken: image -> reason, completing "NAME is", of images that cannot be used.
        passed_over: kind -> number, of what is not among the images.
    """

    names: Names
    position: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    label: Labels
    classes: Sequence[str] = ()
    broken: Mapping[int, str] = field(default_factory=dict)
    passed_over: Mapping[str, int] = field(default_factory=dict)


Scan = Callable[[RecordFile, Callable[[int], None]], Members]
"""Finds the images of an open file; is told what to call with the bytes that are done."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedIndex:
    """The N images of S files; attributes as in `PackedImages`, but for the labels.

    Attributes:
        classes: names of all classes that labels are of.
        label: (N,) position in `classes`, or `NO_LABEL`.
        forget_pages: see `cached_arrays.Loaded`; to be called when all was looked at once.
    """

    starts: Sequence[int]
    names: Names
    position: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int32]
    orientation: npt.NDArray[np.uint8]
    label: Labels
    classes: Sequence[str]
    unreadable: Mapping[int, str]
    passed_over: Mapping[str, int]
    forget_pages: Callable[[], None]


def read_index(
    root: Path, form: str, files: Sequence[FileStamp], scan: Scan, report: Report | None
) -> PackedIndex:
    """Reads what is in files, or loads what was read of them before.

    Args:
        root: the data set's folder or file.
        form: name of the format, with the version of `scan`: another one is another index.
        files: the files.
        scan: finds the images of a file.
        report: receives the progress, in megabytes.

    Raises:
        UserError: a file cannot be read.
    """
    file = cache_file(root, form)
    most = sum(stamp.size for stamp in files) + _SPARE_BYTES
    saved = load_part(file, root, most)
    if saved is not None and list(saved.stamps) == list(files):
        return _finished(saved)
    known = {} if saved is None else {stamp: i for i, stamp in enumerate(saved.stamps)}
    parts: list[Part] = []
    try:
        for part in _parts(files, saved, known, scan, report):
            parts.append(part)
    finally:  # what was read is kept, also if the rest could not be
        reached = {stamp for part in parts for stamp in part.stamps}
        rest = (
            [
                saved.of_file(number)
                for stamp, number in known.items()
                if stamp not in reached and stamp in files
            ]
            if saved is not None
            else []
        )
        good = joined([part for part in (*parts, *rest) if not part.broken])
        if good.stamps and set(good.stamps) != set(known):
            save_part(file, root, good)
    whole = joined(parts)
    return _finished(whole)


def _parts(
    files: Sequence[FileStamp],
    saved: Part | None,
    known: Mapping[FileStamp, int],
    scan: Scan,
    report: Report | None,
) -> Iterator[Part]:
    """Yields the index of each file."""
    total = sum(stamp.size for stamp in files if stamp not in known)
    done = 0
    for stamp in files:
        if stamp in known:
            assert saved is not None
            yield saved.of_file(known[stamp])
            continue

        def progress(count: float, before: int = done) -> None:
            if report:
                report(int(before + count) // _MEGABYTE, max(1, total // _MEGABYTE))

        yield _scanned(stamp, scan, progress)
        done += stamp.size
        progress(0, done)


def _scanned(stamp: FileStamp, scan: Scan, progress: Callable[[float], None]) -> Part:
    """Reads one file: its members, which is half of the work, then their headers."""
    try:
        file = RecordFile(stamp.path)
        members = scan(file, lambda done: progress(done / 2))
        count = len(members.names)
        sizes = np.zeros((count, 2), np.int32)
        orientation = np.ones(count, np.uint8)
        rows = [row for row in range(count) if row not in members.broken]
        for done, (row, header) in enumerate(_headers(file, members, rows)):
            if not isinstance(
                header, BadImageError
            ):  # read again, for the reason, when all is known
                sizes[row], orientation[row] = header[:2], header[2]
            if done % _REPORT_EVERY == 0:
                progress(stamp.size * (1 + done / count) / 2)
    except OSError as error:
        raise UserError(why_not_read(stamp.path, error)) from error
    return Part(
        stamps=[stamp],
        rows=[count],
        passed_over=[members.passed_over],
        names=members.names,
        columns={
            "position": members.position,
            "length": members.length,
            "sizes": sizes,
            "orientation": orientation,
            "label": members.label,
        },
        classes=members.classes,
        broken=members.broken,
    )


def _headers(
    file: RecordFile, members: Members, rows: Sequence[int]
) -> Iterator[tuple[int, tuple[int, int, int] | BadImageError]]:
    """Yields height, width and orientation of images, or what is wrong with them."""
    position, length = members.position, members.length

    def read(row: int) -> tuple[int, int, int] | BadImageError:
        try:
            return header_of(section(file, int(position[row]), int(length[row])))
        except BadImageError as error:
            return error

    pool = ThreadPoolExecutor(_READ_THREADS)
    try:
        for first in range(0, len(rows), _AHEAD):  # a million waiting calls would take gigabytes
            some = rows[first : first + _AHEAD]
            yield from zip(some, pool.map(read, some), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)


def _finished(part: Part) -> PackedIndex:
    """The whole index; headers that could not be read are read again, for the reason."""
    sizes, orientation = part.columns["sizes"], part.columns["orientation"]
    reasons = dict(part.broken)
    without = [n for n in np.flatnonzero(sizes[:, 0] == 0).tolist() if n not in reasons]
    if without:
        sizes, orientation = sizes.copy(), orientation.copy()
    starts = np.cumsum([0, *part.rows])
    for image in without:
        path = part.stamps[int(np.searchsorted(starts, image, side="right")) - 1].path
        position, length = (int(part.columns[name][image]) for name in ("position", "length"))
        try:
            header = header_of(section(RecordFile(path), position, length))
        except BadImageError as error:
            reasons[image] = str(error)
        except OSError as error:
            raise UserError(why_not_read(path, error)) from error
        else:  # another version of the decoder
            sizes[image], orientation[image] = header[:2], header[2]
    passed_over: Counter[str] = Counter()
    for counts in part.passed_over:
        passed_over.update(counts)
    return PackedIndex(
        starts=starts.tolist(),
        names=part.names,
        position=part.columns["position"],
        length=part.columns["length"],
        sizes=sizes,
        orientation=orientation,
        label=part.columns["label"],
        classes=part.classes,
        unreadable=dict(sorted(reasons.items())),
        passed_over=passed_over,
        forget_pages=part.forget_pages,
    )
