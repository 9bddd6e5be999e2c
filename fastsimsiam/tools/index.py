"""`fastsimsiam index`: makes the index of a data set, and tells what is in it."""

from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastsimsiam.storage.base import Report, Storage, fingerprint
from fastsimsiam.storage.cached_arrays import forgotten
from fastsimsiam.storage.labels import NO_CLASSES
from fastsimsiam.storage.open import has_val, open_split, open_val
from fastsimsiam.storage.passed_over import notes
from fastsimsiam.system.text import printable

_NAMED = 20
"""Classes and broken images that are named; the JSON has all."""


@dataclass(frozen=True, kw_only=True)
class SplitIndex:
    """What is in a split of N images.

    Attributes:
        split: `train` or `val`.
        root: the folder or file that holds it.
        images: N.
        bytes: of all encoded images.
        fingerprint: changes when the images change (by name or size).
        height, width: smallest, median and largest, in pixels, of the upright images.
        turned: images that are turned by their EXIF data.
        classes: name -> number of images; empty without labels.
        broken: image -> reason, of images without a readable header.
        passed_over: kind -> number, of what is not among the images.
        notes: what the log of a run says of it.
    """

    split: str
    root: str
    images: int
    bytes: int
    fingerprint: str
    height: tuple[int, int, int]
    width: tuple[int, int, int]
    turned: int
    classes: dict[str, int]
    broken: dict[str, str]
    passed_over: dict[str, int]
    notes: list[str]

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def index(
    data: Path, *, val: Path | None = None, again: bool = False, report: Report | None = None
) -> tuple[SplitIndex, ...]:
    """Opens the splits of a data set, which makes their index, and counts.

    Args:
        data: a data set of any form.
        val: validation images of their own; None: those of `data`, if it has any.
        again: read all again, whatever an index says.
        report: receives the progress of reading.

    Returns:
        The training split, and the validation split where there is one.

    Raises:
        UserError: a split cannot be opened.
    """
    with forgotten() if again else nullcontext():
        train = open_split(data, "train", report=report)
        splits = [_counted("train", train)]
        if has_val(data, val):
            opened = open_val(data, val, classes=train.classes, report=report)
            splits.append(_counted("val", opened))
    return tuple(splits)


def format_index(splits: Sequence[SplitIndex]) -> str:
    """The index for people."""
    return "\n".join(line for split in splits for line in _lines(split))


def _counted(split: str, storage: Storage) -> SplitIndex:
    known = storage.sizes[storage.sizes[:, 0] > 0]
    height, width = (_spread(known[:, axis]) for axis in (0, 1))
    labeled = tuple(storage.classes) != NO_CLASSES
    counts = np.bincount(storage.label, minlength=len(storage.classes)).tolist()
    names = map(printable, storage.classes)
    return SplitIndex(
        split=split,
        root=printable(storage.root),
        images=len(storage),
        bytes=storage.bytes_total,
        fingerprint=fingerprint(storage),
        height=height,
        width=width,
        turned=int(np.count_nonzero(storage.orientation != 1)),
        classes=dict(zip(names, counts, strict=True)) if labeled else {},
        broken={storage.name(image): reason for image, reason in storage.unreadable.items()},
        passed_over=dict(storage.passed_over),
        notes=notes(storage),
    )


def _spread(sides: np.ndarray[Any, np.dtype[np.int32]]) -> tuple[int, int, int]:
    if not len(sides):
        return 0, 0, 0
    return int(sides.min()), int(np.median(sides)), int(sides.max())


def _lines(split: SplitIndex) -> list[str]:
    lines = [
        f"{split.split}: {split.images} images, {split.bytes / 1e6:.1f} MB, in {split.root}",
        f"  height {_range(split.height)}, width {_range(split.width)} pixels"
        + (f"; {split.turned} turned by EXIF" if split.turned else ""),
    ]
    if split.classes:
        counts = Counter(split.classes)
        fewest, most = min(counts.values()), max(counts.values())
        each = f"{fewest}" if fewest == most else f"{fewest} to {most}"
        lines.append(f"  {len(counts)} classes of {each} images: {_some(list(counts))}")
    else:
        lines.append("  no labels")
    if split.broken:
        named = [f"{name}: {reason}" for name, reason in split.broken.items()]
        lines.append(f"  {len(named)} without a readable header:")
        lines += [f"    {line}" for line in named[:_NAMED]]
        if len(named) > _NAMED:
            lines.append(f"    and {len(named) - _NAMED} more")
    return lines + [f"  {note}" for note in split.notes]


def _range(sides: tuple[int, int, int]) -> str:
    smallest, median, largest = sides
    return f"{smallest}" if smallest == largest else f"{smallest} to {largest} (median {median})"


def _some(names: Sequence[str]) -> str:
    more = f", and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
