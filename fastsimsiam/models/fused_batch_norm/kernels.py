"""BatchNorm's sums as Triton kernels, for channels_last tensors on a GPU.

A tensor is a matrix of pixels and channels. A program sums a group of channels over a part of the
pixels, tile by tile, with one running sum per element of the tile: threads exchange nothing before the
end. The number of pixels per program follows from the number of programs that saturate the memory; the
caller adds up the remaining sums of each channel.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastsimsiam.models.fused_batch_norm.split import Tile, num_groups, num_parts, rows_per_part


@triton.jit
def moments_kernel(
    x,
    means,
    squares,
    rows,
    channels: tl.constexpr,
    rows_per_part,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Mean and sum of squared differences of a part of the pixels."""
    part = tl.program_id(1)
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    first = part * rows_per_part
    count = tl.minimum(rows - first, rows_per_part)
    base = x + first.to(tl.int64) * channels
    # Differences to a value near the mean, here the part's first pixel, avoid cancellation in squares.
    near = tl.load(base + channel, mask=inside, other=0).to(tl.float32)
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    square = tl.zeros((ROWS, CHANNELS), tl.float32)
    for start in tl.range(0, rows_per_part, ROWS, num_stages=STAGES):
        row = start + tl.arange(0, ROWS)
        there = (row < count)[:, None] & inside[None, :]
        value = tl.load(base + row[:, None] * channels + channel[None, :], mask=there, other=0)
        difference = tl.where(there, value.to(tl.float32) - near[None, :], 0)
        total += difference
        square += difference * difference
    sums = tl.sum(total, 0)
    tl.store(means + part * channels + channel, near + sums / count, mask=inside)
    tl.store(
        squares + part * channels + channel, tl.sum(square, 0) - sums * sums / count, mask=inside
    )


@triton.jit
def gradient_sums_kernel(
    gradient,
    other,
    x,
    mean,
    scale,
    shift,
    output,
    kept,
    sums,
    products,
    rows,
    channels: tl.constexpr,
    rows_per_part,
    TWO: tl.constexpr,
    RELU: tl.constexpr,
    FROM_OUTPUT: tl.constexpr,
    KEEP: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Sums of the gradient of a ReLU's input, and of its products with the centered input."""
    part = tl.program_id(1)
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    first = part * rows_per_part
    count = tl.minimum(rows - first, rows_per_part)
    base = first.to(tl.int64) * channels
    center = tl.load(mean + channel, mask=inside, other=0)
    if RELU and not FROM_OUTPUT:
        factor = tl.load(scale + channel, mask=inside, other=0)
        summand = tl.load(shift + channel, mask=inside, other=0)
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    product = tl.zeros((ROWS, CHANNELS), tl.float32)
    for start in tl.range(0, rows_per_part, ROWS, num_stages=STAGES):
        row = start + tl.arange(0, ROWS)
        there = (row < count)[:, None] & inside[None, :]
        at = row[:, None] * channels + channel[None, :]
        value = tl.load(x + base + at, mask=there, other=0).to(tl.float32)
        g = tl.load(gradient + base + at, mask=there, other=0)
        if TWO:
            second = tl.load(other + base + at, mask=there, other=0)
            g = (g.to(tl.float32) + second.to(tl.float32)).to(kept.dtype.element_ty)
        if RELU:
            if FROM_OUTPUT:
                made = tl.load(output + base + at, mask=there, other=0).to(tl.float32)
            else:
                made = value * factor[None, :] + summand[None, :]
            g = tl.where(made > 0, g, tl.zeros_like(g))
        if KEEP:
            tl.store(kept + base + at, g, mask=there)
        g = g.to(tl.float32)
        total += g
        product += g * (value - center[None, :])
    tl.store(sums + part * channels + channel, tl.sum(total, 0), mask=inside)
    tl.store(products + part * channels + channel, tl.sum(product, 0), mask=inside)


def moments(x: Tensor, tile: Tile) -> tuple[Tensor, Tensor]:
    """See `sums.channel_moments`."""
    x = _channels_last(x)
    rows, channels, grid = _shape(x, tile)
    means, squares = _empty_sums(x, grid)
    with torch.cuda.device_of(x):
        moments_kernel[grid](
            x,
            means,
            squares,
            rows,
            channels,
            rows_per_part(rows, channels, tile),
            ROWS=tile.rows,
            CHANNELS=tile.channels,
            STAGES=tile.stages,
            num_warps=tile.warps,
        )
    return means, squares


def gradient_sums(
    gradient: Tensor,
    other: Tensor | None,
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    shift: Tensor,
    output: Tensor | None,
    relu: bool,
    keep: bool,
    tile: Tile,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `sums.channel_gradient_sums`; `keep`: whether the gradient is written."""
    x, gradient = _channels_last(x), _channels_last(gradient)
    other, output = (None if t is None else _channels_last(t) for t in (other, output))
    rows, channels, grid = _shape(x, tile)
    sums, products = _empty_sums(x, grid)
    kept = torch.empty_like(x) if keep else x.new_empty(0)
    with torch.cuda.device_of(x):
        gradient_sums_kernel[grid](
            gradient,
            other,
            x,
            mean,
            scale,
            shift,
            output,
            kept,
            sums,
            products,
            rows,
            channels,
            rows_per_part(rows, channels, tile),
            TWO=other is not None,
            RELU=relu,
            FROM_OUTPUT=output is not None,
            KEEP=keep,
            ROWS=tile.rows,
            CHANNELS=tile.channels,
            STAGES=tile.stages,
            num_warps=tile.warps,
        )
    return kept, sums, products


def _channels_last(tensor: Tensor) -> Tensor:
    # The gradient of a pooling layer may be one value expanded over a map.
    return tensor.contiguous(memory_format=torch.channels_last)


def _shape(x: Tensor, tile: Tile) -> tuple[int, int, tuple[int, int]]:
    """Pixels, channels, and the grid: neighboring programs read neighboring channels."""
    channels = x.shape[1]
    rows = x.numel() // channels
    return rows, channels, (num_groups(channels, tile), num_parts(rows, channels, tile))


def _empty_sums(x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    shape = (grid[1], x.shape[1])
    return x.new_empty(shape, dtype=torch.float32), x.new_empty(shape, dtype=torch.float32)
