"""Backbones and heads as the paper and its code describe them."""

import pytest
import torch
from torch import nn

from fastsimsiam.errors import UserError
from fastsimsiam.models.backbones import feature_extractor
from fastsimsiam.models.heads import mlp


def num_parameters(module: nn.Module) -> int:
    """Trained numbers."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("arch", "dim"),
    [
        ("resnet18", 512),
        ("resnet50", 2048),
        ("mobilenet_v3_small", 1024),
        ("vgg11_bn", 4096),
        ("densenet121", 1024),
        ("squeezenet1_0", None),
        ("convnext_tiny", 768),
    ],
)
def test_any_torchvision_backbone(arch: str, dim: int | None) -> None:
    if dim is None:
        with pytest.raises(UserError, match="squeezenet1_0 has no linear layer"):
            feature_extractor(arch)
        return
    backbone, found = feature_extractor(arch)
    assert found == dim
    assert backbone.eval()(torch.zeros(1, 3, 64, 64)).flatten(1).shape == (1, dim)


def test_resnet50_has_torchvisions_parameters_without_fc() -> None:
    backbone, _ = feature_extractor("resnet50")
    assert num_parameters(backbone) == 25_557_032 - (2048 * 1000 + 1000)


def test_residual_branches_start_at_zero() -> None:
    backbone, _ = feature_extractor("resnet18")
    for block in backbone.layer2:
        assert not block.bn2.weight.any()


def test_cifar_stem_keeps_the_resolution() -> None:
    backbone, dim = feature_extractor("resnet18", "cifar")
    assert backbone.conv1.stride == (1, 1)
    assert backbone.conv1.kernel_size == (3, 3)
    sizes = []
    backbone.layer1.register_forward_hook(lambda module, args, out: sizes.append(out.shape[-1]))
    assert backbone(torch.zeros(2, 3, 32, 32)).shape == (2, dim)
    assert sizes == [32]


@pytest.mark.parametrize(
    ("arch", "stem", "message"),
    [
        ("resnet17", "imagenet", "resnet17 is not a .*torchvision: try resnet"),
        ("vgg11", "cifar", "needs a ResNet"),
        ("fcn_resnet50", "imagenet", "not a classification network of torchvision"),
    ],
)
def test_wrong_names_are_refused(arch: str, stem: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        feature_extractor(arch, stem)


def test_projector_is_the_published_one() -> None:
    head = mlp([2048] * 4, output_norm="plain", output_bias=False)
    kinds = [type(layer).__name__ for layer in head]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU"] * 2 + ["Linear", "BatchNorm1d"]
    assert all(layer.bias is None for layer in head if isinstance(layer, nn.Linear))
    assert not head[-1].affine
    assert head[1].affine
    # 3 matrices and 2 affine BatchNorms
    assert num_parameters(head) == 3 * 2048**2 + 2 * 2 * 2048


def test_predictor_is_the_published_one() -> None:
    head = mlp([2048, 512, 2048])
    kinds = [type(layer).__name__ for layer in head]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert head[0].bias is None
    assert head[3].bias is not None
    assert num_parameters(head) == 2 * 2048 * 512 + 2 * 512 + 2048


def test_heads_of_other_publications() -> None:
    """SimCLR's output BatchNorm has a scale and no offset; MoCo v2's head has no BatchNorm at all."""
    simclr = mlp([512, 512, 128], output_norm="scale", output_bias=False)
    assert [name for name, _ in simclr[-1].named_parameters()] == ["weight"]
    simclr(torch.randn(8, 512)).sum().backward()
    moco = mlp([512, 512, 128], hidden_norm=False, hidden_bias=True)
    assert [type(layer).__name__ for layer in moco] == ["Linear", "ReLU", "Linear"]
    assert all(moco[number].bias is not None for number in (0, 2))


def test_residual_scales_start_at_zero_unless_told_otherwise() -> None:
    for asked, expected in ((True, 0.0), (False, 1.0)):
        network, _ = feature_extractor("resnet18", zero_init_residual=asked)
        assert network.layer1[0].bn2.weight.unique().item() == expected
