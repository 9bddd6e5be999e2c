"""The first convolution of a ResNet, 7x7 with stride 2, as one of 4x4 with stride 1 on half the side.

Three channels fill no tensor core. 2x2 pixels as twelve channels, and four of zeros, do.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastsimsiam.models.fused_stem.tiles import REARRANGE_TILE

_CHANNELS = 16
"""Channels of the rearranged views: the next multiple of eight, which are 16 bytes of bfloat16."""
BEFORE = 4
"""Zeros in front of a side: the padding, and one that goes with the even kernel."""
_AROUND = 6
"""Zeros on both sides; one more makes an odd side even."""


@torch.library.custom_op("fastsimsiam::space_to_depth", mutates_args=())
def space_to_depth(view: Tensor) -> Tensor:
    """Rearranges views, in one pass on a GPU.

    Args:
        view: (N, 3, H, W), best in channels_last.

    Returns:
        (N, 16, R, S), channels_last, R = ceil(H / 2) + 3: the channels of `F.pixel_unshuffle` of the
        padded view, and zeros. Without a gradient: views need none.
    """
    result = _rearranged(view)
    if view.device.type == "cuda":
        from fastsimsiam.models.fused_stem import kernels

        kernels.space_to_depth(view, result, BEFORE, REARRANGE_TILE)
        return result
    after = [_AROUND - BEFORE + size % 2 for size in view.shape[2:]]
    padded = F.pad(view, (BEFORE, after[1], BEFORE, after[0]))
    return result.copy_(_with_zeros(F.pixel_unshuffle(padded, 2)))


@space_to_depth.register_fake
def _(view: Tensor) -> Tensor:
    return _rearranged(view)


def _rearranged(view: Tensor) -> Tensor:
    sides = [(size + 1) // 2 + _AROUND // 2 for size in view.shape[2:]]
    return torch.empty(
        (len(view), _CHANNELS, *sides),
        dtype=view.dtype,
        device=view.device,
        memory_format=torch.channels_last,
    )


def _with_zeros(tensor: Tensor) -> Tensor:
    return F.pad(tensor, (0, 0, 0, 0, 0, _CHANNELS - tensor.shape[1]))


class SpaceToDepthConv2d(nn.Conv2d):
    """A convolution that `fits`, computed on rearranged views; its weight stays (O, 3, 7, 7).

    In evaluation, and for views that need a gradient, it is the convolution that it was.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self.training or input.requires_grad:
            output: Tensor = super()._conv_forward(input, weight, bias)
            return output
        # A row and a column of zeros in front make the kernel's side even.
        kernel = _with_zeros(F.pixel_unshuffle(F.pad(weight, (1, 0, 1, 0)), 2))
        kernel = kernel.contiguous(memory_format=torch.channels_last)
        rearranged: Tensor = space_to_depth(input)
        return F.conv2d(rearranged, kernel, bias)


def fits(layer: nn.Module | None) -> bool:
    """Whether a layer is the first convolution of a ResNet for large images."""
    return (
        type(layer) is nn.Conv2d
        and layer.in_channels == 3
        and layer.kernel_size == (7, 7)
        and layer.stride == (2, 2)
        and layer.padding == (3, 3)
        and layer.dilation == (1, 1)
        and layer.groups == 1
        and layer.padding_mode == "zeros"
    )
