"""PIL's antialiased bilinear resampling for compiled pipelines.

The arithmetic is Pillow's (src/libImaging/Resample.c): a triangle as wide as the scale, weights rounded
to 22 bits, sums in 32-bit integers, bytes between the horizontal and the vertical pass. Each pass is
Pillow's to the bit; but where the vertical one first is less work, newer versions of Pillow take it
first, and pixels then differ by up to one grey level.

Numba does not vectorise over the channels of a pixel, so both passes are written in vectors. The
horizontal one multiplies neighbouring pixels as 16-bit numbers, which a CPU adds up in pairs (pmaddwd);
a weight of 22 bits is two of 11. The fourth value that comes with a pixel is overwritten by the next.

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
_LOW_BITS = 11
_LOW = (1 << _LOW_BITS) - 1
_ROWS = 8
"""Rows that the horizontal pass does at once."""
_VECTOR = 32
"""Bytes of a row that the vertical pass sums at once."""
PADDING = 16
"""Bytes that may be read or written behind a row."""

_BYTE, _WORD, _INT = ir.IntType(8), ir.IntType(16), ir.IntType(32)


def row_bytes(side: int) -> int:
    """Scratch for one row of the box."""
    return 3 * side + PADDING


def _at(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def _load(builder: Any, address: Any, lanes: int) -> Any:
    return builder.load(_at(builder, address, ir.VectorType(_BYTE, lanes)), align=1)


def _shuffle(builder: Any, one: Any, other: Any, lanes: list[int]) -> Any:
    mask = ir.Constant(ir.VectorType(_INT, len(lanes)), lanes)
    return builder.shuffle_vector(one, other, mask)


def _splat(builder: Any, value: Any, lanes: int) -> Any:
    vector = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
    vector = builder.insert_element(vector, value, ir.Constant(_INT, 0))
    return _shuffle(builder, vector, vector, [0] * lanes)


def _weigher(rows: int) -> Any:
    """Sums neighbouring RGB pixels, weighted, to one pixel, in `rows` rows (an even number) at once.

    Its arguments: the address of the first of the pixels, bytes from a row to the next, the address of
    the weights, the number of groups of four neighbours, the address that receives the pixel, and
    bytes from a row to the next there. A group's weights are eight int16: four high parts, then four
    low parts. Rows share the weights, and their sums do not wait for each other.
    """
    ints8, words16 = ir.VectorType(_INT, 8), ir.VectorType(_WORD, 16)
    halves = rows // 2  # two rows make a vector

    def multiply(builder: Any, values: Any, weight: Any) -> Any:
        """(16,) words to (8,) sums of the products of pairs: one instruction on a CPU that has it."""
        wide = ir.VectorType(_INT, 16)
        product = builder.mul(builder.sext(values, wide), builder.sext(weight, wide))
        even = _shuffle(builder, product, product, list(range(0, 16, 2)))
        odd = _shuffle(builder, product, product, list(range(1, 16, 2)))
        return builder.add(even, odd)

    def side_by_side(builder: Any, bytes32: Any, pixel: int) -> Any:
        """The channels of a pixel and its right neighbour in turns, as words, for two rows."""
        zero = 32
        lanes = []
        for row in (0, 16):
            for channel in range(4):
                place = row + 3 * pixel + channel
                lanes += [place, zero, place + 3, zero]
        none = ir.Constant(ir.VectorType(_BYTE, 32), [0] * 32)
        return builder.bitcast(_shuffle(builder, bytes32, none, lanes), words16)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, pitch, weights, groups, target, target_pitch = arguments

        def constant(value: int) -> Any:
            return ir.Constant(weights.type, value)

        def totals(value: int) -> list[Any]:
            start = ir.Constant(ints8, [value] * 8)
            return [cgutils.alloca_once_value(builder, start) for _ in range(halves)]

        low, high = totals(_HALF), totals(0)
        with cgutils.for_range(builder, groups) as loop:
            entry = builder.add(weights, builder.mul(loop.index, constant(16)))
            parts = []
            for part in range(4):
                pair = _at(builder, builder.add(entry, constant(4 * part)), _INT)
                parts.append(
                    builder.bitcast(_splat(builder, builder.load(pair, align=4), 8), words16)
                )
            group = builder.add(source, builder.mul(loop.index, constant(12)))
            for half in range(halves):
                one, other = (
                    _load(builder, builder.add(group, builder.mul(pitch, constant(row))), 16)
                    for row in (2 * half, 2 * half + 1)
                )
                both = _shuffle(builder, one, other, list(range(32)))
                for pair in range(2):
                    values = side_by_side(builder, both, 2 * pair)
                    for total, part in ((high[half], parts[pair]), (low[half], parts[2 + pair])):
                        product = multiply(builder, values, part)
                        builder.store(builder.add(builder.load(total), product), total)
        for half in range(halves):
            total = builder.shl(builder.load(high[half]), ir.Constant(ints8, [_LOW_BITS] * 8))
            total = builder.add(total, builder.load(low[half]))
            shifted = builder.lshr(total, ir.Constant(ints8, [_BITS] * 8))
            pixels = builder.trunc(shifted, ir.VectorType(_BYTE, 8))
            for row in range(2):
                lanes = list(range(4 * row, 4 * row + 4))
                where = builder.mul(target_pitch, constant(2 * half + row))
                where = _at(builder, builder.add(target, where), ir.VectorType(_BYTE, 4))
                builder.store(_shuffle(builder, pixels, pixels, lanes), where, align=1)
        return context.get_dummy_value()

    def weigh(
        typing_context: Any, source: Any, pitch: Any, weights: Any, groups: Any, target: Any,
        target_pitch: Any,
    ) -> tuple[Any, Any]:  # fmt: skip
        address = types.uintp
        return types.void(address, address, address, types.intp, address, address), generate

    return intrinsic(weigh)


_weigh_eight_rows = _weigher(_ROWS)
_weigh_two_rows = _weigher(2)


@intrinsic  # type: ignore[untyped-decorator]
def _weigh_rows(
    typing_context: Any, source: Any, pitch: Any, weights: Any, count: Any, target: Any
) -> tuple[Any, Any]:
    """Sums `_VECTOR` bytes of `count` rows that lie `pitch` apart, weighted by int32."""
    signature = types.void(types.uintp, types.uintp, types.uintp, types.intp, types.uintp)
    ints = ir.VectorType(_INT, _VECTOR)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, pitch, weights, count, target = arguments
        total = cgutils.alloca_once_value(builder, ir.Constant(ints, [_HALF] * _VECTOR))
        with cgutils.for_range(builder, count) as loop:
            entry = builder.add(weights, builder.mul(loop.index, ir.Constant(weights.type, 4)))
            weight = builder.load(_at(builder, entry, _INT), align=4)
            row = builder.add(source, builder.mul(loop.index, pitch))
            values = builder.zext(_load(builder, row, _VECTOR), ints)
            product = builder.mul(values, _splat(builder, weight, _VECTOR))
            builder.store(builder.add(builder.load(total), product), total)
        shifted = builder.lshr(builder.load(total), ir.Constant(ints, [_BITS] * _VECTOR))
        where = _at(builder, target, ir.VectorType(_BYTE, _VECTOR))
        builder.store(builder.trunc(shifted, ir.VectorType(_BYTE, _VECTOR)), where, align=1)
        return context.get_dummy_value()

    return signature, generate


@intrinsic  # type: ignore[untyped-decorator]
def _copy_bytes(typing_context: Any, target: Any, source: Any, length: Any) -> tuple[Any, Any]:
    """Copies `length` bytes from an address to another."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, source, length = arguments
        cgutils.raw_memcpy(
            builder, _at(builder, target, _BYTE), _at(builder, source, _BYTE), length, 1
        )
        return context.get_dummy_value()

    return types.void(types.uintp, types.uintp, types.intp), generate


@njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def most_taps(length: int, side: int) -> int:
    """An upper bound of the pixels that one pixel of a crop is made of; a multiple of 4."""
    return (2 * int(max(length / side, 1.0)) + 6) // 4 * 4


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
def _group_weights(length: int, first: Any, count: Any, weights: Any, grouped: Any) -> None:
    """Weights for `_weigher`: (S, groups, 2, 4), high and low parts of four neighbours.

    All pixels get as many groups: a CPU foresees the end of loops that are always as long. At the right
    edge groups begin further left, so that nothing is read that lies far behind the box.
    """
    for x in range(len(first)):
        shift = min(max(first[x] + 4 * grouped.shape[1] - length, 0), first[x])
        first[x] -= shift
        grouped[x] = 0
        for k in range(count[x]):
            group, place = divmod(k + shift, 4)
            grouped[x, group, 0, place] = weights[x, k] >> _LOW_BITS
            grouped[x, group, 1, place] = weights[x, k] & _LOW


# Memory whose address is taken is an argument: Numba frees an array after its name's last mention.


@njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _horizontal(start: Any, pitch: Any, height: Any, first: Any, grouped: Any, rows: Any) -> None:
    """Sums pixels of each row of a box that begins at `start` into a row of the crop's width."""
    side, num_groups = grouped.shape[:2]
    table, step = np.intp(grouped.ctypes.data), num_groups * 16
    scratch, row_length = np.intp(rows.ctypes.data), rows.shape[1]
    for block in range(0, height, _ROWS):
        # The last rows come with some of those before, once more.
        y = max(min(block, height - _ROWS), 0)
        source, target = start + y * pitch, scratch + y * row_length
        for x in range(side):
            if height >= _ROWS:
                _weigh_eight_rows(
                    source + 3 * first[x], pitch, table + x * step, num_groups,
                    target + 3 * x, row_length,
                )  # fmt: skip
            else:
                for row in range(height):  # as both of two rows
                    _weigh_two_rows(
                        source + row * pitch + 3 * first[x], 0, table + x * step, num_groups,
                        target + row * row_length + 3 * x, 0,
                    )  # fmt: skip


@njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _vertical(rows: Any, first: Any, count: Any, weights: Any, out: Any) -> None:
    """Sums rows to those of the crop."""
    scratch, row_length = np.intp(rows.ctypes.data), rows.shape[1]
    table, step = np.intp(weights.ctypes.data), 4 * weights.shape[1]
    crop, length = np.intp(out.ctypes.data), 3 * out.shape[1]
    for y in range(len(first)):
        source = scratch + first[y] * row_length
        entry, line = table + y * step, crop + y * length
        if length >= _VECTOR:
            for part in range(0, length, _VECTOR):
                i = min(part, length - _VECTOR)  # the last ones, some of them once more
                _weigh_rows(source + i, row_length, entry, count[y], line + i)
        else:
            for i in range(length):
                total = np.int64(_HALF)
                for k in range(count[y]):
                    total += np.int64(rows[first[y] + k, i]) * weights[y, k]
                out[y, i // 3, i % 3] = total >> _BITS


@njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _resample(start: Any, pitch: Any, height: Any, width: Any, rows: Any, out: Any) -> None:
    """Resamples a box that begins at `start`, with `PADDING` readable bytes behind it."""
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
    """The same by way of `copy`, where too little may be read behind the box."""
    corner = np.intp(copy.ctypes.data)
    for y in range(height):
        _copy_bytes(corner + y * copy.shape[1], start + y * pitch, 3 * width)
    _resample(corner, np.intp(copy.shape[1]), height, width, rows, out)


@njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def resample_box(frame: Any, readable: Any, pitch: Any, box: Any, rows: Any, out: Any) -> None:
    """Cuts a box from a frame and resamples it.

    Args:
        frame: address of an RGB frame.
        readable: bytes from there on that may be read. Where `PADDING` of them lie behind the frame, no
            box needs a copy; otherwise those in the last corner do.
        pitch: bytes from one row of the frame to the next.
        box: top, left, height, width.
        rows: uint8 scratch, (height or more, row_bytes(S) or more). Of two dimensions, because FFCV
            changes Numba's type of one-dimensional byte arrays, and so the keys of compiled code.
        out: (S, S, 3) uint8, contiguous.
    """
    # All integers alike: of a signed and an unsigned one Numba makes floats.
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
        rows: uint8 scratch, (H or more, row_bytes(S) or more).
        out: (V, S, S, 3) uint8, contiguous.
    """
    for view in range(len(boxes)):
        resample_box(
            frame.ctypes.data, frame.size, 3 * frame.shape[1], boxes[view], rows, out[view]
        )


try:
    # Compiling takes two seconds. Numba looks at no other file to see that what it kept is stale.
    resample_boxes = njit(nogil=True, error_model="numpy", cache=True)(resample_boxes)
except RuntimeError:  # no folder to keep it in can be written to
    resample_boxes = njit(nogil=True, error_model="numpy")(resample_boxes)
