"""A bottleneck block of a ResNet, forward and backward, with few passes over its wide maps.

    z1 = conv1(x), a1 = relu(bn1(z1)), z2 = conv2(a1), a2 = relu(bn2(z2)), z3 = conv3(a2),
    y = relu(bn3(z3) + x), or relu(bn3(z3) + bnd(convd(x)))

conv1 computes the moments of z1 on the way. Those of z3 follow from the covariance of a2 (`behind`), so
conv3 normalizes its result and adds the residual before it writes; a2 is normalized while it is read.
Neither a2 nor z3 is stored, nor is convd's result, a second product in conv3's kernel. Backward, the
gradient behind the last ReLU is the wide map that is read, for its products with a2 and for a2's
gradient; at the block's input, the gradient of the residual connection is added before the sum is
written.

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
from fastsimsiam.models.fused_bottleneck.behind import gradients_behind, moments_behind
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
        eps: of the BatchNorms.
        stride, padding, dilation, groups: of the 3x3 convolution.
        masks_input: the gradient of the input is 0 where the input is.
        is_masked: the gradient of the output is 0 where the output is.
    """

    eps: tuple[float, ...]
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
        w1: Tensor,
        gamma1: Tensor,
        beta1: Tensor,
        w2: Tensor,
        gamma2: Tensor,
        beta2: Tensor,
        w3: Tensor,
        gamma3: Tensor,
        beta3: Tensor,
        wd: Tensor | None,
        gamma_d: Tensor | None,
        beta_d: Tensor | None,
        layout: Layout,
    ) -> tuple[Tensor, ...]:
        """Output, and mean and variance of each BatchNorm."""
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
            mean, mean3, variance3, spread = moments_behind(z2, scale2, shift2, _matrix(w3))
            deviation3, scale3, shift3 = _affine(mean3, variance3, gamma3, beta3, layout.eps[2])
            moments: tuple[Tensor, ...] = mean1, variance1, mean2, variance2, mean3, variance3
            residual: tuple[Tensor | None, ...] = x, None, None
            saved: tuple[Tensor, ...] = ()
            if wd is not None and gamma_d is not None and beta_d is not None:
                wd = wd.to(x.dtype)
                xd = _strided(x, layout.stride)
                of_d = moments_behind(xd, None, None, _matrix(wd))
                affine = _affine(of_d.mean, of_d.variance, gamma_d, beta_d, layout.eps[3])
                deviation_d, scale_d, shift_d = affine
                scaled = (scale_d[:, None] * _matrix(wd).float()).to(x.dtype)
                residual, shift3 = (None, xd, scaled), shift3 + shift_d
                saved = xd, wd, of_d.input_mean, of_d.mean, of_d.spread, deviation_d, scale_d
                moments += of_d.mean, of_d.variance
            y = conv_join(z2, scale2, shift2, _matrix(w3), scale3, shift3, *residual)
        ctx.save_for_backward(
            *(x, z1, a1, z2, None if layout.is_masked else y),
            *(w1, mean1, deviation1, scale1, shift1),
            *(w2, mean2, deviation2, scale2, shift2),
            *(w3, mean, mean3, spread, deviation3, scale3),
            *saved,
        )
        ctx.layout = layout
        ctx.mark_non_differentiable(*moments)
        return y, *moments

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x and the weights."""
        x, z1, a1, z2, y, *rest = ctx.saved_tensors
        w1, mean1, deviation1, scale1, shift1, *rest = rest
        w2, mean2, deviation2, scale2, shift2, *rest = rest
        w3, mean, mean3, spread, deviation3, scale3, *saved = rest
        layout, (g, *_) = ctx.layout, gradients
        with torch.autocast(x.device.type, enabled=False):
            # Whole, where a pooling layer has expanded it.
            g = g.contiguous(memory_format=torch.channels_last)
            if y is not None:
                g = torch.where(y > 0, g, 0)
            pixels = num_pixels(g)
            parts, sum_parts = channel_products(g, z2, scale2, shift2, False, True)
            g_sum, moments = sum_parts.sum(0), (mean, mean3, spread)
            behind3 = gradients_behind(
                parts.sum(0), g_sum, pixels, _matrix(w3), moments, deviation3, scale3
            )
            g2, *sums = conv_masked_gradient(
                *(g, behind3.matrix, z2, scale2, shift2, mean2),
                *(behind3.own_matrix, behind3.offset),
            )
            dz2, dgamma2, dbeta2 = _through_norm(g2, z2, sums, mean2, deviation2, scale2)
            operands = layout.stride, layout.padding, layout.dilation, False, [0, 0], layout.groups
            da1, dw2, _ = torch.ops.aten.convolution_backward(
                dz2, a1, w2, None, *operands, [True, True, False]
            )
            _, *sums = channel_gradient_sums(da1, None, z1, mean1, scale1, shift1, None, True)
            g1 = torch.where(normalized(z1, scale1, shift1) > 0, da1, 0)
            dz1, dgamma1, dbeta1 = _through_norm(g1, z1, sums, mean1, deviation1, scale1)
            dw1 = channel_products(dz1, x, None, None, False, False)[0].sum(0)
            mask = x if layout.masks_input else None
            of_downsample: tuple[Tensor | None, ...] = None, None, None
            summand: Tensor | None = g
            scattered: Tensor | None = None
            if saved:
                xd, wd, *moments_d, deviation_d, scale_d = saved
                parts, _ = channel_products(g, xd, None, None, False, False)
                behind_d = gradients_behind(
                    parts.sum(0), g_sum, pixels, _matrix(wd), moments_d, deviation_d, scale_d
                )
                own = conv_join_gradient(xd, behind_d.own_matrix, behind_d.offset, None, None)
                dxd = conv_join_gradient(g, behind_d.matrix, None, own, None)
                of_downsample = behind_d.weight.reshape(wd.shape), behind_d.norm_weight, g_sum
                summand, scattered = (dxd, None) if dxd.shape == x.shape else (None, dxd)
            dx = conv_join_gradient(dz1, _matrix(w1), None, summand, mask)
            if scattered is not None:
                between = torch.zeros_like(dx)
                _strided_view(between, layout.stride).copy_(scattered)
                dx = dx + between
        return (
            dx,
            *(dw1.reshape(w1.shape), dgamma1, dbeta1),
            *(dw2.float(), dgamma2, dbeta2),
            *(behind3.weight.reshape(w3.shape), behind3.norm_weight, g_sum),
            *of_downsample,
            None,
        )


# Traced by AOTAutograd, not by Dynamo: torch 2.11's Dynamo loses gradients of such functions.
@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]
def fused_bottleneck(
    x: Tensor,
    weights: tuple[Tensor | None, ...],
    eps: tuple[float, ...],
    convolution: tuple[tuple[int, int], tuple[int, int], tuple[int, int], int],
    masks_input: bool,
    is_masked: bool,
) -> tuple[Tensor, ...]:
    """A bottleneck block in training mode.

    Args:
        x: (N, C, H, W), channels_last, in the dtype of the arithmetic.
        weights: of each of the three layers and of the downsampling, the convolution's weight (in any
            dtype, used in x's), and the BatchNorm's weight and bias; None thrice: the block has no
            downsampling, whose stride is otherwise that of the 3x3 convolution.
        eps: of the BatchNorms.
        convolution: stride, padding, dilation and groups of the 3x3 convolution.
        masks_input, is_masked: see `Layout`.

    Returns:
        The output (N, D, H', W'), and without gradients mean and variance of the input of each
        BatchNorm, two tensors each.
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
    outputs: tuple[Tensor, ...] = _Bottleneck.apply(x, *weights, layout)
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


def _strided_view(x: Tensor, stride: tuple[int, int]) -> Tensor:
    return x[:, :, :: stride[0], :: stride[1]]


def _strided(x: Tensor, stride: tuple[int, int]) -> Tensor:
    """The pixels of x that a 1x1 convolution reads; x itself with a stride of 1."""
    if stride == (1, 1):
        return x
    return _strided_view(x, stride).contiguous(memory_format=torch.channels_last)


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
