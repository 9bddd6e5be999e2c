"""Checkpoints of the official codes and of ports: the network that was trained is taken.

Each layout has the keys of the public code that its name tells.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import torchvision
from lightly.models import ResNetGenerator
from test_foreign_weights import ARCH, numbered, other, tiny, under
from torch import Tensor, nn

from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.foreign import find_backbone
from fastsimsiam.evaluate.pretrained import load_pretrained

State = dict[str, Tensor]


def linear(name: str, width: int = 8, *, bias: bool = True) -> State:
    return {f"{name}.weight": torch.randn(width, width)} | (
        {f"{name}.bias": torch.randn(width)} if bias else {}
    )


def norm(name: str) -> State:
    made = nn.BatchNorm1d(8).state_dict()
    return under(f"{name}.", made)


def mlp(name: str, first: int = 0) -> State:
    """Linear, BatchNorm, ReLU, Linear."""
    return {
        **linear(f"{name}.{first}"),
        **norm(f"{name}.{first + 1}"),
        **linear(f"{name}.{first + 3}"),
    }


QUEUE = {"queue": torch.randn(8, 16), "queue_ptr": torch.zeros(1, dtype=torch.int64)}


def moco_v1(t: State) -> dict[str, object]:
    """facebookresearch/moco: `fc` is the head, one layer."""
    encoders = {
        **under("encoder_q.", {**t, **linear("fc")}),
        **under("encoder_k.", {**other(t), **linear("fc")}),
        **QUEUE,
    }
    return {"epoch": 200, "arch": "resnet50", "state_dict": under("module.", encoders)}


def moco_v2(t: State) -> dict[str, object]:
    """facebookresearch/moco with --mlp: two layers in `fc`."""
    head = {**linear("fc.0"), **linear("fc.2")}
    encoders = {
        **under("encoder_k.", {**other(t), **head}),
        **under("encoder_q.", {**t, **head}),
        **QUEUE,
    }
    optimizer = {"state": {0: {"momentum_buffer": torch.randn(3)}}, "param_groups": [{"lr": 0.03}]}
    return {
        "epoch": 200,
        "arch": "resnet50",
        "state_dict": under("module.", encoders),
        "optimizer": optimizer,
    }


def moco_demo(t: State) -> dict[str, object]:
    """The authors' CIFAR-10 demo: a sequence with the classifier at the end."""
    with_head = {**numbered("net.", t), **linear("net.9")}
    encoders = {**under("encoder_q.", with_head), **under("encoder_k.", other(with_head)), **QUEUE}
    return {"epoch": 5, "state_dict": encoders}


def moco_v3(t: State) -> dict[str, object]:
    """facebookresearch/moco-v3."""
    head = mlp("fc")
    encoders = {
        **under("momentum_encoder.", {**other(t), **head}),
        **under("base_encoder.", {**t, **head}),
        **mlp("predictor"),
    }
    return {
        "epoch": 100,
        "arch": "resnet50",
        "state_dict": under("module.", encoders),
        "scaler": {"scale": 65536.0},
    }


def byol_lucidrains(t: State) -> dict[str, object]:
    """lucidrains/byol-pytorch: the network is there twice, and its classifier stays in it."""
    network = {**t, **linear("fc")}
    return {
        **under("net.", network),
        **under("online_encoder.net.", network),
        **mlp("online_encoder.projector"),
        **under("target_encoder.net.", other(network)),
        **mlp("target_encoder.projector"),
        **mlp("online_predictor"),
    }


def byol_sthalles(t: State) -> dict[str, object]:
    """sthalles/PyTorch-BYOL."""
    return {
        "target_network_state_dict": {**numbered("encoder.", other(t)), **mlp("projetion.net")},
        "online_network_state_dict": {**numbered("encoder.", t), **mlp("projetion.net")},
        "optimizer_state_dict": {"state": {}, "param_groups": []},
    }


def byol_yaox12(t: State) -> dict[str, object]:
    """yaox12/BYOL-PyTorch: one state dict of the whole model."""
    model = {
        **numbered("online_network.encoder.", t),
        **mlp("online_network.projetion.net"),
        **numbered("target_network.encoder.", other(t)),
        **mlp("target_network.projetion.net"),
        **mlp("predictor.net"),
    }
    return {"epoch": 300, "steps": 7, "model": under("module.", model)}


def byol_bolts(t: State) -> dict[str, object]:
    """Lightning Bolts."""
    return {
        "pytorch-lightning_version": "1.5.0",
        "state_dict": {
            **under("online_network.encoder.", t),
            **mlp("online_network.projector.model"),
            **under("target_network.encoder.", other(t)),
            **mlp("target_network.projector.model"),
            **mlp("predictor.model"),
        },
    }


def simclr_sthalles(t: State) -> dict[str, object]:
    """sthalles/SimCLR: the head is in the network's `fc`."""
    network = {**t, **linear("fc.0"), **linear("fc.2")}
    return {"epoch": 100, "arch": "resnet18", "state_dict": under("backbone.", network)}


def simclr_spijkervet(t: State) -> dict[str, object]:
    """Spijkervet/SimCLR."""
    return {
        **under("encoder.", t),
        **linear("projector.0", bias=False),
        **linear("projector.2", bias=False),
    }


def simclr_leftthomas(t: State) -> dict[str, object]:
    """leftthomas/SimCLR: f is a sequence, g the head."""
    return {**numbered("f.", t), **linear("g.0", bias=False), **norm("g.1"), **linear("g.3")}


def simclr_converted(t: State) -> dict[str, object]:
    """Converted from TensorFlow to torchvision's names."""
    return {"state_dict": {**t, **linear("fc")}}


def simclr_model(t: State) -> dict[str, object]:
    return {"model": under("module.model.", t), "projection": linear("0")}


def supcon(t: State) -> dict[str, object]:
    """HobbitLong/SupContrast on several GPUs."""
    named = {key.replace("downsample", "shortcut"): value for key, value in t.items()}
    return {
        "opt": argparse.Namespace(epochs=1000),
        "model": {**under("encoder.module.", named), **linear("head.0"), **linear("head.2")},
        "optimizer": {"state": {}, "param_groups": []},
        "epoch": 1000,
    }


def swav(t: State) -> dict[str, object]:
    """facebookresearch/swav: the published files are a flat state dict."""
    return under(
        "module.", {**t, **mlp("projection_head"), "prototypes.weight": torch.randn(30, 8)}
    )


def swav_run(t: State) -> dict[str, object]:
    """facebookresearch/swav: a checkpoint, with several sets of prototypes."""
    heads = {"prototypes.prototypes0.weight": torch.randn(30, 8)}
    return {"epoch": 3, "state_dict": under("module.", {**t, **mlp("projection_head"), **heads})}


def vicreg(t: State) -> dict[str, object]:
    """facebookresearch/vicreg and barlowtwins."""
    model = {**under("backbone.", t), **mlp("projector"), **norm("bn")}
    return {"epoch": 100, "model": under("module.", model), "optimizer": {"state": {}}}


def lightly_moco(t: State) -> dict[str, object]:
    """Lightly's ImageNet benchmark: `backbone` is the momentum encoder there."""
    return {
        "state_dict": {
            **under("backbone.", other(t)),
            **under("query_backbone.", t),
            **linear("query_projection_head.layers.0"),
            **linear("projection_head.layers.0"),
            **linear("online_classifier.linear"),
            "criterion.memory_bank.bank": torch.randn(8, 16),
        }
    }


def lightly_byol(t: State) -> dict[str, object]:
    """Lightly's ImageNet benchmark: `backbone` is the target there."""
    return {
        "state_dict": {
            **under("backbone.", other(t)),
            **under("student_backbone.", t),
            **mlp("student_prediction_head.layers"),
            **linear("online_classifier.linear"),
        }
    }


def lightly_swav(t: State) -> dict[str, object]:
    return {
        "state_dict": {
            **numbered("backbone.", t),
            **mlp("projection_head.layers"),
            "prototypes.heads.0.weight": torch.randn(30, 8),
            "queues.0.bank": torch.randn(8, 16),
        }
    }


def solo_byol(t: State) -> dict[str, object]:
    """solo-learn."""
    return {
        "state_dict": {
            **under("momentum_backbone.", other(t)),
            **mlp("momentum_projector"),
            **under("backbone.", t),
            **linear("classifier"),
            **mlp("projector"),
            **mlp("predictor"),
        }
    }


def solo_moco(t: State) -> dict[str, object]:
    made = solo_byol(t)
    return {"state_dict": {**made["state_dict"], **QUEUE}}


def mmselfsup_moco(t: State) -> dict[str, object]:
    """mmselfsup: an encoder is a sequence of backbone and neck."""
    neck = linear("0")
    return {
        "meta": {"epoch": 200},
        "state_dict": {
            **under("encoder_k.0.", other(t)),
            **under("encoder_k.1.mlp.", neck),
            **under("encoder_q.0.", t),
            **under("encoder_q.1.mlp.", neck),
            **under("backbone.", t),
            **under("neck.mlp.", neck),
            **QUEUE,
        },
    }


def mmselfsup_byol(t: State) -> dict[str, object]:
    return {
        "state_dict": {
            **under("backbone.", t),
            **under("neck.", linear("fc0")),
            **under("target_net.module.0.", other(t)),
            **under("target_net.module.1.", linear("fc0")),
            "target_net.steps": torch.zeros((), dtype=torch.int64),
            **linear("head.predictor.fc0"),
        }
    }


def mmselfsup_moco_v3(t: State) -> dict[str, object]:
    return {
        "state_dict": {
            **under("base_encoder.0.", t),
            **under("base_encoder.1.", linear("fc0")),
            **under("backbone.", t),
            **under("momentum_encoder.module.0.", other(t)),
            **under("momentum_encoder.module.1.", linear("fc0")),
            "momentum_encoder.steps": torch.zeros((), dtype=torch.int64),
        }
    }


def vissl_moco(t: State) -> dict[str, object]:
    """VISSL: the momentum encoder is in the loss."""
    trunk = "trunk._feature_blocks."
    return {
        "classy_state_dict": {
            "loss": {**under(f"moco_encoder.{trunk}", other(t)), **QUEUE},
            "base_model": {"model": {"trunk": under("_feature_blocks.", t), "heads": linear("0")}},
        }
    }


LAYOUTS: dict[str, tuple[Callable[[State], dict[str, object]], str, str]] = {
    "MoCo v1": (moco_v1, "module.encoder_q.", "module.encoder_k."),
    "MoCo v2": (moco_v2, "module.encoder_q.", "module.encoder_k."),
    "MoCo on CIFAR-10": (moco_demo, "encoder_q.net.", "encoder_k.net."),
    "MoCo v3": (moco_v3, "module.base_encoder.", "module.momentum_encoder."),
    "BYOL, lucidrains": (byol_lucidrains, "online_encoder.net.", "target_encoder.net."),
    "BYOL, sthalles": (
        byol_sthalles,
        "online_network_state_dict.encoder.",
        "target_network_state_dict.encoder.",
    ),
    "BYOL, yaox12": (
        byol_yaox12,
        "module.online_network.encoder.",
        "module.target_network.encoder.",
    ),
    "BYOL, Bolts": (byol_bolts, "online_network.encoder.", "target_network.encoder."),
    "SimCLR, sthalles": (simclr_sthalles, "backbone.", ""),
    "SimCLR, Spijkervet": (simclr_spijkervet, "encoder.", ""),
    "SimCLR, leftthomas": (simclr_leftthomas, "f.", ""),
    "SimCLR, converted": (simclr_converted, "", ""),
    "SimCLR, in model": (simclr_model, "module.model.", ""),
    "SupCon": (supcon, "encoder.module.", ""),
    "SwAV": (swav, "module.", ""),
    "SwAV, checkpoint": (swav_run, "module.", ""),
    "VICReg": (vicreg, "module.backbone.", ""),
    "lightly, MoCo": (lightly_moco, "query_backbone.", "backbone."),
    "lightly, BYOL": (lightly_byol, "student_backbone.", "backbone."),
    "lightly, SwAV": (lightly_swav, "backbone.", ""),
    "solo-learn, BYOL": (solo_byol, "backbone.", "momentum_backbone."),
    "solo-learn, MoCo": (solo_moco, "backbone.", "momentum_backbone."),
    "mmselfsup, MoCo": (mmselfsup_moco, "encoder_q.0.", "encoder_k.0."),
    "mmselfsup, BYOL": (mmselfsup_byol, "backbone.", "target_net.module.0."),
    "mmselfsup, MoCo v3": (mmselfsup_moco_v3, "backbone.", "momentum_encoder.module.0."),
    "VISSL, MoCo": (vissl_moco, "trunk._feature_blocks.", "moco_encoder.trunk._feature_blocks."),
}
"""Name -> layout of a network's state, prefix of the network that is trained, prefix of the target."""


def saved(content: Mapping[str, object], tmp_path: Path) -> Path:
    file = tmp_path / "checkpoint.pth.tar"
    torch.save(content, file)
    return file


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_network_that_was_trained_is_taken(name: str, tmp_path: Path) -> None:
    layout, online, target = LAYOUTS[name]
    made = tiny()
    made.fc = nn.Identity()
    loaded = load_pretrained(saved(layout(made.state_dict()), tmp_path), arch=ARCH)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.backbone(images), made(images))
    (note,) = loaded.notes or ("",)
    taken, _, left = note.partition(", not those under ")
    assert taken.endswith(online)
    assert bool(left) == bool(target)
    assert left.endswith(target)


@pytest.mark.parametrize("supcon_layout", [False, True])
def test_a_resnet_written_for_cifar_has_the_same_features(
    supcon_layout: bool, tmp_path: Path
) -> None:
    """Lightly's ResNet is a network of the same kind as SupContrast's: `shortcut`, no max-pooling."""
    torch.manual_seed(0)
    network = ResNetGenerator("resnet-18").eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    names = [name for name, _ in network.named_children()]
    assert "layer2.0.shortcut.0.weight" in network.state_dict()
    content: dict[str, object] = {"model": under("encoder.", network.state_dict())}
    if not supcon_layout:  # its children in a sequence, as lightly's documents advise
        state = {}
        for key, value in network.state_dict().items():
            top, rest = key.split(".", 1)
            state[f"backbone.{names.index(top)}.{rest}"] = value
        content = {"state_dict": state}
    loaded = load_pretrained(saved(content, tmp_path))
    assert (loaded.arch, loaded.stem) == ("resnet18", "cifar")
    images = torch.randn(2, 3, 32, 32)
    network.linear = nn.Identity()
    with torch.no_grad():
        torch.testing.assert_close(loaded.backbone(images), network(images))


def simclr_v2_converted() -> State:
    """Separius/SimCLRv2-Pytorch, a ResNet-50 of the usual width: names of its own."""
    state = {"net.0.0.weight": torch.zeros(64, 3, 7, 7), **under("net.0.1.0.", bn(64))}
    width = 64
    for stage, (blocks, planes) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), start=1):
        for number in range(blocks):
            block = f"net.{stage}.blocks.{number}"
            if number == 0:
                state[f"{block}.projection.shortcut.weight"] = torch.zeros(4 * planes, width, 1, 1)
                state |= under(f"{block}.projection.bn.0.", bn(4 * planes))
            for conv, (out, inner, side) in enumerate(
                ((planes, width, 1), (planes, planes, 3), (4 * planes, planes, 1))
            ):
                state[f"{block}.net.{2 * conv}.weight"] = torch.zeros(out, inner, side, side)
                state |= under(f"{block}.net.{2 * conv + 1}.0.", bn(out))
            width = 4 * planes
    return state | linear("fc")


def bn(width: int) -> State:
    return nn.BatchNorm2d(width).state_dict()


UNKNOWN: dict[str, tuple[Callable[[], dict[str, object]], str]] = {
    "SimCLRv2, converted": (
        lambda: {"resnet": simclr_v2_converted(), "head": linear("layers.0")},
        r"its keys are others: resnet\.net\.0\.0\.weight, resnet\.net\.0\.1\.0\.weight",
    ),
    "SimCLR with convs": (
        lambda: {"convs.0.conv.weight": torch.zeros(8, 3, 3, 3), **linear("lin")},
        r"its keys are others: convs\.0\.conv\.weight, lin\.weight",
    ),
    "MoCo v3, ViT": (
        lambda: {
            "state_dict": under(
                "module.base_encoder.",
                {
                    "cls_token": torch.zeros(1, 1, 8),
                    "patch_embed.proj.weight": torch.zeros(8, 3, 4, 4),
                    "blocks.0.norm1.weight": torch.zeros(8),
                },
            )
        },
        r"its keys are others: state_dict\.module\.base_encoder\.cls_token, ",
    ),
    "one key too many": (
        lambda: {"module.encoder_q.attention.weight": torch.zeros(3), **resnet18("encoder_q.")},
        r"has keys under module\.encoder_q\. that resnet18 does not have: attention\.weight",
    ),
    "twice as wide": (
        lambda: {
            key: torch.zeros(()).expand([2 * side for side in value.shape])
            for key, value in resnet18("").items()
        },
        r"has other shapes under module\. than resnet18: bn1\.bias, ",
    ),
}


def resnet18(prefix: str) -> State:
    """Shapes without memory."""
    with torch.device("meta"):
        shapes = torchvision.models.resnet18().state_dict()
    return {f"module.{prefix}{k}": torch.zeros(()).expand(v.shape) for k, v in shapes.items()}


@pytest.mark.parametrize("name", UNKNOWN)
def test_keys_that_are_not_understood_are_named(name: str) -> None:
    content, message = UNKNOWN[name]
    with pytest.raises(UserError, match=message) as error:
        find_backbone(content(), Path("x.pth"), arch=None, stem=None)
    assert str(error.value).startswith("x.pth fits no network that is detected")
    assert "pass --arch" in str(error.value)
