"""BatchNorm behind a 1x1 convolution, from sums over the convolution's input and over its gradient.

z = W a for every pixel, so all that BatchNorm needs to know of z follows from a, which in a bottleneck
block is a fourth as wide: z is neither stored nor read. With M pixels, m the mean of a and S = cov(a):

- mean(z) = W m, var(z) = diag(W S W^T);
- with g the gradient of BatchNorm's output and G = sum(g a^T): sum(g z) = diag(G W^T), and with
  c0 = sum(g) / M and c1 = sum(g (z - mean(z))) / (M var(z)), the gradient of z is
  scale (g - c0 - c1 (z - mean(z)));
- so dW = scale (G - M c0 m^T - M c1 W S), and
  da = g (scale W) - a Q + m Q - c0 (scale W) with Q = W^T (c1 scale W).
"""

from typing import NamedTuple

from torch import Tensor

from fastsimsiam.models.fused_batch_norm.sums import num_pixels
from fastsimsiam.models.fused_bottleneck.operators import channel_products


class Moments(NamedTuple):
    """Moments of the convolution's input (C channels) and output (D channels), float32.

    Attributes:
        input_mean: (C,).
        mean, variance: of the output, (D,).
        spread: the weight times the covariance of the input, (D, C).
    """

    input_mean: Tensor
    mean: Tensor
    variance: Tensor
    spread: Tensor


class Gradients(NamedTuple):
    """What follows from the gradient g of BatchNorm's output.

    Attributes:
        weight: gradient of the convolution's weight, (D, C).
        norm_weight: gradient of BatchNorm's weight, (D,).
        matrix: (D, C), the factor of g in the gradient of the convolution's input.
        own_matrix: (C, C), the factor of that input itself.
        offset: (C,), the constant in it.
    """

    weight: Tensor
    norm_weight: Tensor
    matrix: Tensor
    own_matrix: Tensor
    offset: Tensor


def moments_behind(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, weight: Tensor
) -> Moments:
    """Moments of a 1x1 convolution's output, without computing it.

    Args:
        x: (N, C, H, W).
        scale, shift: (C,): the convolution's input is relu(x scale + shift); None: it is x.
        weight: (D, C).
    """
    parts, sums = channel_products(x, x, scale, shift, scale is not None, True)
    pixels = num_pixels(x)
    input_mean = sums.sum(0) / pixels
    covariance = parts.sum(0) / pixels - input_mean[:, None] * input_mean
    matrix = weight.float()
    spread = matrix @ covariance
    variance = (spread * matrix).sum(1).clamp(min=0)
    # A product, because Triton 3.6 fails on Inductor's kernel with two sums over the same matrix.
    mean = (matrix @ input_mean[:, None])[:, 0]
    return Moments(input_mean, mean, variance, spread)


def gradients_behind(
    products: Tensor,
    g_sum: Tensor,
    pixels: int,
    weight: Tensor,
    moments: tuple[Tensor, ...],
    deviation: Tensor,
    scale: Tensor,
) -> Gradients:
    """Gradients before the BatchNorm, without its input.

    Args:
        products: (D, C): sums of the products of g and the convolution's input.
        g_sum: (D,): sums of g.
        pixels: pixels of the maps over all images.
        weight: (D, C), in the dtype of the matrices that are returned.
        moments: input mean, mean and spread of `Moments`.
        deviation: (D,): 1 / standard deviation of the convolution's output.
        scale: (D,): BatchNorm's weight times `deviation`.
    """
    input_mean, mean, spread = moments
    exact = weight.float()
    product_sum = (products * exact).sum(1) - mean * g_sum
    level, slope = g_sum / pixels, product_sum * deviation.square() / pixels
    drift = level[:, None] * input_mean + slope[:, None] * spread
    matrix = (scale[:, None] * exact).to(weight.dtype)
    own_matrix = (exact.t() @ ((-slope * scale)[:, None] * exact)).to(weight.dtype)
    # With the rounded matrices, so that the gradient's mean over the pixels is right.
    offset = -(input_mean @ own_matrix.float()) - level @ matrix.float()
    return Gradients(
        weight=scale[:, None] * (products - pixels * drift),
        norm_weight=product_sum * deviation,
        matrix=matrix,
        own_matrix=own_matrix,
        offset=offset,
    )
