"""Convolutions of small feature maps as one matrix product each, for a CPU.

Small images end in maps of a few pixels, where oneDNN's convolutions take up to six times as long
(benchmarks/parts/small_maps.py).
"""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SmallMapConv2d(nn.Conv2d):
    """A convolution with the same parameters and results (but for rounding) that knows both ways.

    Attributes:
        largest_map: pixels of an output map up to which it is a product; which way is faster at 4x4
            depends on channels and dtype.
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
        return conv_by_product(input, weight, bias, self.stride, self.padding, (height, width))


def conv_by_product(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    size: tuple[int, int],
) -> Tensor:
    """A convolution as the product of all patches with all kernels.

    Args:
        input: (B, C, H, W); channels_last costs least.
        weight: (O, C, K, L), likewise.
        bias: (O,) or None.
        stride, padding: down and across.
        size: of the output, (P, Q).

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
    if len(taps) < kernel.shape[1]:  # the others see nothing but padding
        kernel = kernel.index_select(1, torch.tensor(taps))
    output = F.linear(torch.cat(patches, dim=3).flatten(0, 2), kernel.flatten(1), bias)
    return output.view(len(input), *size, -1).permute(0, 3, 1, 2)


def _meets(positions: slice, padding: int, length: int) -> bool:
    """Whether any of these positions of a padded side lies in what was padded."""
    every = range(positions.start, positions.stop, positions.step)
    return any(padding <= position < padding + length for position in every)


def use_products(module: nn.Module) -> None:
    """Lets every plain convolution inside choose its way by the size of its map, in place."""
    for layer in module.modules():
        if (
            type(layer) is nn.Conv2d
            and layer.groups == 1
            and layer.dilation == (1, 1)
            and layer.padding_mode == "zeros"
            and not isinstance(layer.padding, str)
        ):
            layer.__class__ = SmallMapConv2d
