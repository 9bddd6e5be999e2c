"""Starts the kernels of the fused 1x1 convolutions; see `operators` for what they compute."""

from typing import Any

import torch
from torch import Tensor

from fastsimsiam.models.fused_bottleneck.kernels import (
    conv_moments_kernel,
    join_kernel,
    masked_gradient_kernel,
    products_kernel,
)
from fastsimsiam.models.fused_bottleneck.tiles import (
    Tile,
    fitted,
    num_parts,
    num_tiles,
    rows_per_part,
)


def moments(x: Tensor, weight: Tensor, tile: Tile) -> tuple[Tensor, Tensor, Tensor]:
    """See `operators.conv_moments`."""
    x, weight = channels_last(x), weight.contiguous()
    columns, sides = len(weight), _sides(x, weight, tile)
    rows, groups = x.numel() // x.shape[1], columns // sides["COLUMNS"]
    parts = num_tiles(rows, tile)
    y = empty_map(x, columns)
    means, squares = _empty_sums(x, parts, columns), _empty_sums(x, parts, columns)
    with torch.cuda.device_of(x):
        conv_moments_kernel[(parts * groups,)](
            x, weight, y, means, squares, rows, x.shape[1], columns, **sides, **_options(tile)
        )
    return y, means, squares


def join(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    weight: Tensor,
    out_scale: Tensor,
    out_shift: Tensor,
    residual: Tensor | None,
    second: Tensor | None,
    second_weight: Tensor | None,
    tile: Tile,
) -> Tensor:
    """See `operators.conv_join`."""
    weight = weight.contiguous()
    operands = {
        "scale": scale,
        "shift": shift,
        "out_scale": out_scale,
        "out_shift": out_shift,
        "summand": residual,
        "second": second,
        "second_weight": second_weight,
    }
    return _join(x, weight, operands, len(weight), (1, x.shape[1]), tile)


def join_gradient(
    gradient: Tensor,
    weight: Tensor,
    offset: Tensor | None,
    summand: Tensor | None,
    mask: Tensor | None,
    tile: Tile,
) -> Tensor:
    """See `operators.conv_join_gradient`."""
    weight, columns = weight.contiguous(), weight.shape[1]
    operands = {"out_shift": offset, "summand": summand, "mask": mask}
    return _join(gradient, weight, operands, columns, (columns, 1), tile)


def _join(
    x: Tensor,
    weight: Tensor,
    operands: dict[str, Tensor | None],
    columns: int,
    strides: tuple[int, int],
    tile: Tile,
) -> Tensor:
    """Starts `join_kernel` with those of its operands that there are."""
    x = channels_last(x)
    names = ("scale", "shift", "out_scale", "out_shift", "second", "second_weight")
    given = dict.fromkeys((*names, "summand", "mask")) | operands
    for name, operand in given.items():
        if operand is not None:
            given[name] = channels_last(operand) if operand.dim() == 4 else operand.contiguous()
    second = given["second"]
    channels = x.shape[1] if second is None else second.shape[1]
    sides = _sides(x, weight, tile, columns)
    rows, y = x.numel() // x.shape[1], empty_map(x, columns)
    grid = (num_tiles(rows, tile) * (columns // sides["COLUMNS"]),)
    with torch.cuda.device_of(x):
        join_kernel[grid](
            x=x,
            weight=weight,
            **given,
            y=y,
            rows=rows,
            channels=x.shape[1],
            columns=columns,
            along_channel=strides[0],
            along_column=strides[1],
            second_channels=channels,
            FORWARD=given["scale"] is not None,
            SHIFT=given["out_shift"] is not None,
            SECOND=second is not None,
            ADD=given["summand"] is not None,
            MASK=given["mask"] is not None,
            EARLY=tile.early,
            SECOND_DEPTH=fitted(tile.depth, channels),
            **sides,
            **_options(tile),
        )
    return y


def masked_gradient(
    gradient: Tensor,
    weight: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    matrix: Tensor,
    offset: Tensor,
    tile: Tile,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `operators.conv_masked_gradient`."""
    gradient, x = channels_last(gradient), channels_last(x)
    columns = x.shape[1]
    sides = _sides(gradient, weight, tile, columns)
    rows, groups = x.numel() // columns, columns // sides["COLUMNS"]
    parts = num_tiles(rows, tile)
    y = empty_map(x, columns)
    sums, products = _empty_sums(x, parts, columns), _empty_sums(x, parts, columns)
    with torch.cuda.device_of(x):
        masked_gradient_kernel[(parts * groups,)](
            gradient,
            weight.contiguous(),
            x,
            scale,
            shift,
            mean,
            matrix.contiguous(),
            offset,
            y,
            sums,
            products,
            rows,
            gradient.shape[1],
            columns,
            INNER=fitted(tile.depth, columns),
            **sides,
            **_options(tile),
        )
    return y, sums, products


def products(
    left: Tensor,
    right: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    normalize_left: bool,
    sum_left: bool,
    tile: Tile,
) -> tuple[Tensor, Tensor]:
    """See `operators.channel_products`."""
    left, right = channels_last(left), channels_last(right)
    channels = left.shape[1], right.shape[1]
    side, other = fitted(tile.rows, channels[0]), fitted(tile.columns, channels[1])
    groups, rows = (channels[0] // side) * (channels[1] // other), left.numel() // channels[0]
    parts = num_parts(rows, groups, tile)
    made = left.new_empty((parts, *channels), dtype=torch.float32)
    sums = _empty_sums(left, parts if sum_left else 0, channels[0])
    with torch.cuda.device_of(left):
        products_kernel[(parts * groups,)](
            left,
            right,
            scale,
            shift,
            made,
            sums,
            rows,
            rows_per_part(rows, groups, tile),
            *channels,
            NORM_LEFT=normalize_left,
            NORM_RIGHT=scale is not None,
            SUM=sum_left,
            LEFT=side,
            RIGHT=other,
            DEPTH=tile.depth,
            PRECISION=_precision(left),
            **_options(tile),
        )
    return made, sums


def channels_last(tensor: Tensor) -> Tensor:
    """The map as its kernels read it; it is one already, unless a pooling layer expanded it."""
    return tensor.contiguous(memory_format=torch.channels_last)


def empty_map(like: Tensor, channels: int) -> Tensor:
    """An uninitialized map of the same pixels with so many channels, in channels_last."""
    shape = (len(like), channels, *like.shape[2:])
    layout = torch.channels_last
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


def _sides(x: Tensor, weight: Tensor, tile: Tile, columns: int | None = None) -> dict[str, Any]:
    columns = len(weight) if columns is None else columns
    return {
        "ROWS": tile.rows,
        "COLUMNS": fitted(tile.columns, columns),
        "DEPTH": fitted(tile.depth, x.shape[1]),
        "PRECISION": _precision(x),
    }


def _precision(x: Tensor) -> str:
    return "ieee" if x.dtype == torch.float32 else "tf32"


def _options(tile: Tile) -> dict[str, int]:
    return {"num_warps": tile.warps, "num_stages": tile.stages}


def _empty_sums(x: Tensor, parts: int, channels: int) -> Tensor:
    return x.new_empty((parts, channels), dtype=torch.float32)
