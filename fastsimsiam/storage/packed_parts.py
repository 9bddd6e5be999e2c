"""What was read of files of images, in arrays: joined, cut by file, saved and loaded."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastsimsiam.storage.cached_arrays import load_arrays, save_arrays
from fastsimsiam.storage.labels import NO_LABEL, merged
from fastsimsiam.storage.names import Names
from fastsimsiam.storage.record_files import FileStamp

_COLUMNS = ("position", "length", "sizes", "orientation", "label")


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """The index of one file, or of several that were saved together; `rows` for each file.

    `forget_pages` see `cached_arrays.Loaded`.
    """

    stamps: Sequence[FileStamp]
    rows: Sequence[int]
    passed_over: Sequence[Mapping[str, int]]
    names: Names
    columns: Mapping[str, npt.NDArray[Any]]
    classes: Sequence[str]
    broken: Mapping[int, str] = field(default_factory=dict)
    forget_pages: Callable[[], None] = field(default=lambda: None)

    def of_file(self, number: int) -> "Part":
        """The index of one of the files."""
        first = int(sum(self.rows[:number]))
        end = first + self.rows[number]
        begin = int(self.names.ends[first - 1]) + 1 if first else 0
        stop = int(self.names.ends[end - 1]) + 1 if end > first else begin
        return Part(
            stamps=[self.stamps[number]],
            rows=[self.rows[number]],
            passed_over=[self.passed_over[number]],
            names=Names(self.names.content[begin:stop], self.names.ends[first:end] - begin),
            columns={name: column[first:end] for name, column in self.columns.items()},
            classes=self.classes,
        )


def joined(parts: Sequence[Part]) -> Part:
    """One index of all files."""
    classes, label = merged([(part.classes, part.columns["label"]) for part in parts])
    starts = np.cumsum([0] + [len(part.names) for part in parts]).tolist()
    empty = {"sizes": np.zeros((0, 2), np.int32), "orientation": np.zeros(0, np.uint8)}
    columns = {
        name: np.concatenate(
            [empty.get(name, np.zeros(0, np.int64)), *(part.columns[name] for part in parts)]
        )
        for name in _COLUMNS
    }
    return Part(
        stamps=[stamp for part in parts for stamp in part.stamps],
        rows=[rows for part in parts for rows in part.rows],
        passed_over=[counts for part in parts for counts in part.passed_over],
        names=Names.joined([part.names for part in parts]),
        columns=columns | {"label": label},
        classes=classes,
        broken={
            start + image: reason
            for start, part in zip(starts, parts, strict=False)
            for image, reason in part.broken.items()
        },
    )


def save_part(file: Path | None, root: Path, part: Part) -> None:
    """Saves what was read of files, which are below `root`."""
    files = Names.of(str(stamp.path.relative_to(root)) for stamp in part.stamps)
    facts = {"classes": list(part.classes), "passed_over": [dict(c) for c in part.passed_over]}
    arrays: dict[str, npt.NDArray[Any]] = {
        "files": files.content,
        "files_ends": files.ends,
        "files_bytes": np.array([stamp.size for stamp in part.stamps], np.int64),
        "files_mtime": np.array([stamp.mtime for stamp in part.stamps], np.int64),
        "files_rows": np.array(part.rows, np.int64),
        "names": part.names.content,
        "names_ends": part.names.ends,
    }
    columns = dict(part.columns)
    columns["sizes"] = np.ascontiguousarray(columns["sizes"]).reshape(-1)
    save_arrays(file, facts, arrays | columns)


def load_part(file: Path | None, root: Path, most_bytes: int) -> Part | None:
    """What `save_part` saved, checked; None if there is nothing of that kind.

    Args:
        file: of `cache_file`.
        root: the data set's folder or file.
        most_bytes: a larger file is not read.
    """
    loaded = load_arrays(file, most_bytes)
    if loaded is None:
        return None
    try:
        facts, arrays = loaded.facts, loaded.arrays
        files = Names.checked(arrays["files"], arrays["files_ends"])
        sizes, times, rows = (
            arrays[name].tolist() for name in ("files_bytes", "files_mtime", "files_rows")
        )
        names = Names.checked(arrays["names"], arrays["names_ends"])
        loaded.forget_pages()
        part = Part(
            stamps=[
                FileStamp(root / path, size, time)
                for path, size, time in zip(files, sizes, times, strict=True)
            ],
            rows=rows,
            passed_over=facts["passed_over"],
            names=names,
            columns={name: arrays[name] for name in _COLUMNS}
            | {"sizes": arrays["sizes"].reshape(-1, 2)},
            classes=facts["classes"],
            forget_pages=loaded.forget_pages,
        )
        if not _is_sane(part):
            return None
        loaded.forget_pages()
        return part
    except (KeyError, ValueError, TypeError, IndexError, AttributeError):
        return None


def _is_sane(part: Part) -> bool:
    """Whether all numbers are possible."""
    columns, count = part.columns, len(part.names)
    position, length = columns["position"], columns["length"]
    texts = all(isinstance(name, str) for name in part.classes)
    counts = all(
        isinstance(kind, str) and isinstance(number, int)
        for of_file in part.passed_over
        for kind, number in of_file.items()
    )
    if (
        not (texts and counts)
        or len(part.passed_over) != len(part.rows)
        or min(part.rows, default=0) < 0
        or sum(part.rows) != count
        or any(len(column) != count for column in columns.values())
        or any(columns[name].dtype != np.int64 for name in ("position", "length", "label"))
        or columns["sizes"].dtype != np.int32
        or columns["orientation"].dtype != np.uint8
    ):
        return False
    if not count:
        return True
    first = 0
    for stamp, rows in zip(part.stamps, part.rows, strict=True):
        of_file = slice(first, first + rows)
        # Each is below the file's size, so that their sum is no overflow.
        if rows and not (
            position[of_file].min() >= 0
            and position[of_file].max() <= stamp.size
            and length[of_file].min() >= 0
            and length[of_file].max() <= stamp.size
            and (position[of_file] + length[of_file]).max() <= stamp.size
        ):
            return False
        first += rows
    return bool(
        columns["sizes"].min() >= 0
        and columns["orientation"].min() >= 1
        and columns["orientation"].max() <= 8
        and columns["label"].min() >= NO_LABEL
        and columns["label"].max() < len(part.classes)
    )
