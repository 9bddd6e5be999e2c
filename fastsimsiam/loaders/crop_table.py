"""What the crop kernels need to know of every crop, as one table: one copy to the device per batch.

The kernels write the rows between the two passes to memory whose size is limited. Sizes and positions
in it follow from the boxes, which the host knows, so nothing is read back from the device.

Shapes: B batch, V views, N crops of all groups, S crop side, P pixels of all frames.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastsimsiam.config.views import Interpolation
from fastsimsiam.loaders.base import ViewGroup

Ints = npt.NDArray[np.int64]

COLUMNS = 6
"""Columns of a table, see `CropTable`: rows of 48 bytes, so each starts at a multiple of 16."""

MOST_BETWEEN = 1 << 28
"""Values between the passes at a time, of 2 bytes: enough for 1,024 crops of a common photo at 224."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Crops that are made by one launch of each kernel.

    Attributes:
        group: number of their group.
        side: side of the crops in pixels.
        interpolation: the filter.
        rows: their rows of the table.
    """

    group: int
    side: int
    interpolation: Interpolation
    rows: slice


@dataclass(frozen=True, kw_only=True)
class CropTable:
    """All crops of a batch.

    Attributes:
        table: (N, 6) int64: number of the crop among the B V of its group; position of the box's first
            pixel among the P; width of the frame; height of the box; width of the box; position of its
            first value between the passes.
        launches: which rows are processed together.
        between: number of values between the passes that every launch has room for.
    """

    table: Ints
    launches: list[Launch]
    between: int


def crop_table(
    offset: Ints, width: Ints, box: npt.NDArray[np.int32], groups: Sequence[ViewGroup]
) -> CropTable:
    """The table of a batch.

    Args:
        offset: (B,) position of each frame's first pixel.
        width: (B,) width of each frame in pixels.
        box: (B, all views, 4) top, left, height, width of each box.
        groups: the views by size.
    """
    tables: list[Ints] = []
    launches: list[Launch] = []
    first = between = 0
    for number, group in enumerate(groups):
        flat = box[:, group.views].reshape(-1, 4).astype(np.int64)
        frame_width = width.repeat(len(group.views))
        start = offset.repeat(len(group.views)) + flat[:, 0] * frame_width + flat[:, 1]
        for interpolation in dict.fromkeys(group.interpolations):
            alike = np.array([name == interpolation for name in group.interpolations])
            mine = np.flatnonzero(np.tile(alike, len(box)))
            values = 3 * group.side * flat[mine, 3]
            table = np.empty((len(mine), COLUMNS), np.int64)
            table[:, 0] = mine
            table[:, 1] = start[mine]
            table[:, 2] = frame_width[mine]
            table[:, 3:5] = flat[mine, 2:]
            for rows in _pieces(values):
                table[rows, 5] = np.cumsum(values[rows]) - values[rows]
                # The filters of the last columns read on, with weights of zero.
                beyond = _most_taps(int(flat[mine[rows], 3].max()), group.side)
                between = max(between, int(values[rows].sum()) + beyond)
                launches.append(
                    Launch(
                        group=number,
                        side=group.side,
                        interpolation=interpolation,
                        rows=slice(first + rows.start, first + rows.stop),
                    )
                )
            tables.append(table)
            first += len(table)
    # Of few distinct sizes, so that the allocator finds what it has freed.
    coarse = 1 << max(0, between.bit_length() - 4)
    return CropTable(
        table=np.concatenate(tables), launches=launches, between=-(-between // coarse) * coarse
    )


def _pieces(values: Ints) -> Iterator[slice]:
    """Splits crops with `values` (N,) between the passes into pieces of `MOST_BETWEEN` or less."""
    total = np.cumsum(values)
    first = before = 0
    while first < len(values):
        after = int(np.searchsorted(total, before + MOST_BETWEEN, side="right"))
        after = max(after, first + 1)
        yield slice(first, after)
        first, before = after, int(total[after - 1])


def _most_taps(longest: int, side: int) -> int:
    """Pixels that a filter of any kind spans at most, with one to spare."""
    return -(-4 * max(longest, side) // side) + 1
