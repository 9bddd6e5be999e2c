"""Convolutions of small feature maps as one matrix product each, for a CPU.

The last feature maps of small images have a few pixels, where oneDNN's convolutions take up to six
times as long as a product (benchmarks/parts/small_maps.py).
"""

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SmallMapConv2d(nn.Conv2d):
    """A convolution that is computed as a matrix product where the output map is small.

    Parameters and results are those of `nn.Conv2d`, up to rounding.

    Attributes:
        largest_map: number of pixels of an output map up to which it is a product. At 16 pixels
            channels and dtype decide which way is faster.
    """

    largest_map = 9

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        assert not isinstance(self.padding, str)
        height, width = (
            (input.shape[2 + side] + 2 * self.padding[side] - self.kernel_size[side])
            // self.stride[side]
            + 1
            for side in (0, 1)
        )
        if height * width > self.largest_map:
            output: Tensor = super()._conv_forward(input, weight, bias)
            return output
        return conv_by_matmul(input, weight, bias, self.stride, self.padding, (height, width))


def conv_by_matmul(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    size: tuple[int, int],
) -> Tensor:
    """A convolution as the matrix product of all patches with all kernels.

    Args:
        input: (B, C, H, W), best in channels_last.
        weight: (O, C, K, L), best in channels_last.
        bias: (O,) or None.
        stride, padding: vertical and horizontal.
        size: (P, Q), height and width of the output.

    Returns:
        (B, O, P, Q), channels_last.
    """
    padded = F.pad(
        input.permute(0, 2, 3, 1), (0, 0, padding[1], padding[1], padding[0], padding[0])
    )
    patches, taps = [], []
    for down, across in itertools.product(range(weight.shape[2]), range(weight.shape[3])):
        rows = slice(down, down + size[0] * stride[0], stride[0])
        columns = slice(across, across + size[1] * stride[1], stride[1])
        if _meets(rows, padding[0], input.shape[2]) and _meets(columns, padding[1], input.shape[3]):
            patches.append(padded[:, rows, columns])
            taps.append(down * weight.shape[3] + across)
    kernel = weight.permute(0, 2, 3, 1).flatten(1, 2)
    if len(taps) < kernel.shape[1]:  # the other taps see padding alone
        kernel = kernel.index_select(1, torch.tensor(taps))
    output = F.linear(torch.cat(patches, dim=3).flatten(0, 2), kernel.flatten(1), bias)
    return output.view(len(input), *size, -1).permute(0, 3, 1, 2)


def _meets(positions: slice, padding: int, length: int) -> bool:
    """Whether any of these positions along a padded side lies outside of the padding."""
    every = range(positions.start, positions.stop, positions.step)
    return any(padding <= position < padding + length for position in every)


def use_matmul_for_small_maps(module: nn.Module) -> None:
    """Turns every plain convolution of a module into a `SmallMapConv2d`, in place."""
    for layer in module.modules():
        if (
            type(layer) is nn.Conv2d
            and layer.groups == 1
            and layer.dilation == (1, 1)
            and layer.padding_mode == "zeros"
            and not isinstance(layer.padding, str)
        ):
            layer.__class__ = SmallMapConv2d


def keep_gradient_strides(module: nn.Module) -> None:
    """Gives gradients of 1x1 kernels the strides of their weights, for DistributedDataParallel.

    The gradients of several views through a product are added to a tensor whose strides differ in
    dimensions of size 1. Its values lie as those of the weight, but DistributedDataParallel compares
    strides, and warns. Nothing is copied here.
    """

    def hook_of(weight: Tensor) -> Callable[[Tensor], Tensor]:
        stride = weight.stride()
        return lambda gradient: (
            gradient.as_strided(gradient.size(), stride) if gradient.is_contiguous() else gradient
        )

    for layer in module.modules():
        if isinstance(layer, SmallMapConv2d) and layer.kernel_size == (1, 1):
            weight = layer.weight
            if weight.requires_grad:
                weight.register_hook(hook_of(weight))  # type: ignore[no-untyped-call]
