"""PIL's antialiased bilinear resampling, compiled by Numba.

The arithmetic is Pillow's (src/libImaging/Resample.c): a triangle as wide as the scale, weights rounded
to 22 bits, sums in 32-bit integers, bytes between the horizontal and the vertical pass. Each pass is
bit-equal to Pillow's. Newer versions of Pillow do the vertical pass first where that is less work;
pixels then differ by up to one gray level.

Shapes: H W box, S crop side. Each row of the box needs `row_bytes(S)` bytes of scratch memory.
"""

from typing import Any

import numpy as np
from numba import njit

from fastsimsiam.loaders.resample_vectors import (
    BITS,
    HALF,
    LOW,
    LOW_BITS,
    ROWS,
    VECTOR,
    copy_bytes,
    weigh_eight_rows,
    weigh_rows,
    weigh_two_rows,
)

PADDING = 16
"""Bytes that may be read or written after the end of a row."""


def row_bytes(side: int) -> int:
    """Bytes of scratch memory for one row of the box."""
    return 3 * side + PADDING


@njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def most_taps(length: int, side: int) -> int:
    """Upper bound of the pixels that contribute to one pixel of a crop; a multiple of 4."""
    return (2 * int(max(length / side, 1.0)) + 6) // 4 * 4


@njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _fill_weights(length: int, side: int, first: Any, count: Any, weights: Any) -> None:
    """Which of `length` pixels contribute to each of `side` pixels, and their 22-bit weights."""
    scale = length / side
    support = max(scale, 1.0)
    inverse = 1.0 / support
    exact = np.empty(weights.shape[1], np.float64)
    for x in range(side):
        center = (x + 0.5) * scale
        low = max(int(center - support + 0.5), 0)
        high = min(int(center + support + 0.5), length)
        total = 0.0
        for k in range(high - low):
            weight = max(1.0 - abs((k + low - center + 0.5) * inverse), 0.0)
            exact[k] = weight
            total += weight
        first[x], count[x] = low, high - low
        for k in range(high - low):
            weights[x, k] = np.int32(0.5 + exact[k] / total * (1 << BITS))


@njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _group_weights(length: int, first: Any, count: Any, weights: Any, grouped: Any) -> None:
    """Weights for `weigher`: (S, groups, 2, 4), high and low parts for four neighbors.

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


# Arrays whose address is taken are arguments: Numba frees a local array after its last use by name.


@njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _horizontal(start: Any, pitch: Any, height: Any, first: Any, grouped: Any, rows: Any) -> None:
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


@njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _vertical(rows: Any, first: Any, count: Any, weights: Any, out: Any) -> None:
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
                out[y, i // 3, i % 3] = total >> BITS


@njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _resample(start: Any, pitch: Any, height: Any, width: Any, rows: Any, out: Any) -> None:
    """Resamples the box at address `start`, after which `PADDING` bytes are readable."""
    side = out.shape[0]
    first = np.empty(side, np.int64)
    count = np.empty(side, np.int64)
    weights = np.empty((side, most_taps(max(height, width), side)), np.int32)
    _fill_weights(width, side, first, count, weights)
    grouped = np.empty((side, (count.max() + 3) // 4, 2, 4), np.int16)
    _group_weights(width, first, count, weights, grouped)
    _horizontal(start, pitch, height, first, grouped, rows)
    _fill_weights(height, side, first, count, weights)
    _vertical(rows, first, count, weights, out)


@njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _resample_copy(
    start: Any, pitch: Any, height: Any, width: Any, copy: Any, rows: Any, out: Any
) -> None:
    """As `_resample`, from a copy of the box: for one without `PADDING` readable bytes after it."""
    corner = np.intp(copy.ctypes.data)
    for y in range(height):
        copy_bytes(corner + y * copy.shape[1], start + y * pitch, 3 * width)
    _resample(corner, np.intp(copy.shape[1]), height, width, rows, out)


@njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def resample_box(frame: Any, readable: Any, pitch: Any, box: Any, rows: Any, out: Any) -> None:
    """Cuts a box from a frame and resamples it.

    Args:
        frame: address of an RGB frame.
        readable: bytes that may be read from there. If they include `PADDING` bytes after the frame, no
            box has to be copied; otherwise boxes in the lower right corner are.
        pitch: bytes from one row of the frame to the next.
        box: top, left, height, width.
        rows: uint8 scratch memory, (height or more, row_bytes(S) or more). It has two dimensions
            because FFCV changes Numba's type of one-dimensional byte arrays, and so the keys of
            compiled code.
        out: (S, S, 3) uint8, contiguous; receives the crop.
    """
    # All of one type: Numba computes a signed with an unsigned integer in floating point.
    row = np.intp(pitch)
    top, left, height, width = np.intp(box[0]), np.intp(box[1]), np.intp(box[2]), np.intp(box[3])
    start = np.intp(frame) + top * row + 3 * left
    if (top + height - 1) * row + 3 * (left + width) + PADDING <= np.intp(readable):
        _resample(start, row, height, width, rows, out)
    else:
        copy = np.empty((height + 1, 3 * width + PADDING), np.uint8)
        _resample_copy(start, row, height, width, copy, rows, out)


def resample_boxes(frame: Any, boxes: Any, rows: Any, out: Any) -> None:
    """Cuts boxes from a frame and resamples them.

    Args:
        frame: (H, W, 3) uint8, contiguous.
        boxes: (V, 4) int32: top, left, height, width.
        rows: uint8 scratch memory, (H or more, row_bytes(S) or more).
        out: (V, S, S, 3) uint8, contiguous; receives the crops.
    """
    for view in range(len(boxes)):
        resample_box(
            frame.ctypes.data, frame.size, 3 * frame.shape[1], boxes[view], rows, out[view]
        )


try:
    # Cached, because compiling takes two seconds. Numba notices changes of this file only: after a
    # change of resample_vectors.py delete __pycache__.
    resample_boxes = njit(nogil=True, error_model="numpy", cache=True)(resample_boxes)
except RuntimeError:  # there is no writable folder for the cache
    resample_boxes = njit(nogil=True, error_model="numpy")(resample_boxes)
