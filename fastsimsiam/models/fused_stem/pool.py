"""Max-pooling of 3x3 pixels with stride 2 and padding 1, alone or behind BatchNorm and ReLU.

As custom operators: Triton kernels on a GPU (`kernels.py`), elsewhere torch operations. A window's
maximum is remembered by its position in the window, 0 to 8, the first of several in the order of rows,
as in torch. The operators behind BatchNorm neither write the map before the pooling nor its gradient.
Shapes: N images, C channels, (H, W) before and (P, Q) after the pooling; all maps are channels_last.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastsimsiam.models.fused_batch_norm.sums import normalized, per_channel
from fastsimsiam.models.fused_stem.tiles import POOL_TILE, pooled_size

_NOWHERE = 9
"""The position of a window whose gradient the ReLU stops."""


@torch.library.custom_op("fastsimsiam::max_pool", mutates_args=())
def max_pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """Max-pooling, with a gradient.

    Args:
        x: (N, C, H, W).

    Returns:
        (N, C, P, Q) maxima (NaN if there is one) and their positions, int8.
    """
    pooled, position = _pooled(x), _pooled(x, torch.int8)
    if x.device.type == "cuda":
        from fastsimsiam.models.fused_stem import kernels

        kernels.pool(x, None, None, (pooled, position, None), POOL_TILE)
        return pooled, position
    maxima, where = _pool(x)
    return pooled.copy_(maxima), position.copy_(where)


@torch.library.custom_op("fastsimsiam::max_pool_gradient", mutates_args=())
def max_pool_gradient(gradient: Tensor, position: Tensor, height: int, width: int) -> Tensor:
    """The gradient (N, C, H, W) of `max_pool`'s input.

    Args:
        gradient: (N, C, P, Q), of the maxima.
        position: (N, C, P, Q) int8.
        height, width: H, W.
    """
    result = _map_of(gradient, height, width)
    if gradient.device.type == "cuda":
        from fastsimsiam.models.fused_stem import kernels

        kernels.pool_gradient(gradient, position, None, (None,) * 3, result, POOL_TILE)
        return result
    return result.copy_(_scattered(gradient, position, height, width))


@torch.library.custom_op("fastsimsiam::norm_relu_pool", mutates_args=())
def norm_relu_pool(x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Max-pooling of relu(x * scale + shift).

    The pixels of a window are compared before they are rounded to x's dtype; where the scale is 0, x
    itself is compared.

    Args:
        x: (N, C, H, W).
        scale, shift: (C,) float32.

    Returns:
        (N, C, P, Q) maxima; their positions, int8, 9 where the ReLU is at its zero; and x there.
    """
    pooled, position, largest = _pooled(x), _pooled(x, torch.int8), _pooled(x)
    if x.device.type == "cuda":
        from fastsimsiam.models.fused_stem import kernels

        kernels.pool(x, scale, shift, (pooled, position, largest), POOL_TILE)
        return pooled, position, largest
    sign = per_channel(torch.where(scale < 0, -1, 1)).to(x.dtype)
    maxima, where = _pool(x * sign)
    maxima = maxima * sign
    output = normalized(maxima, scale, shift)
    where = where.masked_fill(output <= 0, _NOWHERE)
    return pooled.copy_(output.relu()), position.copy_(where), largest.copy_(maxima)


@torch.library.custom_op("fastsimsiam::norm_relu_pool_gradient", mutates_args=())
def norm_relu_pool_gradient(
    gradient: Tensor, position: Tensor, x: Tensor, scale: Tensor, slope: Tensor, level: Tensor
) -> Tensor:
    """The gradient of x through pooling, ReLU and BatchNorm.

    It is g * scale + x * slope + level, (N, C, H, W), with the gradient g of the normalized x.

    Args:
        gradient: (N, C, P, Q), of the maxima.
        position: (N, C, P, Q) int8.
        x: (N, C, H, W).
        scale, slope, level: (C,) float32.
    """
    height, width = x.shape[2:]
    result = _map_of(x, height, width)
    if x.device.type == "cuda":
        from fastsimsiam.models.fused_stem import kernels

        coefficients = (scale, slope, level)
        kernels.pool_gradient(gradient, position, x, coefficients, result, POOL_TILE)
        return result
    g = _scattered(gradient, position, height, width)
    return result.copy_(g * per_channel(scale) + normalized(x, slope, level))


@max_pool.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    return _pooled(x), _pooled(x, torch.int8)


@max_pool_gradient.register_fake
def _(gradient: Tensor, position: Tensor, height: int, width: int) -> Tensor:
    return _map_of(gradient, height, width)


@norm_relu_pool.register_fake
def _(x: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _pooled(x), _pooled(x, torch.int8), _pooled(x)


@norm_relu_pool_gradient.register_fake
def _(
    gradient: Tensor, position: Tensor, x: Tensor, scale: Tensor, slope: Tensor, level: Tensor
) -> Tensor:
    return _map_of(x, *x.shape[2:])


def _remember(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.size = inputs[0].shape[2:]


def _backward(ctx: Any, gradient: Tensor, _: Tensor | None) -> Tensor:
    (position,) = ctx.saved_tensors
    result: Tensor = max_pool_gradient(gradient, position, *ctx.size)
    return result


max_pool.register_autograd(_backward, setup_context=_remember)


def _pooled(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    images, channels, height, width = x.shape
    return torch.empty(
        (images, channels, pooled_size(height), pooled_size(width)),
        dtype=dtype or x.dtype,
        device=x.device,
        memory_format=torch.channels_last,
    )


def _map_of(like: Tensor, height: int, width: int) -> Tensor:
    return torch.empty(
        (*like.shape[:2], height, width),
        dtype=like.dtype,
        device=like.device,
        memory_format=torch.channels_last,
    )


def _pool(x: Tensor) -> tuple[Tensor, Tensor]:
    """Maxima and their positions."""
    maxima, index = F.max_pool2d(x, 3, 2, 1, return_indices=True)
    row, column = _middles(maxima)
    width = x.shape[3]
    return maxima, (index // width - row + 1) * 3 + index % width - column + 1


def _scattered(gradient: Tensor, position: Tensor, height: int, width: int) -> Tensor:
    """The gradient of the windows' pixels, (N, C, H, W) float32."""
    row, column = _middles(gradient)
    known = position != _NOWHERE
    index = (row + position // 3 - 1) * width + column + position % 3 - 1
    index = torch.where(known, index, 0).flatten(2)
    g = torch.where(known, gradient.float(), 0).flatten(2)
    result = g.new_zeros((*g.shape[:2], height * width)).scatter_add_(2, index, g)
    return result.view(*g.shape[:2], height, width)


def _middles(pooled: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (P, 1) and columns (Q,) of the windows' middles."""
    row, column = (2 * torch.arange(size, device=pooled.device) for size in pooled.shape[2:])
    return row[:, None], column
