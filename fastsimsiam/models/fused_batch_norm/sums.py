"""The two reductions over (N, H, W) that BatchNorm needs in training mode, as custom operators.

The rest of BatchNorm is elementwise, and a compiler fuses it with its surroundings. The compiler's own
reductions read every operand once more than necessary. These operators read each once, apply the ReLU's
mask and add the gradients of two users on the way, and write the result only where it is needed.

On a GPU they are Triton kernels (`kernels.py`), elsewhere torch operations.
Shapes: N images, C channels, P parts of the pixels (N H W) that are summed separately.
"""

import torch
from torch import Tensor

from fastsimsiam.models.fused_batch_norm.split import TILE, num_parts, rows_per_part

_SUMMED = (0, 2, 3)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of every channel, in parts.

    Args:
        x: (N, C, H, W), channels_last.

    Returns:
        (P, C) means and (P, C) sums of squared differences to them, float32; see `merged`.
    """
    variance, mean = torch.var_mean(x.float(), dim=_SUMMED, correction=0)
    return mean[None], (variance * num_pixels(x))[None]


def gradient_sums(
    gradient: Tensor,
    other: Tensor | None,
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    shift: Tensor,
    output: Tensor | None,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over a gradient after the backward pass of a ReLU.

    Args:
        gradient: (N, C, H, W), channels_last: gradient of the output.
        other: the same for the output's second user; None: there is one user.
        x: (N, C, H, W): the BatchNorm's input.
        mean, scale, shift: (C,) float32; the normalized x is x * scale + shift.
        output: (N, C, H, W): the ReLU's output after a residual addition; None: without an
            addition, the ReLU's mask follows from x.
        relu: whether there is a ReLU.

    Returns:
        The gradient of the ReLU's input (N, C, H, W), empty unless it `is_written`; its pixel sums
        (P, C), float32; and the sums of its products with x - mean (P, C), float32.
    """
    incoming = gradient if other is None else gradient + other
    if relu:
        let_through = (normalized(x, scale, shift) if output is None else output) > 0
        incoming = torch.where(let_through, incoming, 0)
    g = incoming.float()
    kept = incoming if is_written(other, output) else x.new_empty(0)
    return kept, g.sum(_SUMMED)[None], (g * (x.float() - per_channel(mean))).sum(_SUMMED)[None]


def is_written(other: Tensor | None, output: Tensor | None) -> bool:
    """Whether `gradient_sums` writes the gradient.

    With one user and a mask that follows from x, the next kernel computes it again at no cost.
    """
    return other is not None or output is not None


def merged(
    x: Tensor, means: Tensor, squares: Tensor, size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and variance (C,) of x from the moments of its parts (Chan et al., 1979).

    Args:
        x: (N, C, H, W).
        means, squares: (P, C), see `moments`.
        size: pixels of each part but the last; None: that of `channel_moments`.
    """
    pixels = num_pixels(x)
    if len(means) == 1:
        return means[0], squares[0] / pixels
    size = rows_per_part(pixels, x.shape[1], TILE) if size is None else size
    number = torch.arange(len(means), device=x.device)
    weight = (pixels - number * size).clamp(max=size)[:, None] / pixels
    mean = (weight * means).sum(0)
    return mean, squares.sum(0) / pixels + (weight * (means - mean).square()).sum(0)


def num_pixels(x: Tensor) -> int:
    """Pixels of a map over all images."""
    return x.numel() // x.shape[1]


def per_channel(values: Tensor) -> Tensor:
    """(C,) in a shape that broadcasts over (N, C, H, W)."""
    return values[:, None, None]


def normalized(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """(N, C, H, W) times scale (C,) plus shift (C,), float32."""
    return x.float() * per_channel(scale) + per_channel(shift)


@torch.library.custom_op("fastsimsiam::channel_moments", mutates_args=())
def channel_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """`moments` as an operator."""
    if x.device.type == "cuda":
        from fastsimsiam.models.fused_batch_norm import kernels

        return kernels.moments(x, TILE)
    return moments(x)


@torch.library.custom_op("fastsimsiam::channel_gradient_sums", mutates_args=())
def channel_gradient_sums(
    gradient: Tensor,
    other: Tensor | None,
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    shift: Tensor,
    output: Tensor | None,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """`gradient_sums` as an operator."""
    operands = gradient, other, x, mean, scale, shift, output, relu
    if x.device.type == "cuda":
        from fastsimsiam.models.fused_batch_norm import kernels

        return kernels.gradient_sums(*operands, is_written(other, output), TILE)
    kept, sums, products = gradient_sums(*operands)
    return kept.contiguous(memory_format=_layout(kept)), sums, products


@channel_moments.register_fake
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    return _empty_sums(x), _empty_sums(x)


@channel_gradient_sums.register_fake
def _(
    gradient: Tensor,
    other: Tensor | None,
    x: Tensor,
    mean: Tensor,
    scale: Tensor,
    shift: Tensor,
    output: Tensor | None,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    kept = x.new_empty(x.shape if is_written(other, output) else 0)
    return kept.contiguous(memory_format=_layout(kept)), _empty_sums(x), _empty_sums(x)


def _empty_sums(x: Tensor) -> Tensor:
    parts = num_parts(num_pixels(x), x.shape[1], TILE) if x.device.type == "cuda" else 1
    return x.new_empty((parts, x.shape[1]), dtype=torch.float32)


def _layout(kept: Tensor) -> torch.memory_format:
    return torch.channels_last if kept.dim() == 4 else torch.contiguous_format
