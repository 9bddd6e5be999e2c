"""PIL's antialiased bilinear resampling for compiled pipelines.

The arithmetic is Pillow's (src/libImaging/Resample.c): a triangle as wide as the scale, weights rounded
to 22 bits, sums in 32-bit integers, bytes between the horizontal and the vertical pass. Each pass is
Pillow's to the bit; but where the vertical one first is less work, newer versions of Pillow take it
first, and pixels then differ by up to one grey level.

Numba does not vectorise over the three channels of a pixel, so the horizontal pass works on vectors of
four bytes: the fourth is the next pixel's, and is overwritten by it.

Shapes: H W box, S side of the crop. `row_bytes(S)` bytes of scratch are needed for each row of the box.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

_BITS = 22
_HALF = 1 << (_BITS - 1)
PADDING = 4
"""Bytes that may be read or written behind a row."""


def row_bytes(side: int) -> int:
    """Scratch for one row of the box."""
    return 3 * side + PADDING


@intrinsic  # type: ignore[untyped-decorator]
def _weigh_pixels(
    typing_context: Any, sources: Any, weights: Any, count: Any, targets: Any
) -> tuple[Any, Any]:
    """In each of four rows, sums `count` neighbouring RGB pixels, weighted, to one pixel.

    `sources` and `targets` are tuples of four addresses, `weights` is the address of `count` int32.
    Four rows at a time share the weights, and their sums do not wait for each other.
    """
    rows = types.UniTuple(types.uintp, 4)
    signature = types.void(rows, types.uintp, types.intp, rows)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        sources, weights, count, targets = arguments
        byte, word = ir.IntType(8), ir.IntType(32)
        address = weights.type
        bytes4, words4 = ir.VectorType(byte, 4), ir.VectorType(word, 4)
        totals = [
            cgutils.alloca_once_value(builder, ir.Constant(words4, [_HALF] * 4)) for _ in range(4)
        ]
        with cgutils.for_range(builder, count) as loop:
            entry = builder.add(weights, builder.mul(loop.index, ir.Constant(address, 4)))
            weight = builder.load(builder.inttoptr(entry, word.as_pointer()))
            splat = builder.insert_element(
                ir.Constant(words4, ir.Undefined), weight, ir.Constant(word, 0)
            )
            splat = builder.shuffle_vector(
                splat, ir.Constant(words4, ir.Undefined), ir.Constant(words4, [0] * 4)
            )
            pixel = builder.mul(loop.index, ir.Constant(address, 3))
            for row, total in enumerate(totals):
                where = builder.add(builder.extract_value(sources, row), pixel)
                values = builder.load(builder.inttoptr(where, bytes4.as_pointer()), align=1)
                product = builder.mul(builder.zext(values, words4), splat)
                builder.store(builder.add(builder.load(total), product), total)
        for row, total in enumerate(totals):
            shifted = builder.lshr(builder.load(total), ir.Constant(words4, [_BITS] * 4))
            where = builder.inttoptr(builder.extract_value(targets, row), bytes4.as_pointer())
            builder.store(builder.trunc(shifted, bytes4), where, align=1)
        return context.get_dummy_value()

    return signature, generate


@njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def most_taps(length: int, side: int) -> int:
    """An upper bound of the pixels that one pixel of a crop is made of."""
    return int(2 * max(length / side, 1.0)) + 3


@njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _fill_weights(length: int, side: int, first: Any, count: Any, weights: Any) -> None:
    """Which pixels of `length` make each of `side` pixels, and their 22-bit weights."""
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
            weights[x, k] = np.int32(0.5 + exact[k] / total * (1 << _BITS))


@njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def resample_box(frame: int, pitch: int, box: Any, rows: Any, out: Any) -> None:
    """Cuts a box from a frame and resamples it.

    Args:
        frame: address of an RGB frame, with `PADDING` readable bytes behind it.
        pitch: bytes from one row of it to the next.
        box: top, left, height, width.
        rows: uint8 scratch, (height or more, row_bytes(S) or more). Of two dimensions, because FFCV
            changes Numba's type of one-dimensional byte arrays, and so the keys of compiled code.
        out: (S, S, 3) uint8, contiguous.
    """
    side = out.shape[0]
    top, left, height, width = box[0], box[1], box[2], box[3]
    first = np.empty(side, np.int64)
    count = np.empty(side, np.int64)
    weights = np.empty((side, most_taps(max(height, width), side)), np.int32)
    row_length = rows.shape[1]
    scratch = rows.ctypes.data
    _fill_weights(width, side, first, count, weights)
    step = weights.shape[1] * 4
    table = weights.ctypes.data
    start = frame + top * pitch + 3 * left
    for y in range(0, height, 4):
        # Behind the last row, the last row again.
        y0, y1, y2, y3 = y, min(y + 1, height - 1), min(y + 2, height - 1), min(y + 3, height - 1)
        s0, s1, s2, s3 = (
            start + y0 * pitch,
            start + y1 * pitch,
            start + y2 * pitch,
            start + y3 * pitch,
        )
        t0, t1 = scratch + y0 * row_length, scratch + y1 * row_length
        t2, t3 = scratch + y2 * row_length, scratch + y3 * row_length
        for x in range(side):
            i, o = 3 * first[x], 3 * x
            _weigh_pixels(
                (s0 + i, s1 + i, s2 + i, s3 + i), table + x * step, count[x],
                (t0 + o, t1 + o, t2 + o, t3 + o),
            )  # fmt: skip
    _fill_weights(height, side, first, count, weights)
    total = np.empty(3 * side, np.int32)
    for y in range(side):
        total[:] = _HALF
        for k in range(count[y]):
            weight = weights[y, k]
            row = rows[first[y] + k]
            for i in range(3 * side):
                total[i] += np.int32(row[i]) * weight
        line = out[y].reshape(3 * side)
        for i in range(3 * side):
            line[i] = np.uint8(total[i] >> _BITS)
