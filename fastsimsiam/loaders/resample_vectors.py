"""Vector instructions for resampling, in LLVM's intermediate representation.

Numba does not vectorize over the channels of a pixel, so weighted sums of pixels are written here
with LLVM's vectors. The horizontal sum multiplies neighboring pixels as 16-bit integers, and the CPU
adds the products in pairs (pmaddwd); a weight of 22 bits is split into two of 11. Pixels are written
as four bytes, and the fourth is overwritten by the next pixel.

Weights that are not negative, and add up to 1, keep a sum within a byte. A filter with negative weights
overshoots: its sums are signed, and clipped.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

BITS = 22
"""Fractional bits of a weight."""
HALF = 1 << (BITS - 1)
LOW_BITS = 11
LOW = (1 << LOW_BITS) - 1
ROWS = 8
"""Rows that the horizontal pass sums at a time."""
VECTOR = 32
"""Bytes of a row that the vertical pass sums at a time."""

_BYTE, _WORD, _INT = ir.IntType(8), ir.IntType(16), ir.IntType(32)


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


def _to_bytes(builder: Any, total: Any, clipped: bool) -> Any:
    """Rounded sums, a vector of integers, as bytes; `clipped`: they are signed and may overshoot."""
    lanes = total.type.count

    def constant(value: int) -> Any:
        return ir.Constant(total.type, [value] * lanes)

    if clipped:
        shifted = builder.ashr(total, constant(BITS))
        for sign, limit in (("<", 0), (">", 255)):
            beyond = builder.icmp_signed(sign, shifted, constant(limit))
            shifted = builder.select(beyond, constant(limit), shifted)
    else:
        shifted = builder.lshr(total, constant(BITS))
    return builder.trunc(shifted, ir.VectorType(_BYTE, lanes))


def pixel_weigher(rows: int, *, clipped: bool) -> Any:
    """An intrinsic that sums weighted neighboring RGB pixels to one pixel, in `rows` rows at a time.

    Arguments of the intrinsic: the address of the first pixel, the bytes from a row to the next, the
    address of the weights, the number of groups of four neighbors, the address that receives the pixel,
    and the bytes from a row to the next there. The weights of a group are eight int16: four high parts,
    then four low parts. All rows have the same weights, and their sums do not depend on each other.

    Args:
        rows: an even number.
        clipped: weights may be negative.
    """
    ints8, words16 = ir.VectorType(_INT, 8), ir.VectorType(_WORD, 16)
    halves = rows // 2  # a vector holds two rows

    def multiply(builder: Any, values: Any, weight: Any) -> Any:
        """(8,) sums of the products of pairs of (16,) words: one instruction, pmaddwd, if there is."""
        wide = ir.VectorType(_INT, 16)
        product = builder.mul(builder.sext(values, wide), builder.sext(weight, wide))
        even = _shuffle(builder, product, product, list(range(0, 16, 2)))
        odd = _shuffle(builder, product, product, list(range(1, 16, 2)))
        return builder.add(even, odd)

    def side_by_side(builder: Any, bytes32: Any, pixel: int) -> Any:
        """The channels of a pixel and its right neighbor, interleaved, as words, for two rows."""
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

        low, high = totals(HALF), totals(0)
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
            total = builder.shl(builder.load(high[half]), ir.Constant(ints8, [LOW_BITS] * 8))
            total = builder.add(total, builder.load(low[half]))
            pixels = _to_bytes(builder, total, clipped)
            for row in range(2):
                lanes = list(range(4 * row, 4 * row + 4))
                where = builder.mul(target_pitch, constant(2 * half + row))
                where = _at(builder, builder.add(target, where), ir.VectorType(_BYTE, 4))
                builder.store(_shuffle(builder, pixels, pixels, lanes), where, align=1)
        return context.get_dummy_value()

    def weigh(
        typing_context: Any,
        source: Any,
        pitch: Any,
        weights: Any,
        groups: Any,
        target: Any,
        target_pitch: Any,
    ) -> tuple[Any, Any]:
        address = types.uintp
        return types.void(address, address, address, types.intp, address, address), generate

    return intrinsic(weigh)


def row_weigher(*, clipped: bool) -> Any:
    """An intrinsic that sums `VECTOR` bytes of each of some weighted rows.

    Arguments of the intrinsic: the address of the first row, the bytes from a row to the next, the
    address of the int32 weights, the number of rows, and the address that receives the bytes.

    Args:
        clipped: weights may be negative.
    """
    ints = ir.VectorType(_INT, VECTOR)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, pitch, weights, count, target = arguments
        total = cgutils.alloca_once_value(builder, ir.Constant(ints, [HALF] * VECTOR))
        with cgutils.for_range(builder, count) as loop:
            entry = builder.add(weights, builder.mul(loop.index, ir.Constant(weights.type, 4)))
            weight = builder.load(_at(builder, entry, _INT), align=4)
            row = builder.add(source, builder.mul(loop.index, pitch))
            values = builder.zext(_load(builder, row, VECTOR), ints)
            product = builder.mul(values, _splat(builder, weight, VECTOR))
            builder.store(builder.add(builder.load(total), product), total)
        where = _at(builder, target, ir.VectorType(_BYTE, VECTOR))
        builder.store(_to_bytes(builder, builder.load(total), clipped), where, align=1)
        return context.get_dummy_value()

    def weigh(
        typing_context: Any, source: Any, pitch: Any, weights: Any, count: Any, target: Any
    ) -> tuple[Any, Any]:
        address = types.uintp
        return types.void(address, address, address, types.intp, address), generate

    return intrinsic(weigh)


@intrinsic  # type: ignore[untyped-decorator]
def copy_bytes(typing_context: Any, target: Any, source: Any, length: Any) -> tuple[Any, Any]:
    """Copies `length` bytes from address `source` to address `target`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, source, length = arguments
        cgutils.raw_memcpy(
            builder, _at(builder, target, _BYTE), _at(builder, source, _BYTE), length, 1
        )
        return context.get_dummy_value()

    return types.void(types.uintp, types.uintp, types.intp), generate
