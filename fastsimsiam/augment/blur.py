"""Gaussian blur with a standard deviation per image.

Shapes: N images, H W, T taps of the kernel. PIL's GaussianBlur approximates a Gaussian by three box
blurs, with edge pixels repeated. This is the exact Gaussian, truncated at three standard deviations,
with the same edges.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def gaussian_blur(planes: Tensor, sigma: Tensor, largest_sigma: float) -> Tensor:
    """Blurs each image with its own Gaussian.

    Computed as a sum of shifted images, which compiles to two memory-bound kernels; in eager mode on a
    CPU as two products with band matrices, which is three to seven times as fast (benchmarks/LOG.md).

    Args:
        planes: (N, 3, H, W) floating point.
        sigma: (N,) standard deviation in pixels; 0: no blur.
        largest_sigma: upper bound of `sigma`, which sets the kernel's width for all images.

    Returns:
        (N, 3, H, W).
    """
    weight = gaussian_weights(sigma, math.ceil(3.0 * largest_sigma))
    if planes.device.type == "cpu" and not torch.compiler.is_compiling():
        blurred = torch.nonzero(sigma).squeeze(1)
        return planes.index_copy(0, blurred, blur_by_products(planes[blurred], weight[blurred]))
    return blur_by_shifts(planes, weight)


def gaussian_weights(sigma: Tensor, radius: int) -> Tensor:
    """Normalized kernels (N, 2 radius + 1) for standard deviations (N,)."""
    tap = torch.arange(-radius, radius + 1, device=sigma.device, dtype=torch.float32)
    # A tiny sigma gives a kernel of 1 in the middle and 0 elsewhere: no blur without a branch.
    weight = torch.exp(-0.5 * (tap / sigma.clamp(min=1e-3)[:, None]) ** 2)
    return weight / weight.sum(dim=1, keepdim=True)


def blur_by_shifts(planes: Tensor, weight: Tensor) -> Tensor:
    """Convolves (N, 3, H, W) along rows and columns with kernels (N, T), edge pixels repeated."""
    radius = weight.shape[1] // 2
    for dim in (3, 2):
        length = planes.shape[dim]
        padded = _repeat_edges(planes, dim, radius)
        planes = padded.narrow(dim, 0, length) * weight[:, 0, None, None, None]
        for shift in range(1, 2 * radius + 1):
            tap = weight[:, shift, None, None, None]
            planes = planes + padded.narrow(dim, shift, length) * tap
    return planes


def _repeat_edges(planes: Tensor, dim: int, radius: int) -> Tensor:
    """Pads dimension 2 or 3 of (N, 3, H, W) on both sides."""
    if planes.device.type != "cpu":
        pad = (radius, radius, 0, 0) if dim == 3 else (0, 0, radius, radius)
        return F.pad(planes, pad, mode="replicate")
    # Inductor fuses `F.pad` into the sum, and its clamped indices are not vectorized on a CPU: five
    # times slower. It does not fuse a concatenation.
    shape = list(planes.shape)
    shape[dim] = radius
    first, last = planes.narrow(dim, 0, 1), planes.narrow(dim, planes.shape[dim] - 1, 1)
    return torch.cat([first.expand(shape), planes, last.expand(shape)], dim)


def blur_by_products(planes: Tensor, weight: Tensor) -> Tensor:
    """As `blur_by_shifts`, by matrix products in the dtype of `planes`."""
    num, channels, height, width = planes.shape
    rows, columns = (_band(weight, length).to(planes.dtype) for length in (height, width))
    planes = torch.bmm(planes.reshape(num, channels * height, width), columns.transpose(1, 2))
    return torch.matmul(rows[:, None], planes.view(num, channels, height, width))


def _band(weight: Tensor, length: int) -> Tensor:
    """Band matrices (N, length, length) that convolve with kernels (N, T), edge pixels repeated."""
    num, taps = weight.shape
    target = torch.arange(length, device=weight.device)[:, None]
    source = target + torch.arange(taps, device=weight.device) - taps // 2
    source = source.clamp(0, length - 1).expand(num, -1, -1)
    band = weight.new_zeros(num, length, length)
    return band.scatter_add_(2, source, weight[:, None, :].expand(-1, length, -1))
