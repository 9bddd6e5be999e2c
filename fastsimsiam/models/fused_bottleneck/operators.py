"""1x1 convolutions with BatchNorm before and after them, as custom operators.

On a GPU they are Triton kernels (`kernels.py`), elsewhere torch operations.
Shapes: N images, channels C or D, P parts of the pixels (N H W) that are summed separately. Maps are
(N, C, H, W), channels_last; a weight (D, C) maps C channels to D; values by channel are float32.
"""

import torch
from torch import Tensor

from fastsimsiam.models.fused_batch_norm.sums import normalized, num_pixels
from fastsimsiam.models.fused_bottleneck.tiles import num_tiles, product_parts, tile_of


@torch.library.custom_op("fastsimsiam::conv_moments", mutates_args=())
def conv_moments(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A 1x1 convolution and the moments of its result.

    Args:
        x: (N, C, H, W).
        weight: (D, C).

    Returns:
        y (N, D, H, W); (P, D) means and (P, D) sums of squared differences to them, for `merged`.
    """
    if _is_cuda(x):
        from fastsimsiam.models.fused_bottleneck import launch

        return launch.moments(x, weight, tile_of("moments", *weight.shape))
    y = _to_map(_times(_pixels(x), weight.t()), x)
    variance, mean = torch.var_mean(_pixels(y), dim=0, correction=0)
    return y, mean[None], (variance * num_pixels(y))[None]


@torch.library.custom_op("fastsimsiam::conv_join", mutates_args=())
def conv_join(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    weight: Tensor,
    out_scale: Tensor,
    out_shift: Tensor,
    residual: Tensor | None,
    second: Tensor | None,
    second_weight: Tensor | None,
) -> Tensor:
    """The end of a residual branch: relu(conv(relu(x scale + shift)) out_scale + out_shift + r).

    Args:
        x: (N, C, H, W).
        scale, shift: (C,).
        weight: (D, C).
        out_scale, out_shift: (D,).
        residual: r, (N, D, H, W), as is the result.
        second, second_weight: (N, E, H, W) and (D, E): r is their convolution; either this or residual.
    """
    operands = x, scale, shift, weight, out_scale, out_shift, residual, second, second_weight
    if _is_cuda(x):
        from fastsimsiam.models.fused_bottleneck import launch

        return launch.join(*operands, tile_of("join", *weight.shape))
    y = _times(_pixels(_activated(x, scale, shift)), weight.t()) * out_scale + out_shift
    if second is not None and second_weight is not None:
        y = y + _times(_pixels(second), second_weight.t())
    if residual is not None:
        y = y + _pixels(residual)
    return _to_map(y.relu(), x)


@torch.library.custom_op("fastsimsiam::conv_join_gradient", mutates_args=())
def conv_join_gradient(
    gradient: Tensor,
    weight: Tensor,
    offset: Tensor | None,
    summand: Tensor | None,
    mask: Tensor | None,
) -> Tensor:
    """The gradient of a 1x1 convolution's input, and what a residual block adds to it.

    Args:
        gradient: (N, D, H, W): of the convolution's result.
        weight: (D, C).
        offset: (C,): to be added.
        summand: (N, C, H, W): to be added, the gradient of the residual connection.
        mask: (N, C, H, W): the result is 0 where it is not positive.

    Returns:
        (N, C, H, W).
    """
    if _is_cuda(gradient):
        from fastsimsiam.models.fused_bottleneck import launch

        tile = tile_of("join-gradient", *weight.shape)
        return launch.join_gradient(gradient, weight, offset, summand, mask, tile)
    made = _times(_pixels(gradient), weight)
    if offset is not None:
        made = made + offset
    if summand is not None:
        made = made + _pixels(summand)
    if mask is not None:
        made = torch.where(_pixels(mask) > 0, made, 0)
    return _to_map(made, gradient)


@torch.library.custom_op("fastsimsiam::conv_masked_gradient", mutates_args=())
def conv_masked_gradient(
    gradient: Tensor,
    weight: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    matrix: Tensor,
    offset: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of the input of BatchNorm and ReLU before a 1x1 convolution, behind the ReLU.

    Of a = relu(x scale + shift), the gradient weight + a matrix + offset, where a is positive.

    Args:
        gradient: (N, D, H, W).
        weight: (D, C).
        x: (N, C, H, W).
        scale, shift, mean, offset: (C,).
        matrix: (C, C).

    Returns:
        The gradient (N, C, H, W); its pixel sums (P, C); the sums of its products with x - mean (P, C).
    """
    operands = gradient, weight, x, scale, shift, mean, matrix, offset
    if _is_cuda(x):
        from fastsimsiam.models.fused_bottleneck import launch

        return launch.masked_gradient(*operands, tile_of("masked-gradient", *weight.shape))
    activated = _pixels(_activated(x, scale, shift))
    made = _times(_pixels(gradient), weight) + _times(activated, matrix) + offset
    y = _to_map(torch.where(_pixels(normalized(x, scale, shift)) > 0, made, 0), x)
    products = _pixels(y) * (_pixels(x) - mean)
    return y, _pixels(y).sum(0)[None], products.sum(0)[None]


@torch.library.custom_op("fastsimsiam::channel_products", mutates_args=())
def channel_products(
    left: Tensor,
    right: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    normalize_left: bool,
    sum_left: bool,
) -> tuple[Tensor, Tensor]:
    """Products of the channels of two maps, summed over the pixels.

    Args:
        left: (N, D, H, W).
        right: (N, C, H, W).
        scale, shift: (C,): the right operand is relu(right scale + shift); None: right as it is.
        normalize_left: the left operand is normalized as well, which is then the same map.
        sum_left: whether the left operand is summed too.

    Returns:
        (P, D, C) products; (P, D) sums of the left operand, empty unless `sum_left`.
    """
    if _is_cuda(left):
        from fastsimsiam.models.fused_bottleneck import launch

        tile = tile_of("products", left.shape[1], right.shape[1])
        return launch.products(left, right, scale, shift, normalize_left, sum_left, tile)
    if scale is not None and shift is not None:
        right = _activated(right, scale, shift)
        left = _activated(left, scale, shift) if normalize_left else left
    sums = _pixels(left).sum(0)[None] if sum_left else _empty(left, 0, left.shape[1])
    return _times(_pixels(left).t(), _pixels(right))[None], sums


def conv_moments_size(x: Tensor, weight: Tensor) -> int | None:
    """Pixels of a part of `conv_moments`' result; None: there is one part."""
    return tile_of("moments", *weight.shape).rows if _is_cuda(x) else None


@conv_moments.register_fake
def _(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    y = _empty_map(x, len(weight))
    parts = num_tiles(num_pixels(x), tile_of("moments", *weight.shape)) if _is_cuda(x) else 1
    return y, _empty(x, parts, len(weight)), _empty(x, parts, len(weight))


@conv_join.register_fake
def _(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    weight: Tensor,
    out_scale: Tensor,
    out_shift: Tensor,
    residual: Tensor | None,
    second: Tensor | None,
    second_weight: Tensor | None,
) -> Tensor:
    return _empty_map(x, len(weight))


@conv_join_gradient.register_fake
def _(
    gradient: Tensor,
    weight: Tensor,
    offset: Tensor | None,
    summand: Tensor | None,
    mask: Tensor | None,
) -> Tensor:
    return _empty_map(gradient, weight.shape[1])


@conv_masked_gradient.register_fake
def _(
    gradient: Tensor,
    weight: Tensor,
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    mean: Tensor,
    matrix: Tensor,
    offset: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    channels = x.shape[1]
    tile = tile_of("masked-gradient", *weight.shape)
    parts = num_tiles(num_pixels(x), tile) if _is_cuda(x) else 1
    return _empty_map(x, channels), _empty(x, parts, channels), _empty(x, parts, channels)


@channel_products.register_fake
def _(
    left: Tensor,
    right: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    normalize_left: bool,
    sum_left: bool,
) -> tuple[Tensor, Tensor]:
    channels = left.shape[1], right.shape[1]
    parts = product_parts(num_pixels(left), *channels) if _is_cuda(left) else 1
    sums = _empty(left, parts if sum_left else 0, channels[0])
    return _empty(left, parts, *channels), sums


def _is_cuda(x: Tensor) -> bool:
    return x.device.type == "cuda"


def _empty(x: Tensor, *shape: int) -> Tensor:
    return x.new_empty(shape, dtype=torch.float32)


def _empty_map(like: Tensor, channels: int) -> Tensor:
    shape = (len(like), channels, *like.shape[2:])
    layout = torch.channels_last
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


def _pixels(x: Tensor) -> Tensor:
    """(N, C, H, W) as float32 (N H W, C)."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]).float()


def _to_map(pixels: Tensor, like: Tensor) -> Tensor:
    """(N H W, D) as (N, D, H, W), channels_last, in the dtype of a map of the same pixels."""
    made = pixels.reshape(len(like), *like.shape[2:], -1).permute(0, 3, 1, 2)
    return made.to(like.dtype).contiguous(memory_format=torch.channels_last)


def _times(left: Tensor, right: Tensor) -> Tensor:
    """A matrix product in float32, also where autocast is on."""
    with torch.autocast(left.device.type, enabled=False):
        return left @ right.float()


def _activated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return normalized(x, scale, shift).relu().to(x.dtype)
