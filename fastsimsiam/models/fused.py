"""Which kernels a compiled network on a GPU gets."""

from torch import nn
from torchvision.models.resnet import Bottleneck

from fastsimsiam.config.run import FuseName
from fastsimsiam.models.fused_batch_norm.fuse import fuse_norms
from fastsimsiam.models.fused_bottleneck.fuse import can_fuse, fuse_bottlenecks
from fastsimsiam.models.fused_stem.fuse import fuse_stem

STAGES = (1, 2)
"""Stages of a ResNet whose bottleneck blocks are fused: those with wide maps, which memory bounds."""


MEASURED = (9, 0)
"""Compute capability of the GPUs on which `auto` fuses: tiles are chosen for Hopper's shared memory."""


def fused(backbone: nn.Module, how: FuseName, capability: tuple[int, int] = MEASURED) -> nn.Module:
    """The backbone with fused layers, which keep their names and weights.

    Args:
        backbone: the network; its layers are changed.
        how: see `Config.fuse`; what a network does not have is left out.
        capability: compute capability of the GPU.
    """
    if how == "auto":
        how = "blocks" if capability == MEASURED and _is_measured(backbone) else "off"
    if how == "off":
        return backbone
    if how == "blocks" and can_fuse(backbone):
        return fuse_stem(fuse_bottlenecks(backbone, STAGES))
    backbone = fuse_norms(backbone)
    return backbone if how == "norms" else fuse_stem(backbone)


def _is_measured(backbone: nn.Module) -> bool:
    """Whether the blocks are those of a ResNet-50, in any number: others were not timed on a GPU."""
    blocks = [block for block in backbone.modules() if isinstance(block, Bottleneck)]
    return can_fuse(backbone) and all(
        block.conv2.groups == 1 and block.conv3.out_channels == 4 * block.conv3.in_channels
        for block in blocks
    )
