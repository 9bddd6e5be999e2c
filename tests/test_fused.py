"""Which kernels a network gets, and that its weights stay what they are."""

import pytest
import torch

from fastsimsiam.config.run import FuseName
from fastsimsiam.models.backbones import feature_extractor
from fastsimsiam.models.fused import STAGES, fused
from fastsimsiam.models.fused_batch_norm.fuse import FusedBatchNorm2d
from fastsimsiam.models.fused_bottleneck.fuse import FusedBottleneck
from fastsimsiam.models.fused_stem.convolution import SpaceToDepthConv2d


def a_backbone(arch: str) -> torch.nn.Module:
    with torch.device("meta"):
        return feature_extractor(arch)[0]


@pytest.mark.parametrize("how", ["auto", "off", "norms", "stem", "blocks"])
@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "resnext50_32x4d", "vgg11_bn"])
def test_weights_keep_their_names_and_their_order(arch: str, how: FuseName) -> None:
    """Optimizers, target networks and checkpoints go by both."""
    plain, found = a_backbone(arch), fused(a_backbone(arch), how)
    for kind in ("named_parameters", "named_buffers"):
        shapes = [
            [(name, tensor.shape) for name, tensor in getattr(network, kind)()]
            for network in (plain, found)
        ]
        assert shapes[0] == shapes[1]
    assert list(plain.state_dict()) == list(found.state_dict())


def test_auto_fuses_the_blocks_that_were_measured() -> None:
    network = fused(a_backbone("resnet50"), "auto")
    for number in range(1, 5):
        blocks = list(getattr(network, f"layer{number}"))
        assert all(isinstance(block, FusedBottleneck) == (number in STAGES) for block in blocks)
    assert isinstance(network.conv1, SpaceToDepthConv2d)
    norms = [m for m in network.layer4.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert any(isinstance(norm, FusedBatchNorm2d) for norm in norms)


@pytest.mark.parametrize("arch", ["resnet18", "wide_resnet50_2", "resnext50_32x4d", "vgg11_bn"])
def test_auto_leaves_other_networks_alone(arch: str) -> None:
    kinds = [type(layer) for layer in a_backbone(arch).modules()]
    assert [type(layer) for layer in fused(a_backbone(arch), "auto").modules()] == kinds


def test_auto_fuses_nothing_on_a_gpu_that_was_not_measured() -> None:
    kinds = [type(layer) for layer in a_backbone("resnet50").modules()]
    found = fused(a_backbone("resnet50"), "auto", (8, 9))
    assert [type(layer) for layer in found.modules()] == kinds
