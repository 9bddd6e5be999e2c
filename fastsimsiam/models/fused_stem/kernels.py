"""The stem as Triton kernels, for channels_last tensors on a GPU.

A program computes a few pixels of the pooled map, a group of channels each. The backward pass gathers,
without atomics: a block of 2x2 input pixels, which starts at the middle of its window, belongs to that
window and its neighbors to the right and below alone.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastsimsiam.models.fused_stem.tiles import PoolTile, RearrangeTile, pooled_size

_NOWHERE = tl.constexpr(9)
"""The position of a window whose gradient the ReLU stops."""


@triton.jit
def pool_kernel(
    x,
    scale,
    shift,
    pooled,
    largest,
    position,
    pixels,
    channels: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    NORM: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Maxima of windows and where they lie; with NORM, of relu(x * scale + shift)."""
    groups: tl.constexpr = (channels + CHANNELS - 1) // CHANNELS
    rows: tl.constexpr = (HEIGHT + 1) // 2
    columns: tl.constexpr = (WIDTH + 1) // 2
    # One axis: the grid's others end at 65,535.
    channel = tl.program_id(0) % groups * CHANNELS + tl.arange(0, CHANNELS)
    pixel = tl.program_id(0) // groups * PIXELS + tl.arange(0, PIXELS)
    column = pixel % columns
    row = pixel // columns % rows
    image = (pixel // (columns * rows)).to(tl.int64)
    inside = (pixel < pixels)[:, None] & (channel < channels)[None, :]
    middle = ((image * HEIGHT + 2 * row) * WIDTH + 2 * column) * channels
    at = x + middle[:, None] + channel[None, :]
    lowest = tl.full((1, CHANNELS), float("-inf"), tl.float32)
    if NORM:
        # The maximum is that of x, or of -x where the scale is negative: one product a window is left.
        known = channel < channels
        factor = tl.load(scale + channel, mask=known, other=0)[None, :]
        summand = tl.load(shift + channel, mask=known, other=0)[None, :]
        sign = tl.where(factor < 0, -1.0, 1.0)
        lowest = lowest * sign
    beyond = lowest.to(x.dtype.element_ty)
    best = tl.full((PIXELS, CHANNELS), float("-inf"), tl.float32)
    # As in torch, the window's first pixel within the map if all are -inf.
    first = tl.where(row > 0, 0, 3) + tl.where(column > 0, 0, 1)
    where = first[:, None] + tl.zeros((PIXELS, CHANNELS), tl.int32)
    for tap in tl.static_range(9):
        down = tap // 3 - 1
        across = tap % 3 - 1
        there = (2 * row + down >= 0) & (2 * row + down < HEIGHT)
        there = there & (2 * column + across >= 0) & (2 * column + across < WIDTH)
        offset = (down * WIDTH + across) * channels
        value = tl.load(at + offset, mask=inside & there[:, None], other=beyond).to(tl.float32)
        if NORM:
            value = value * sign
            # NaN passes; it is in all pixels of a channel, whose mean is NaN.
            stays = value <= best
            best = tl.where(stays, best, value)
            where = tl.where(stays, where, tap)
        else:
            # NaN is larger than all numbers, and of several the last counts.
            larger = (value > best) | (value != value)
            best = tl.where(larger, value, best)
            where = tl.where(larger, tap, where)
    out = (pixel.to(tl.int64) * channels)[:, None] + channel[None, :]
    if NORM:
        best = best * sign
        tl.store(largest + out, best.to(x.dtype.element_ty), mask=inside)
        best = best * factor + summand
        stopped = best <= 0
        best = tl.where(stopped, 0.0, best)
        where = tl.where(stopped, _NOWHERE, where)
    tl.store(pooled + out, best.to(x.dtype.element_ty), mask=inside)
    tl.store(position + out, where.to(tl.int8), mask=inside)


@triton.jit
def _at(gradient, position, TAP: tl.constexpr):
    """A window's gradient if its maximum lies there, else 0."""
    return tl.where(position == TAP, gradient, 0.0)


@triton.jit
def _store(result, x, at, gradient, factor, slope, level, mask, NORM: tl.constexpr):
    """Writes the gradient of one of four pixels, with NORM after BatchNorm's backward pass."""
    if NORM:
        value = tl.load(x + at, mask=mask, other=0).to(tl.float32)
        gradient = gradient * factor + (value * slope + level)
    tl.store(result + at, gradient.to(result.dtype.element_ty), mask=mask)


@triton.jit
def pool_gradient_kernel(
    gradient,
    position,
    x,
    scale,
    slopes,
    levels,
    result,
    pixels,
    channels: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    NORM: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """The gradient g of four pixels for each window; with NORM, g * scale + x * slope + level."""
    groups: tl.constexpr = (channels + CHANNELS - 1) // CHANNELS
    rows: tl.constexpr = (HEIGHT + 1) // 2
    columns: tl.constexpr = (WIDTH + 1) // 2
    channel = tl.program_id(0) % groups * CHANNELS + tl.arange(0, CHANNELS)
    pixel = tl.program_id(0) // groups * PIXELS + tl.arange(0, PIXELS)
    column = pixel % columns
    row = pixel // columns % rows
    image = (pixel // (columns * rows)).to(tl.int64)
    inside = (pixel < pixels)[:, None] & (channel < channels)[None, :]
    right = inside & (column + 1 < columns)[:, None]
    below = inside & (row + 1 < rows)[:, None]
    window = (pixel.to(tl.int64) * channels)[:, None] + channel[None, :]
    down: tl.constexpr = columns * channels
    here_g = tl.load(gradient + window, mask=inside, other=0).to(tl.float32)
    here = tl.load(position + window, mask=inside, other=_NOWHERE)
    right_g = tl.load(gradient + window + channels, mask=right, other=0).to(tl.float32)
    right_p = tl.load(position + window + channels, mask=right, other=_NOWHERE)
    below_g = tl.load(gradient + window + down, mask=below, other=0).to(tl.float32)
    below_p = tl.load(position + window + down, mask=below, other=_NOWHERE)
    last_g = tl.load(gradient + window + down + channels, mask=right & below, other=0)
    last_g = last_g.to(tl.float32)
    last_p = tl.load(position + window + down + channels, mask=right & below, other=_NOWHERE)
    factor = None
    slope = None
    level = None
    if NORM:
        known = channel < channels
        factor = tl.load(scale + channel, mask=known, other=0)[None, :]
        slope = tl.load(slopes + channel, mask=known, other=0)[None, :]
        level = tl.load(levels + channel, mask=known, other=0)[None, :]
    at = (((image * HEIGHT + 2 * row) * WIDTH + 2 * column) * channels)[:, None] + channel[None, :]
    across = inside & (2 * column + 1 < WIDTH)[:, None]
    under = inside & (2 * row + 1 < HEIGHT)[:, None]
    g = _at(here_g, here, 4)
    _store(result, x, at, g, factor, slope, level, inside, NORM)
    g = _at(here_g, here, 5) + _at(right_g, right_p, 3)
    _store(result, x, at + channels, g, factor, slope, level, across, NORM)
    g = _at(here_g, here, 7) + _at(below_g, below_p, 1)
    _store(result, x, at + WIDTH * channels, g, factor, slope, level, under, NORM)
    g = _at(here_g, here, 8) + _at(right_g, right_p, 6)
    g += _at(below_g, below_p, 2) + _at(last_g, last_p, 0)
    at += (WIDTH + 1) * channels
    _store(result, x, at, g, factor, slope, level, across & under, NORM)


@triton.jit
def space_to_depth_kernel(
    view,
    result,
    pixels,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BEFORE: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """Turns 2x2 pixels of three colors into twelve channels, and adds the border and four zeros."""
    pixel = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.arange(0, 16)
    column = (2 * (pixel % COLUMNS) - BEFORE)[:, None] + (channel % 2)[None, :]
    row = (2 * (pixel // COLUMNS % ROWS) - BEFORE)[:, None] + (channel // 2 % 2)[None, :]
    image = (pixel // (COLUMNS * ROWS)).to(tl.int64) * (HEIGHT * WIDTH * 3)
    there = (row >= 0) & (row < HEIGHT) & (column >= 0) & (column < WIDTH)
    there = there & (pixel < pixels)[:, None] & (channel < 12)[None, :]
    at = image[:, None] + ((row * WIDTH + column) * 3 + (channel // 4)[None, :])
    value = tl.load(view + at, mask=there, other=0)
    out = result + (pixel.to(tl.int64) * 16)[:, None] + channel[None, :]
    tl.store(out, value, mask=(pixel < pixels)[:, None])


def pool(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    outputs: tuple[Tensor, Tensor, Tensor | None],
    tile: PoolTile,
) -> None:
    """See `pool.max_pool` and `pool.norm_relu_pool`, whose `outputs` are written."""
    pooled, position, largest = outputs
    with torch.cuda.device_of(x):
        pool_kernel[_grid(pooled, tile)](
            _channels_last(x),
            scale,
            shift,
            pooled,
            largest,
            position,
            pooled.numel() // pooled.shape[1],
            x.shape[1],
            HEIGHT=x.shape[2],
            WIDTH=x.shape[3],
            NORM=scale is not None,
            PIXELS=tile.pixels,
            CHANNELS=tile.channels,
            num_warps=tile.warps,
        )


def pool_gradient(
    gradient: Tensor,
    position: Tensor,
    x: Tensor | None,
    coefficients: tuple[Tensor | None, Tensor | None, Tensor | None],
    result: Tensor,
    tile: PoolTile,
) -> None:
    """See `pool.max_pool_gradient` and `pool.norm_relu_pool_gradient`; `result` is written."""
    height, width = result.shape[2:]
    assert gradient.shape[2:] == (pooled_size(height), pooled_size(width))
    with torch.cuda.device_of(gradient):
        pool_gradient_kernel[_grid(gradient, tile)](
            _channels_last(gradient),
            _channels_last(position),
            None if x is None else _channels_last(x),
            *coefficients,
            result,
            gradient.numel() // gradient.shape[1],
            gradient.shape[1],
            HEIGHT=height,
            WIDTH=width,
            NORM=x is not None,
            PIXELS=tile.pixels,
            CHANNELS=tile.channels,
            num_warps=tile.warps,
        )


def space_to_depth(view: Tensor, result: Tensor, before: int, tile: RearrangeTile) -> None:
    """See `convolution.space_to_depth`; `result` is written."""
    images, _, rows, columns = result.shape
    pixels = images * rows * columns
    with torch.cuda.device_of(view):
        space_to_depth_kernel[(triton.cdiv(pixels, tile.pixels),)](
            _channels_last(view),
            result,
            pixels,
            HEIGHT=view.shape[2],
            WIDTH=view.shape[3],
            ROWS=rows,
            COLUMNS=columns,
            BEFORE=before,
            PIXELS=tile.pixels,
            num_warps=tile.warps,
        )


def _grid(pooled: Tensor, tile: PoolTile) -> tuple[int]:
    channels = pooled.shape[1]
    pixels = pooled.numel() // channels
    return (triton.cdiv(pixels, tile.pixels) * triton.cdiv(channels, tile.channels),)


def _channels_last(tensor: Tensor) -> Tensor:
    # The gradient of a pooling layer may be one value expanded over a map.
    return tensor.contiguous(memory_format=torch.channels_last)
