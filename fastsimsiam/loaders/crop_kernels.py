"""Crops as Triton kernels: the vertical pass, then the horizontal one, for all crops of a launch.

A program filters a tile of one crop by a loop over the taps of the filter, whose weights it computes on
the way: the passes read and write little more than the pixels themselves, where matrix products
multiply by zeros. The same filters as in `device_crop.py`. The rows between the passes are planes of
16 bits, 8 of them behind the point: half of float32's bytes. They lie in 0 to 255, since the cubic is
clipped there. Of a thousand values of a crop this changes one at most, by one.

Shapes: N crops, S crop side, P pixels of all frames; the table's columns are those of
`crop_table.CropTable`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastsimsiam.config.views import Interpolation

VERTICAL = (256, 128, 1)
"""Pixels of a tile, its most columns, and warps: a row's weights serve several pixels of a thread."""

HORIZONTAL = (32, 32, 4)
"""Rows of a tile, its columns, and warps: a column's weights serve several pixels of a thread."""


def vertical_tile(side: int) -> tuple[int, int, int]:
    """Rows of a tile, its columns, and warps: boxes are about as wide as the crops, or wider."""
    pixels, most, warps = VERTICAL
    columns = min(most, 1 << (side - 1).bit_length())
    return max(1, pixels // columns), columns, warps


@triton.jit
def _taps(length, center, SIDE: tl.constexpr, CUBIC: tl.constexpr):
    """First tap at each center, and one over the filter's stretch."""
    stretch = tl.maximum(tl.div_rn(length.to(tl.float32), SIDE * 1.0), 1.0)
    radius = stretch * 2.0 if CUBIC else stretch
    first = tl.floor(center - radius + 0.5).to(tl.int32)
    return tl.maximum(first, 0), tl.div_rn(1.0, stretch)


@triton.jit
def _weight(tap, center, inverse, length, CUBIC: tl.constexpr):
    """Weight of the pixels `tap`, before normalization; zero behind the box."""
    x = tl.abs(tap.to(tl.float32) + 0.5 - center) * inverse
    if CUBIC:
        near = (1.5 * x - 2.5) * x * x + 1.0
        far = -0.5 * (((x - 5.0) * x + 8.0) * x - 4.0)
        weight = tl.where(x < 1.0, near, tl.where(x < 2.0, far, 0.0))
    else:
        weight = tl.maximum(1.0 - x, 0.0)
    return tl.where(tap < length, weight, 0.0)


@triton.jit
def _nearest(value, most: tl.constexpr, CUBIC: tl.constexpr):
    """The nearest of 0 to `most`, as int32; halves to even.

    The sum's last bits are the number itself; a conversion would take four times as long.
    """
    if CUBIC:  # the triangle overshoots by roundings at most, which do not show
        value = tl.minimum(tl.maximum(value, 0.0), most)
    return (value + 8388608.0).to(tl.int32, bitcast=True)


@triton.jit
def vertical_kernel(
    frames,
    table,
    between,
    SIDE: tl.constexpr,
    CUBIC: tl.constexpr,
    ROWS: tl.constexpr,
    PIXELS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Some rows of a crop before the horizontal pass, each as three planes of the box's width."""
    blocks: tl.constexpr = (SIDE + ROWS - 1) // ROWS
    program = tl.program_id(0)
    entry = table + program // blocks * COLUMNS
    start = tl.load(entry + 1)
    stride = tl.load(entry + 2) * 3
    height = tl.load(entry + 3).to(tl.int32)
    box_width = tl.load(entry + 4).to(tl.int32)
    row = program % blocks * ROWS + tl.arange(0, ROWS)
    center = (tl.minimum(row, SIDE - 1) + 0.5) * tl.div_rn(height.to(tl.float32), SIDE * 1.0)
    first, inverse = _taps(height, center, SIDE, CUBIC)
    count = tl.cdiv(tl.maximum(height, SIDE) * (4 if CUBIC else 2), SIDE)
    source = frames + start * 3
    target = between + tl.load(entry + 5) + row[:, None] * (3 * box_width)
    for left in range(0, box_width, PIXELS):
        pixel = left + tl.arange(0, PIXELS)
        # Threads behind the box load its last pixel: a condition would cost more.
        column = tl.minimum(pixel, box_width - 1)[None, :] * 3
        red = tl.zeros((ROWS, PIXELS), tl.float32)
        green = tl.zeros((ROWS, PIXELS), tl.float32)
        blue = tl.zeros((ROWS, PIXELS), tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        for number in range(count):
            tap = first + number
            weight = _weight(tap, center, inverse, height, CUBIC)
            total += weight
            # In 64 bits, since a frame may have more than 2^31 bytes.
            line = tl.minimum(tap, height - 1).to(tl.int64) * stride
            at = source + line[:, None] + column
            red += weight[:, None] * tl.load(at).to(tl.float32)
            green += weight[:, None] * tl.load(at + 1).to(tl.float32)
            blue += weight[:, None] * tl.load(at + 2).to(tl.float32)
        # In steps of 1/256, which are exact also for the quarters of a doubled picture.
        one = tl.div_rn(256.0, total)[:, None]
        there = (row < SIDE)[:, None] & (pixel < box_width)[None, :]
        to = target + pixel[None, :]
        tl.store(to, _nearest(red * one, 65280.0, CUBIC).to(tl.uint16), mask=there)
        tl.store(to + box_width, _nearest(green * one, 65280.0, CUBIC).to(tl.uint16), mask=there)
        tl.store(to + 2 * box_width, _nearest(blue * one, 65280.0, CUBIC).to(tl.uint16), mask=there)


@triton.jit
def horizontal_kernel(
    between,
    table,
    crops,
    SIDE: tl.constexpr,
    CUBIC: tl.constexpr,
    ROWS: tl.constexpr,
    PIXELS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """A tile of a crop."""
    across: tl.constexpr = (SIDE + PIXELS - 1) // PIXELS
    blocks: tl.constexpr = (SIDE + ROWS - 1) // ROWS * across
    program = tl.program_id(0)
    entry = table + program // blocks * COLUMNS
    box_width = tl.load(entry + 4).to(tl.int32)
    row = program % blocks // across * ROWS + tl.arange(0, ROWS)
    column = program % across * PIXELS + tl.arange(0, PIXELS)
    center = (tl.minimum(column, SIDE - 1) + 0.5) * tl.div_rn(box_width.to(tl.float32), SIDE * 1.0)
    first, inverse = _taps(box_width, center, SIDE, CUBIC)
    count = tl.cdiv(tl.maximum(box_width, SIDE) * (4 if CUBIC else 2), SIDE)
    source = between + tl.load(entry + 5) + tl.minimum(row, SIDE - 1)[:, None] * (3 * box_width)
    red = tl.zeros((ROWS, PIXELS), tl.float32)
    green = tl.zeros((ROWS, PIXELS), tl.float32)
    blue = tl.zeros((ROWS, PIXELS), tl.float32)
    total = tl.zeros((PIXELS,), tl.float32)
    for number in range(count):
        tap = first + number
        weight = _weight(tap, center, inverse, box_width, CUBIC)
        total += weight
        # Behind the box there is something else's value, whose weight is zero.
        at = source + tap[None, :]
        red += weight[None, :] * tl.load(at).to(tl.float32)
        green += weight[None, :] * tl.load(at + box_width).to(tl.float32)
        blue += weight[None, :] * tl.load(at + 2 * box_width).to(tl.float32)
    one = tl.div_rn(1.0 / 256.0, total)[None, :]
    there = (row < SIDE)[:, None] & (column < SIDE)[None, :]
    inner = row[:, None] * (SIDE * 3) + column[None, :] * 3
    to = crops + tl.load(entry) * (SIDE * SIDE * 3) + inner
    tl.store(to, _nearest(red * one, 255.0, CUBIC).to(tl.uint8), mask=there)
    tl.store(to + 1, _nearest(green * one, 255.0, CUBIC).to(tl.uint8), mask=there)
    tl.store(to + 2, _nearest(blue * one, 255.0, CUBIC).to(tl.uint8), mask=there)


def crop_resize(
    frames: Tensor, table: Tensor, between: Tensor, crops: Tensor, interpolation: Interpolation
) -> None:
    """Makes some crops of a group.

    Args:
        frames: (P, 3) uint8 pixels of all frames.
        table: (N, 6) int64: the crops to be made.
        between: room for the values between the passes, 16 bits each.
        crops: (crops of the group, S, S, 3) uint8; receives the N crops at their numbers.
        interpolation: the filter.
    """
    side = crops.shape[1]
    constants = {"SIDE": side, "CUBIC": interpolation == "bicubic", "COLUMNS": table.shape[1]}
    # One rounding for a product and its sum: Triton's default, of which it warns that it will change.
    constants |= {"num_stages": 1, "enable_fp_fusion": True}
    with torch.cuda.device_of(frames):
        rows, columns, warps = vertical_tile(side)
        tile = {"ROWS": rows, "PIXELS": columns, "num_warps": warps}
        programs = len(table) * triton.cdiv(side, rows)
        vertical_kernel[(programs,)](frames, table, between, **constants, **tile)
        rows, columns, warps = HORIZONTAL
        tile = {"ROWS": rows, "PIXELS": columns, "num_warps": warps}
        programs = len(table) * triton.cdiv(side, rows) * triton.cdiv(side, columns)
        horizontal_kernel[(programs,)](between, table, crops, **constants, **tile)
