"""Gaussian blur with one standard deviation per sample.

Shapes: N images, H W, T taps of the kernel. PIL's GaussianBlur approximates a Gaussian by three box
blurs and repeats edge pixels; this is the Gaussian itself, truncated at three standard deviations,
with the same edges.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def gaussian_blur(planes: Tensor, sigma: Tensor, largest_sigma: float) -> Tensor:
    """Blurs each image by its own Gaussian.

    As a sum of shifted images, which compiles to two memory-bound kernels; in eager code on a CPU as
    two products with banded matrices, three to seven times faster there (benchmarks/LOG.md).

    Args:
        planes: (N, 3, H, W) floating point.
        sigma: (N,) standard deviation in pixels; 0 leaves an image as it is.
        largest_sigma: upper bound of `sigma`; sets the kernel's width for the whole batch.

    Returns:
        (N, 3, H, W).
    """
    weight = gaussian_weights(sigma, math.ceil(3.0 * largest_sigma))
    if planes.device.type == "cpu" and not torch.compiler.is_compiling():
        chosen = torch.nonzero(sigma).squeeze(1)
        return planes.index_copy(0, chosen, blur_by_products(planes[chosen], weight[chosen]))
    return blur_by_shifts(planes, weight)


def gaussian_weights(sigma: Tensor, radius: int) -> Tensor:
    """Normalized kernels (N, 2 radius + 1) for standard deviations (N,)."""
    tap = torch.arange(-radius, radius + 1, device=sigma.device, dtype=torch.float32)
    # A tiny sigma makes a kernel that is 1 in the middle and 0 elsewhere: no blur, no branch.
    weight = torch.exp(-0.5 * (tap / sigma.clamp(min=1e-3)[:, None]) ** 2)
    return weight / weight.sum(dim=1, keepdim=True)


def blur_by_shifts(planes: Tensor, weight: Tensor) -> Tensor:
    """Convolves (N, 3, H, W) along both sides with kernels (N, T), edges repeated."""
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
    # A compiler writes these three parts down, where it would fuse the padding into the sum; its
    # clamped indices keep a CPU from vectorizing: five times slower.
    shape = list(planes.shape)
    shape[dim] = radius
    first, last = planes.narrow(dim, 0, 1), planes.narrow(dim, planes.shape[dim] - 1, 1)
    return torch.cat([first.expand(shape), planes, last.expand(shape)], dim)


def blur_by_products(planes: Tensor, weight: Tensor) -> Tensor:
    """The same as `blur_by_shifts`, by matrix products in the dtype of `planes`."""
    num, channels, height, width = planes.shape
    rows, columns = (_band(weight, length).to(planes.dtype) for length in (height, width))
    planes = torch.bmm(planes.reshape(num, channels * height, width), columns.transpose(1, 2))
    return torch.matmul(rows[:, None], planes.view(num, channels, height, width))


def _band(weight: Tensor, length: int) -> Tensor:
    """Matrices (N, length, length) that convolve with kernels (N, T), edges repeated."""
    num, taps = weight.shape
    at = torch.arange(length, device=weight.device)[:, None]
    source = at + torch.arange(taps, device=weight.device) - taps // 2
    source = source.clamp(0, length - 1).expand(num, -1, -1)
    band = weight.new_zeros(num, length, length)
    return band.scatter_add_(2, source, weight[:, None, :].expand(-1, length, -1))
