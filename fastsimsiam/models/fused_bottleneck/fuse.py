"""Converts the bottleneck blocks of torchvision's ResNets to fused ones."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from fastsimsiam.models.fused_batch_norm.fuse import FusedBatchNorm2d, fuse_norms
from fastsimsiam.models.fused_batch_norm.sums import num_pixels
from fastsimsiam.models.fused_bottleneck.block import fused_bottleneck

_MULTIPLE = 16
"""Channels of a map are a multiple of it: the least that tensor cores take."""


class FusedBottleneck(Bottleneck):  # type: ignore[misc]  # torchvision has no types
    """A bottleneck block as one function, in training mode.

    Attributes:
        masks_input, is_masked: see `block.Layout`.
    """

    masks_input = False
    is_masked = False

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, D, H', W')."""
        convs, norms = [self.conv1, self.conv2, self.conv3], [self.bn1, self.bn2, self.bn3]
        if self.downsample is not None:
            convs.append(self.downsample[0])
            norms.append(self.downsample[1])
        # A GPU has no exact float32 product that is fast: torch's own convolutions then.
        is_exact = x.device.type == "cuda" and x.dtype == torch.float32
        if is_exact or not all(norm.training for norm in norms):
            if self.masks_input and torch.is_grad_enabled():
                x = x.relu()  # changes nothing, and masks the gradient
            output: Tensor = super().forward(x)
            return output
        weights = [
            weight
            for conv, norm in zip(convs, norms, strict=True)
            for weight in (conv.weight, norm.weight, norm.bias)
        ]
        conv2 = self.conv2
        y, *moments = fused_bottleneck(
            x,
            (*weights, *[None] * (12 - len(weights))),
            tuple(norm.eps for norm in norms),
            (conv2.stride, conv2.padding, conv2.dilation, conv2.groups),
            self.masks_input,
            self.is_masked,
        )
        with torch.no_grad():
            for number, norm in enumerate(norms):
                mean, variance = moments[2 * number : 2 * number + 2]
                count = num_pixels(y if number else x)
                norm.running_mean.lerp_(mean, norm.momentum)
                norm.running_var.lerp_(variance * (count / (count - 1)), norm.momentum)
                norm.num_batches_tracked.add_(1)
        assert isinstance(y, Tensor)
        return y


class _NormWithRelu(FusedBatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        output = super().forward(input, relu=True)
        assert isinstance(output, Tensor)
        return output


def fuse_bottlenecks(backbone: nn.Module, layers: Sequence[int] = (1, 2, 3, 4)) -> nn.Module:
    """Fuses the bottleneck blocks of a ResNet of torchvision, and the BatchNorm behind its stem.

    The backbone is changed, and its weights keep their names. In evaluation mode, and on a GPU in
    float32, it computes as before. Nothing but the next block may use a block's output: its gradient is
    not complete where the output is 0.

    Args:
        backbone: the network.
        layers: numbers of the stages whose blocks are fused; in the other blocks, BatchNorm is fused
            with ReLU and addition alone (`fuse_norms`).

    Raises:
        ValueError: the backbone has no bottleneck block that can be fused.
    """
    network: Any = backbone  # torchvision has no types
    if not isinstance(network, ResNet):
        raise ValueError(f"{type(backbone).__name__} is not a ResNet of torchvision")
    fused = 0
    for number in range(1, 5):
        before, layer = None, getattr(network, f"layer{number}")
        for name, block in list(layer.named_children()):
            if not _is_fusible(block):
                before = None
            elif number not in layers:
                setattr(layer, name, fuse_norms(block))
            else:
                block.__class__ = FusedBottleneck
                fused += 1
                if block.downsample is None and before is not None:
                    block.masks_input = before.is_masked = True
                before = block
    if not fused:
        raise ValueError("the ResNet has no bottleneck block that can be fused")
    if _is_plain(network.bn1):
        network.bn1.__class__ = _NormWithRelu
        network.relu = nn.Identity()
    return backbone


def can_fuse(backbone: nn.Module) -> bool:
    """Whether `fuse_bottlenecks` finds blocks to fuse."""
    return isinstance(backbone, ResNet) and any(map(_is_fusible, backbone.modules()))


def _is_fusible(block: Any) -> bool:
    if type(block) is not Bottleneck:
        return False
    norms, narrow = [block.bn1, block.bn2, block.bn3], [block.conv1, block.conv3]
    if block.downsample is not None:
        conv, *rest = block.downsample
        is_usual = isinstance(conv, nn.Conv2d) and len(rest) == 1 and conv.bias is None
        if not is_usual or conv.kernel_size != (1, 1) or conv.stride != block.conv2.stride:
            return False
        norms += rest
        narrow.append(conv)
    sizes = [size for conv in narrow for size in conv.weight.shape[:2]]
    return all(_is_plain(norm) for norm in norms) and all(size % _MULTIPLE == 0 for size in sizes)


def _is_plain(layer: nn.Module) -> bool:
    plain = type(layer) is nn.BatchNorm2d and layer.affine and layer.track_running_stats
    return plain and layer.momentum is not None
