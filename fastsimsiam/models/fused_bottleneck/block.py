"""A bottleneck block of a ResNet, forward and backward, with few passes over its wide maps.

    z1 = conv1(x), a1 = relu(bn1(z1)), z2 = conv2(a1), a2 = relu(bn2(z2)), z3 = conv3(a2),
    y = relu(bn3(z3) + residual)

z3, the input of a BatchNorm, is four times as wide as a2 and a linear function of it: z3 = W a2. All
that the BatchNorm needs follows from sums of products of narrow maps. Forward, mean and variance of z3
are W mean(a2) and diag(W cov(a2) W^T), so conv3 normalizes its result and adds the residual before it
writes: z3 is never stored. Backward, with the gradient g behind the last ReLU:

    sum(g z3) = diag(G W^T) with G = sum(g a2^T), and dW3 = scale (G - c0 sum(a2)^T - c1 M W cov(a2)),
    da2 = (g - c0) (scale W) - (a2 - mean(a2)) Q with Q = W^T (c1 scale W),

where c0 = sum(g) / M and c1 = sum(g (z3 - mean)) / (M var) are BatchNorm's, M the number of pixels. So
backward the wide maps are g, read twice, and at the block's input the gradient that is written.

A gradient that a block returns may be 0 where its input is: the block before ends with a ReLU, and need
not read its output to apply the mask (`masks_input`, `is_masked`).
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastsimsiam.models.fused_batch_norm.sums import (
    channel_gradient_sums,
    channel_moments,
    merged,
    normalized,
    num_pixels,
    per_channel,
)
from fastsimsiam.models.fused_bottleneck.operators import (
    channel_products,
    conv_join,
    conv_join_gradient,
    conv_masked_gradient,
    conv_moments,
    conv_moments_size,
)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a block's gradients depend on besides its tensors.

    Attributes:
        eps: of the three BatchNorms.
        stride, padding, dilation, groups: of the 3x3 convolution.
        masks_input: the gradient of the input is 0 where the input is; needs `residual` None.
        is_masked: the gradient of the output is 0 where the output is.
    """

    eps: tuple[float, float, float]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    masks_input: bool = False
    is_masked: bool = False


class _Bottleneck(torch.autograd.Function):
    """See `fused_bottleneck`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        w1: Tensor,
        gamma1: Tensor,
        beta1: Tensor,
        w2: Tensor,
        gamma2: Tensor,
        beta2: Tensor,
        w3: Tensor,
        gamma3: Tensor,
        beta3: Tensor,
        layout: Layout,
    ) -> tuple[Tensor, ...]:
        """Output, and mean and variance of each BatchNorm."""
        assert residual is None or not layout.masks_input
        with torch.autocast(x.device.type, enabled=False):
            w1, w2, w3 = (w.to(x.dtype) for w in (w1, w2, w3))
            z1, means, squares = conv_moments(x, _matrix(w1))
            mean1, variance1 = merged(z1, means, squares, conv_moments_size(x, _matrix(w1)))
            deviation1, scale1, shift1 = _affine(mean1, variance1, gamma1, beta1, layout.eps[0])
            a1 = normalized(z1, scale1, shift1).relu().to(x.dtype)
            operands = layout.stride, layout.padding, layout.dilation, layout.groups
            z2 = F.conv2d(a1, w2, None, *operands)
            mean2, variance2 = merged(z2, *channel_moments(z2))
            deviation2, scale2, shift2 = _affine(mean2, variance2, gamma2, beta2, layout.eps[1])
            mean, mean3, variance3, spread = _moments_behind(z2, scale2, shift2, _matrix(w3))
            deviation3, scale3, shift3 = _affine(mean3, variance3, gamma3, beta3, layout.eps[2])
            added = x if residual is None else residual
            y = conv_join(z2, scale2, shift2, _matrix(w3), scale3, shift3, added)
        ctx.save_for_backward(
            *(x, z1, a1, z2, None if layout.is_masked else y),
            *(w1, w2, w3),
            *(mean1, deviation1, scale1, shift1),
            *(mean2, deviation2, scale2, shift2),
            *(mean3, deviation3, scale3, mean, spread),
        )
        ctx.layout, ctx.added = layout, residual is not None
        moments = mean1, variance1, mean2, variance2, mean3, variance3
        ctx.mark_non_differentiable(*moments)
        return y, *moments

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, residual, and weights."""
        x, z1, a1, z2, y, w1, w2, w3, *rest = ctx.saved_tensors
        mean1, deviation1, scale1, shift1, mean2, deviation2, scale2, shift2, *rest = rest
        mean3, deviation3, scale3, mean, spread = rest
        layout, (g, *_) = ctx.layout, gradients
        with torch.autocast(x.device.type, enabled=False):
            # As in the kernels, the pooling layer's expanded gradient is written out.
            g = g.contiguous(memory_format=torch.channels_last)
            if y is not None:
                g = torch.where(y > 0, g, 0)
            parts, sum_parts = channel_products(g, z2, scale2, shift2, False, True)
            products, g_sum = parts.sum(0), sum_parts.sum(0)
            matrix = _matrix(w3).float()
            count = num_pixels(g)
            product_sum = (products * matrix).sum(1) - mean3 * g_sum
            level, slope = g_sum / count, product_sum * deviation3.square() / count
            drift = level[:, None] * mean + slope[:, None] * spread
            dw3 = scale3[:, None] * (products - count * drift)
            scaled = (scale3[:, None] * matrix).to(x.dtype)
            # Float32 for the sums, rounded once; the offset keeps the mean of the rounded terms at 0.
            quadratic = (matrix.t() @ ((-slope * scale3)[:, None] * matrix)).to(x.dtype)
            offset = -(mean @ quadratic.float()) - level @ scaled.float()
            g2, *norm_sums = conv_masked_gradient(
                g, scaled, z2, scale2, shift2, mean2, quadratic, offset
            )
            dz2, dgamma2, dbeta2 = _through_norm(g2, z2, norm_sums, mean2, deviation2, scale2)
            operands = layout.stride, layout.padding, layout.dilation, False, [0, 0], layout.groups
            da1, dw2, _ = torch.ops.aten.convolution_backward(
                dz2, a1, w2, None, *operands, [True, True, False]
            )
            _, *norm_sums = channel_gradient_sums(da1, None, z1, mean1, scale1, shift1, None, True)
            g1 = torch.where(normalized(z1, scale1, shift1) > 0, da1, 0)
            dz1, dgamma1, dbeta1 = _through_norm(g1, z1, norm_sums, mean1, deviation1, scale1)
            dw1 = channel_products(dz1, x, None, None, False, False)[0].sum(0)
            summand = None if ctx.added else g
            mask = x if layout.masks_input else None
            dx = conv_join_gradient(dz1, _matrix(w1), summand, mask)
        return (
            dx,
            g if ctx.added else None,
            *(dw1.reshape(w1.shape), dgamma1, dbeta1),
            *(dw2.float(), dgamma2, dbeta2),
            *(dw3.reshape(w3.shape), product_sum * deviation3, g_sum),
            None,
        )


# Traced by AOTAutograd, not by Dynamo: torch 2.11's Dynamo loses gradients of such functions.
@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]
def fused_bottleneck(
    x: Tensor,
    residual: Tensor | None,
    weights: tuple[Tensor, ...],
    eps: tuple[float, float, float],
    convolution: tuple[tuple[int, int], tuple[int, int], tuple[int, int], int],
    masks_input: bool,
    is_masked: bool,
) -> tuple[Tensor, ...]:
    """A bottleneck block in training mode.

    Args:
        x: (N, C, H, W), channels_last, in the dtype of the arithmetic.
        residual: (N, D, H', W'); None: x.
        weights: of each of the three layers, the convolution's weight (in any dtype, used in x's), and
            the BatchNorm's weight and bias.
        eps: of the three BatchNorms.
        convolution: stride, padding, dilation and groups of the 3x3 convolution.
        masks_input, is_masked: see `Layout`.

    Returns:
        The output (N, D, H', W'), and without gradients mean and variance of the input of each
        BatchNorm, six tensors.
    """
    stride, padding, dilation, groups = convolution
    layout = Layout(
        eps=eps,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        masks_input=masks_input,
        is_masked=is_masked,
    )
    outputs: tuple[Tensor, ...] = _Bottleneck.apply(x, residual, *weights, layout)
    return outputs


def _matrix(weight: Tensor) -> Tensor:
    """The weight (D, C, 1, 1) of a 1x1 convolution as (D, C)."""
    return weight.reshape(weight.shape[:2])


def _affine(
    mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """1 / standard deviation, and BatchNorm as factor and summand, (C,) each."""
    deviation = torch.rsqrt(variance + eps)
    scale = weight * deviation
    return deviation, scale, bias - mean * scale


def _moments_behind(
    z: Tensor, scale: Tensor, shift: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Moments of conv(relu(z scale + shift)) for a 1x1 convolution, without computing it.

    Args:
        z: (N, C, H, W).
        scale, shift: (C,).
        weight: (D, C).

    Returns:
        Mean (C,) of the convolution's input, mean (D,) and variance (D,) of its result, and weight
        times the covariance of its input (D, C).
    """
    parts, sums = channel_products(z, z, scale, shift, True, True)
    # In float64: the variance may be small beside the squared mean, and TF32 would not do.
    mean = sums.sum(0).double() / num_pixels(z)
    covariance = parts.sum(0).double() / num_pixels(z) - mean[:, None] * mean
    matrix = weight.double()
    spread = matrix @ covariance
    variance = (spread * matrix).sum(1).clamp(min=0)
    return mean.float(), (matrix @ mean).float(), variance.float(), spread.float()


def _through_norm(
    g: Tensor, z: Tensor, sums: list[Tensor], mean: Tensor, deviation: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a BatchNorm's input z, weight and bias, from that of its output and their sums."""
    g_sum, product_sum = (parts.sum(0) for parts in sums)
    slope = product_sum * deviation.square() / num_pixels(z)
    centered = z.float() - per_channel(mean)
    level = per_channel(g_sum / num_pixels(z)) + centered * per_channel(slope)
    dz = per_channel(scale) * (g.float() - level)
    return dz.to(z.dtype), product_sum * deviation, g_sum
