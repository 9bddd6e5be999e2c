"""Backbones are loaded from files of several packages, to the bit, or refused with the reason."""

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from fastsimsiam import load_backbone
from fastsimsiam.cli import main
from fastsimsiam.config.run import Config
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.pretrained import load_pretrained
from fastsimsiam.train.pretrain import pretrain


def network(arch: str = "resnet18") -> nn.Module:
    """A network of torchvision with random weights and BatchNorm statistics."""
    torch.manual_seed(1)
    made: nn.Module = torchvision.models.get_model(arch, weights=None)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return made.eval()


def features_of(made: nn.Module, images: Tensor) -> Tensor:
    """The input of the last layer."""
    inputs: list[Tensor] = []
    hook = made.fc.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    with torch.no_grad():
        made(images)
    hook.remove()
    return inputs[0]


@pytest.fixture
def images() -> Tensor:
    """Three images (3, 3, 64, 64)."""
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(2))


def official(made: nn.Module, feature_dim: int) -> dict[str, object]:
    """The layout of the official checkpoints: projector in `fc`, predictor beside the encoder."""
    state = {f"module.encoder.{k}": v for k, v in made.state_dict().items() if k[:3] != "fc."}
    for number in (0, 3, 6):
        state[f"module.encoder.fc.{number}.weight"] = torch.randn(8, feature_dim)
    state["module.predictor.0.weight"] = torch.randn(4, 8)
    return {"epoch": 100, "arch": "resnet50", "state_dict": state, "optimizer": {"state": {}}}


@pytest.mark.parametrize("layout", ["official", "torchvision", "safetensors", "timm", "backbone"])
def test_features_are_those_of_the_network(layout: str, tmp_path: Path, images: Tensor) -> None:
    arch = "resnet50" if layout == "official" else "resnet18"
    made = network(arch)
    expected = features_of(made, images)
    file = tmp_path / "weights.pth"
    state = made.state_dict()
    if layout == "official":
        torch.save(official(made, 2048), file)
    elif layout == "safetensors":
        file = tmp_path / "weights.safetensors"
        save_file(state, file)
    elif layout == "timm":
        model = timm.create_model("resnet18", num_classes=7).eval()
        model.load_state_dict({k: v for k, v in state.items() if k[:3] != "fc."}, strict=False)
        torch.save(model.state_dict(), file)
    elif layout == "backbone":
        wrapped = {f"backbone.{k}": v for k, v in state.items() if k[:3] != "fc."}
        torch.save({"state_dict": wrapped}, file)
    else:
        torch.save(state, file)
    pretrained = load_pretrained(file)
    assert (pretrained.arch, pretrained.stem, pretrained.step) == (arch, "imagenet", None)
    with torch.no_grad():
        assert torch.equal(pretrained.backbone(images), expected)


def test_a_run_is_loaded(tiny_config: Config, images: Tensor) -> None:
    summary = pretrain(replace(tiny_config, max_steps=4))
    assert summary.checkpoint is not None
    pretrained = load_pretrained(tiny_config.out)
    assert (pretrained.step, pretrained.image_size, pretrained.arch) == (4, 32, "tiny_resnet")
    with pytest.raises(UserError, match="--arch is resnet18, but .* is tiny_resnet: drop --arch"):
        load_pretrained(tiny_config.out, arch="resnet18")
    backbone = load_backbone(str(summary.checkpoint))
    assert not backbone.training
    with torch.no_grad():
        assert torch.equal(backbone(images), pretrained.backbone(images))


def test_the_stem_is_detected(tmp_path: Path) -> None:
    made = network()
    made.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    torch.save(made.state_dict(), tmp_path / "cifar.pth")
    assert load_pretrained(tmp_path / "cifar.pth").stem == "cifar"
    with pytest.raises(UserError, match="--arch or --stem"):
        load_pretrained(tmp_path / "cifar.pth", stem="imagenet", arch="resnet18")
    assert load_pretrained(tmp_path / "cifar.pth", arch="resnet18").stem == "cifar"


def test_keys_that_do_not_fit_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "weights.pth"
    state = network().state_dict()
    torch.save({**state, "layer9.0.extra": torch.zeros(1)}, file)
    with pytest.raises(
        UserError, match=r"weights.pth has keys that resnet18 does not have: layer9.0.extra"
    ):
        load_pretrained(file, arch="resnet18")
    torch.save({k: v for k, v in state.items() if "layer4.1" not in k}, file)
    with pytest.raises(UserError, match=r"lacks keys of resnet18: layer4\.1\.bn1\.bias, .* more"):
        load_pretrained(file, arch="resnet18")
    with pytest.raises(
        UserError,
        match=r"fits no network .*the nearest is resnet18, but the file lacks keys .*: pass --arch",
    ):
        load_pretrained(file)
    # The unpickler reads letters as opcodes: each of these raises a different exception.
    for text in (b"no checkpoint at all", b"step 10/20 loss\n", b"Report\n", b"buffer\n"):
        file.write_bytes(text)
        assert main(["knn", str(file), "--data", "x"]) == 2, text
        error = capsys.readouterr().err
        assert "weights.pth is damaged or no checkpoint" in error
        assert error.count("\n") == 1
    torch.save([1, 2], file)
    with pytest.raises(UserError, match="holds no weights"):
        load_pretrained(file)
    (tmp_path / "x.safetensors").write_bytes(b"12345678abc")
    with pytest.raises(UserError, match=r"x\.safetensors is damaged"):
        load_pretrained(tmp_path / "x.safetensors")


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code of a checkpoint was run",)


def test_no_code_of_a_file_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": network().state_dict(), "evil": _Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match=r"evil\.pth holds objects of print, which are not loaded"):
        load_pretrained(tmp_path / "evil.pth")
    assert "was run" not in capsys.readouterr().out
