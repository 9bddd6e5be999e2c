"""Backbones: torchvision's classification networks without their last layer."""

import torch
import torchvision
from torch import nn

from fastsimsiam.errors import UserError


def feature_extractor(
    arch: str, stem: str = "imagenet", zero_init_residual: bool = True
) -> tuple[nn.Module, int]:
    """A randomly initialized backbone.

    Args:
        arch: name of a classification network of `torchvision.models`, or of one that ends in a linear
            layer and that the user has registered with torchvision.
        stem: `imagenet`, or `cifar`: a 3x3 convolution of stride 1 and no max-pooling (ResNets only).
        zero_init_residual: the scale of the last BatchNorm of each residual block starts at 0 instead
            of 1 (ResNets): SimSiam, SimCLR, BYOL, MoCo v3 and SupCon's TensorFlow code do so, MoCo v1
            and v2, SwAV and SupCon's PyTorch code do not.

    Returns:
        The network, images (B, 3, H, W) to features (B, D), and D.

    Raises:
        UserError: there is no such network, or it has no stem to change.
    """
    network = _network(arch, stem, zero_init_residual)
    return network, _remove_classifier(network, arch)


def classifier_name(arch: str) -> str:
    """The name of the layer that `feature_extractor` replaces: `fc` of a ResNet.

    Raises:
        UserError: as `feature_extractor`.
    """
    return _classifier(_network_of_shapes(arch, "imagenet"), arch)[0]


def shape_extractor(arch: str, stem: str = "imagenet") -> tuple[nn.Module, int]:
    """As `feature_extractor`, on torch's meta device: it has shapes and no values.

    Raises:
        UserError: as `feature_extractor`.
    """
    network = _network_of_shapes(arch, stem)
    return network, _remove_classifier(network, arch)


def _network_of_shapes(arch: str, stem: str) -> nn.Module:
    try:
        with torch.device("meta"):
            return _network(arch, stem)
    except NotImplementedError:  # RegNets compute their widths by tensors
        with torch.random.fork_rng(devices=[]):
            return _network(arch, stem).to("meta")


def _network(arch: str, stem: str, zero_init_residual: bool = True) -> nn.Module:
    known = torchvision.models.list_models(module=torchvision.models)
    if arch not in known and not _is_registered_by_user(arch):
        near = [name for name in known if name[:4] == arch[:4]] or ["resnet18", "resnet50"]
        raise UserError(
            f"--arch {arch} is not a classification network of torchvision: try {near[0]}"
        )
    options: dict[str, object] = {"weights": None}
    network_type = torchvision.models.get_model_builder(arch)
    if "resnet" in arch or "resnext" in arch:
        options["zero_init_residual"] = zero_init_residual
    if arch in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": True}
    network: nn.Module = network_type(**options)
    if stem == "cifar":
        _make_cifar_stem(network, arch)
    return network


def _is_registered_by_user(arch: str) -> bool:
    if arch not in torchvision.models.list_models():
        return False
    # The rest of torchvision's own networks are for detection, segmentation, video and so on.
    return not torchvision.models.get_model_builder(arch).__module__.startswith("torchvision.")


def _make_cifar_stem(network: nn.Module, arch: str) -> None:
    conv = getattr(network, "conv1", None)
    if not isinstance(network, torchvision.models.ResNet) or not isinstance(conv, nn.Conv2d):
        raise UserError(f"--stem cifar needs a ResNet, and --arch {arch} is not one")
    network.conv1 = nn.Conv2d(3, conv.out_channels, kernel_size=3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()


def _remove_classifier(network: nn.Module, arch: str) -> int:
    """Replaces the last linear layer by the identity; returns the number of its inputs."""
    name, classifier = _classifier(network, arch)
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, nn.Identity())
    return classifier.in_features


def _classifier(network: nn.Module, arch: str) -> tuple[str, nn.Linear]:
    linear = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Linear)]
    if not linear:
        raise UserError(f"--arch {arch} has no linear layer: choose another, such as resnet18")
    return linear[-1]
