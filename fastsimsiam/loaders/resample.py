"""PIL's antialiased bilinear and bicubic resampling, compiled by Numba.

The arithmetic is Pillow's (src/libImaging/Resample.c): a filter as wide as the scale, weights rounded
to 22 bits, sums in 32-bit integers, bytes between the horizontal and the vertical pass. Each pass is
bit-equal to Pillow's. Newer versions of Pillow do the vertical pass first where that is less work;
pixels then differ by up to one gray level, and by more where the bicubic filter overshoots.

Each filter has compiled code of its own, which is compiled when it is first used.

Shapes: H W box, S crop side. Each row of the box needs `row_bytes(S)` bytes of scratch memory.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numba import njit

from fastsimsiam.config.views import Interpolation
from fastsimsiam.loaders.resample_vectors import (
    BITS,
    HALF,
    LOW,
    LOW_BITS,
    ROWS,
    VECTOR,
    copy_bytes,
    pixel_weigher,
    row_weigher,
)

PADDING = 16
"""Bytes that may be read or written after the end of a row."""


def row_bytes(side: int) -> int:
    """Bytes of scratch memory for one row of the box."""
    return 3 * side + PADDING


def _compiled(function: Callable[..., Any]) -> Any:
    return njit(nogil=True, error_model="numpy")(function)


@_compiled
def _most_taps(length: int, side: int, radius: float) -> int:
    """Upper bound of the pixels that contribute to one pixel of a crop; a multiple of 4."""
    return (2 * int(max(length / side, 1.0) * radius) + 6) // 4 * 4


@_compiled
def _triangle(x: float) -> float:
    """The bilinear filter, of radius 1."""
    return max(1.0 - abs(x), 0.0)


@_compiled
def _cubic(x: float) -> float:
    """The bicubic filter, of radius 2: Keys' with a = -0.5."""
    x = abs(x)
    if x < 1.0:
        return (1.5 * x - 2.5) * x * x + 1.0
    if x < 2.0:
        return -0.5 * (((x - 5.0) * x + 8.0) * x - 4.0)
    return 0.0


@_compiled
def _group_weights(length: int, first: Any, count: Any, weights: Any, grouped: Any) -> None:
    """Weights for a `pixel_weigher`: (S, groups, 2, 4), high and low parts for four neighbors.

    All pixels have the same number of groups, so the CPU predicts the end of the loop. At the right
    edge groups begin further left, so at most `PADDING` bytes after the box are read.
    """
    for x in range(len(first)):
        shift = min(max(first[x] + 4 * grouped.shape[1] - length, 0), first[x])
        first[x] -= shift
        grouped[x] = 0
        for k in range(count[x]):
            group, place = divmod(k + shift, 4)
            grouped[x, group, 0, place] = weights[x, k] >> LOW_BITS
            grouped[x, group, 1, place] = weights[x, k] & LOW


def _resampler(name: Interpolation, curve: Any, radius: float, *, overshoots: bool) -> Any:
    """Compiled code that cuts a box from a frame and resamples it, see `resample_box`.

    Args:
        name: name of the filter.
        curve: the filter, a compiled function of the distance in pixels of the crop.
        radius: distance from which on the filter is 0.
        overshoots: the filter has negative values.
    """
    weigh_eight_rows = pixel_weigher(ROWS, clipped=overshoots)
    weigh_two_rows = pixel_weigher(2, clipped=overshoots)
    weigh_rows = row_weigher(clipped=overshoots)

    def compiled(function: Callable[..., Any]) -> Any:
        # Symbols are named after functions, and numbered in each process from 1. Of two of one name, in
        # code that two processes have kept, a third would call the same for both filters.
        function.__qualname__ = f"{name}_{function.__name__}"
        return _compiled(function)

    @compiled
    def fill_weights(length: int, side: int, first: Any, count: Any, weights: Any) -> None:
        """Which of `length` pixels contribute to each of `side` pixels, and their 22-bit weights."""
        scale = length / side
        stretch = max(scale, 1.0)
        support = radius * stretch
        inverse = 1.0 / stretch
        exact = np.empty(weights.shape[1], np.float64)
        for x in range(side):
            center = (x + 0.5) * scale
            low = max(int(center - support + 0.5), 0)
            high = min(int(center + support + 0.5), length)
            total = 0.0
            for k in range(high - low):
                weight = curve((k + low - center + 0.5) * inverse)
                exact[k] = weight
                total += weight
            first[x], count[x] = low, high - low
            for k in range(high - low):
                share = exact[k] / total * (1 << BITS)
                if overshoots and share < 0.0:
                    weights[x, k] = np.int32(share - 0.5)
                else:
                    weights[x, k] = np.int32(0.5 + share)

    # Arrays whose address is taken are arguments: Numba frees a local array after its last use by name.

    @compiled
    def horizontal(
        start: Any, pitch: Any, height: Any, first: Any, grouped: Any, rows: Any
    ) -> None:
        """Resamples each row of the box at address `start` to the crop's width, into `rows`."""
        side, num_groups = grouped.shape[:2]
        table, step = np.intp(grouped.ctypes.data), num_groups * 16
        scratch, row_length = np.intp(rows.ctypes.data), rows.shape[1]
        for block in range(0, height, ROWS):
            # The last block overlaps the one before.
            y = max(min(block, height - ROWS), 0)
            source, target = start + y * pitch, scratch + y * row_length
            for x in range(side):
                if height >= ROWS:
                    weigh_eight_rows(
                        source + 3 * first[x],
                        pitch,
                        table + x * step,
                        num_groups,
                        target + 3 * x,
                        row_length,
                    )
                else:
                    for row in range(height):  # twice the same row
                        weigh_two_rows(
                            source + row * pitch + 3 * first[x],
                            0,
                            table + x * step,
                            num_groups,
                            target + row * row_length + 3 * x,
                            0,
                        )

    @compiled
    def vertical(rows: Any, first: Any, count: Any, weights: Any, out: Any) -> None:
        """Resamples `rows` to the crop's height, into `out`."""
        scratch, row_length = np.intp(rows.ctypes.data), rows.shape[1]
        table, step = np.intp(weights.ctypes.data), 4 * weights.shape[1]
        crop, length = np.intp(out.ctypes.data), 3 * out.shape[1]
        for y in range(len(first)):
            source = scratch + first[y] * row_length
            entry, line = table + y * step, crop + y * length
            if length >= VECTOR:
                for part in range(0, length, VECTOR):
                    i = min(part, length - VECTOR)  # the last vector overlaps the one before
                    weigh_rows(source + i, row_length, entry, count[y], line + i)
            else:
                for i in range(length):
                    total = np.int64(HALF)
                    for k in range(count[y]):
                        total += np.int64(rows[first[y] + k, i]) * weights[y, k]
                    out[y, i // 3, i % 3] = min(max(total >> BITS, 0), 255)

    @compiled
    def resample(start: Any, pitch: Any, height: Any, width: Any, rows: Any, out: Any) -> None:
        """Resamples the box at address `start`, after which `PADDING` bytes are readable."""
        side = out.shape[0]
        first = np.empty(side, np.int64)
        count = np.empty(side, np.int64)
        weights = np.empty((side, _most_taps(max(height, width), side, radius)), np.int32)
        fill_weights(width, side, first, count, weights)
        grouped = np.empty((side, (count.max() + 3) // 4, 2, 4), np.int16)
        _group_weights(width, first, count, weights, grouped)
        horizontal(start, pitch, height, first, grouped, rows)
        fill_weights(height, side, first, count, weights)
        vertical(rows, first, count, weights, out)

    @compiled
    def resample_copy(
        start: Any, pitch: Any, height: Any, width: Any, copy: Any, rows: Any, out: Any
    ) -> None:
        """As `resample`, from a copy of the box: for one without `PADDING` readable bytes after it."""
        corner = np.intp(copy.ctypes.data)
        for y in range(height):
            copy_bytes(corner + y * copy.shape[1], start + y * pitch, 3 * width)
        resample(corner, np.intp(copy.shape[1]), height, width, rows, out)

    @compiled
    def resample_box(frame: Any, readable: Any, pitch: Any, box: Any, rows: Any, out: Any) -> None:
        # All of one type: Numba computes a signed with an unsigned integer in floating point.
        row = np.intp(pitch)
        top, left = np.intp(box[0]), np.intp(box[1])
        height, width = np.intp(box[2]), np.intp(box[3])
        start = np.intp(frame) + top * row + 3 * left
        if (top + height - 1) * row + 3 * (left + width) + PADDING <= np.intp(readable):
            resample(start, row, height, width, rows, out)
        else:
            copy = np.empty((height + 1, 3 * width + PADDING), np.uint8)
            resample_copy(start, row, height, width, copy, rows, out)

    return resample_box


_bilinear = _resampler("bilinear", _triangle, 1.0, overshoots=False)
_bicubic = _resampler("bicubic", _cubic, 2.0, overshoots=True)

resample_box: Mapping[Interpolation, Any] = {"bilinear": _bilinear, "bicubic": _bicubic}
"""Compiled code that cuts a box from a frame and resamples it, for use in other compiled code.

Arguments:
    frame: address of an RGB frame.
    readable: bytes that may be read from there. If they include `PADDING` bytes after the frame, no
        box has to be copied; otherwise boxes in the lower right corner are.
    pitch: bytes from one row of the frame to the next.
    box: top, left, height, width.
    rows: uint8 scratch memory, (height or more, row_bytes(S) or more). It has two dimensions because
        FFCV changes Numba's type of one-dimensional byte arrays, and so the keys of compiled code.
    out: (S, S, 3) uint8, contiguous; receives the crop.
"""


def _resample_bilinear(frame: Any, boxes: Any, rows: Any, out: Any) -> None:
    for view in range(len(boxes)):
        _bilinear(frame.ctypes.data, frame.size, 3 * frame.shape[1], boxes[view], rows, out[view])


def _resample_bicubic(frame: Any, boxes: Any, rows: Any, out: Any) -> None:
    for view in range(len(boxes)):
        _bicubic(frame.ctypes.data, frame.size, 3 * frame.shape[1], boxes[view], rows, out[view])


def _kept(function: Callable[..., Any]) -> Any:
    """Compiled code that is kept in a file, because compiling takes two seconds.

    Numba notices changes of this file only: after a change of resample_vectors.py delete __pycache__.
    """
    try:
        return njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # there is no writable folder for the file
        return _compiled(function)


resample_boxes: Mapping[Interpolation, Any] = {
    "bilinear": _kept(_resample_bilinear),
    "bicubic": _kept(_resample_bicubic),
}
"""Compiled code that cuts boxes from a frame and resamples them.

Arguments:
    frame: (H, W, 3) uint8, contiguous.
    boxes: (V, 4) int32: top, left, height, width.
    rows: uint8 scratch memory, (H or more, row_bytes(S) or more).
    out: (V, S, S, 3) uint8, contiguous; receives the crops.
"""
