"""Weights as other packages save them: the right features, or one line with the true reason."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest
import tiny_backbone
import torch
import torchvision
from conftest import save_run
from safetensors.torch import save_file
from torch import Tensor, nn

from fastsimsiam.cli import main
from fastsimsiam.config.run import Config
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.foreign import find_backbone
from fastsimsiam.evaluate.pretrained import load_pretrained

ARCH = "tiny_resnet"


def tiny(seed: int = 0) -> nn.Module:
    """A tiny network whose BatchNorm statistics matter, so that a wrong load shows."""
    torch.manual_seed(seed)
    made = tiny_backbone.tiny_resnet()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return made.eval()


@pytest.fixture
def trunk() -> dict[str, Tensor]:
    """A network's state without the classifier."""
    return {key: value for key, value in tiny().state_dict().items() if key[:3] != "fc."}


def other(trunk: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The slow copy of a network: other weights under the same keys."""
    return {key: value + 1 if value.is_floating_point() else value for key, value in trunk.items()}


def under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def numbered(prefix: str, trunk: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The keys of `nn.Sequential(*resnet.children())`, as lightly has them."""
    names = [name for name, _ in tiny().named_children()]
    parts = [(key.split(".", 1), value) for key, value in trunk.items()]
    return {f"{prefix}{names.index(top)}.{rest}": value for (top, rest), value in parts}


def projector() -> dict[str, Tensor]:
    return {"fc.0.weight": torch.randn(8, 128), "fc.1.running_mean": torch.randn(8)}


LAYOUTS = {
    "data parallel": ("module.", lambda t: {"state_dict": under("module.", t), "epoch": 3}),
    "single gpu": ("encoder.", lambda t: {"state_dict": under("encoder.", {**t, **projector()})}),
    "moco": (
        "module.encoder_q.",
        lambda t: {
            "arch": "resnet50",
            "state_dict": {
                **under("module.encoder_k.", other(t)),
                **under("module.encoder_q.", {**t, **projector()}),
                "module.queue": torch.randn(4, 8),
            },
        },
    ),
    "lightly": (
        "backbone.",
        lambda t: {
            "state_dict": {
                **numbered("backbone.", t),
                "projection_head.layers.0.weight": torch.randn(8, 128),
            }
        },
    ),
    "lightly, momentum": (
        "backbone.",
        lambda t: {**numbered("backbone_momentum.", other(t)), **numbered("backbone.", t)},
    ),
    "lightly, backbone": ("", lambda t: numbered("", t)),
    "solo-learn": (
        "backbone.",
        lambda t: {
            "state_dict": {
                **under("momentum_backbone.", other(t)),
                **under("backbone.", t),
                "classifier.weight": torch.randn(10, 128),
            }
        },
    ),
    "dino": (
        "student.module.backbone.",
        lambda t: {
            "teacher": under("backbone.", other(t)),
            "student": under("module.backbone.", {**t, "head.mlp.0.weight": torch.randn(3, 3)}),
        },
    ),
    "byol": (
        "online_encoder.net.",
        lambda t: {**under("target_encoder.net.", other(t)), **under("online_encoder.net.", t)},
    ),
    "vissl": (
        "classy_state_dict.base_model.model.trunk.",
        lambda t: {"classy_state_dict": {"base_model": {"model": {"trunk": t}}}},
    ),
    "compiled": ("module.", lambda t: under("_orig_mod.module._orig_mod.", t)),
    "parts compiled": (
        "",
        lambda t: {k.replace("layer1.", "layer1._orig_mod."): v for k, v in t.items()},
    ),
    "a slow copy with a shorter name": (
        "main_branch.",
        lambda t: {**under("teacher.", other(t)), **under("main_branch.", t)},
    ),
    "moving average": ("state_dict.", lambda t: {"state_dict_ema": other(t), "state_dict": t}),
    "only a teacher": ("teacher.", lambda t: {"teacher": t}),
    "whole network in a sequence": ("0.", lambda t: {**under("0.", t), "1.weight": torch.ones(2)}),
    "a method's name": ("state_dict.", lambda t: {"method": "simsiam", "state_dict": t}),
    "a method's options": ("state_dict.", lambda t: {"method": {"name": "x"}, "state_dict": t}),
    "beside a head": ("", lambda t: {**t, "projector.0.weight": torch.randn(8, 128)}),
    "no counters": ("", lambda t: {k: v for k, v in t.items() if "num_batches" not in k}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_backbone_is_found_under_any_prefix(
    name: str, trunk: dict[str, Tensor], tmp_path: Path
) -> None:
    prefix, layout = LAYOUTS[name]
    torch.save(layout(trunk), tmp_path / "weights.pth")
    loaded = load_pretrained(tmp_path / "weights.pth", arch=ARCH)
    images = torch.randn(2, 3, 32, 32)
    made = tiny()
    made.fc = nn.Identity()
    with torch.no_grad():
        assert torch.equal(loaded.backbone(images), made(images))
    if prefix:
        assert f"{prefix}" in loaded.notes[0]
        assert "weights are those under" in loaded.notes[0]
    else:
        assert not loaded.notes


def test_a_note_names_the_networks_that_were_not_taken(
    trunk: dict[str, Tensor], tmp_path: Path
) -> None:
    _, layout = LAYOUTS["moco"]
    torch.save(layout(trunk), tmp_path / "weights.pth")
    assert load_pretrained(tmp_path / "weights.pth", arch=ARCH).notes == (
        "weights are those under state_dict.module.encoder_q., not those under "
        "state_dict.module.encoder_k.",
    )


def test_half_precision_is_read(trunk: dict[str, Tensor], tmp_path: Path) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        half = {k: v.to(dtype) if v.is_floating_point() else v for k, v in trunk.items()}
        torch.save(half, tmp_path / "weights.pth")
        state = load_pretrained(tmp_path / "weights.pth", arch=ARCH).backbone.state_dict()
        assert torch.equal(state["conv1.weight"], half["conv1.weight"].float())


@pytest.mark.parametrize(
    ("arch", "stem"),
    [
        ("resnet34", "imagenet"),
        ("resnet101", "imagenet"),
        ("wide_resnet50_2", "imagenet"),
        ("resnext50_32x4d", "cifar"),
        ("resnext101_64x4d", "imagenet"),
    ],
)
def test_every_resnet_is_detected(arch: str, stem: str) -> None:
    """A smaller network's keys are a part of a larger one's: resnet18's of resnet34's."""
    with torch.device("meta"):
        made = torchvision.models.get_model(arch)
        if stem == "cifar":
            made.conv1 = nn.Conv2d(3, 64, 3, bias=False)
    # Shapes without memory.
    content = {f"net.{k}": torch.zeros(()).expand(v.shape) for k, v in made.state_dict().items()}
    found = find_backbone(content, Path("x.pth"), arch=None, stem=None)
    assert (found.arch, found.stem) == (arch, stem)


def test_what_does_not_fit_names_the_prefix_and_the_nearest_network(
    trunk: dict[str, Tensor], tmp_path: Path
) -> None:
    file = tmp_path / "weights.pth"
    cut = {k: v for k, v in trunk.items() if not k.startswith("layer4.0.conv1")}
    torch.save({"state_dict": under("net.", cut)}, file)
    with pytest.raises(
        UserError, match=r"lacks keys under state_dict\.net\. of tiny_resnet: layer4"
    ):
        load_pretrained(file, arch=ARCH)
    content = {"net." + k: v for k, v in torchvision.models.resnet18().state_dict().items()}
    del content["net.layer4.0.conv1.weight"]
    with pytest.raises(UserError) as error:
        find_backbone(content, Path("x.pth"), arch=None, stem=None)
    assert "nearest is resnet18" in str(error.value)
    assert "under net. of resnet18: layer4.0.conv1.weight" in str(error.value)
    with pytest.raises(UserError, match=r"its keys are others: blocks\.0\.weight: pass --arch"):
        find_backbone({"blocks.0.weight": torch.ones(3)}, Path("x.pth"), arch=None, stem=None)
    with pytest.raises(UserError, match="the file names my_net, which"):
        find_backbone(
            {"a.weight": torch.ones(3)}, Path("x.pth"), arch=None, stem=None, recorded="my_net"
        )


def test_integers_are_no_weights(trunk: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({k: v.to(torch.int8) for k, v in trunk.items()}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="has other shapes|has other"):
        load_pretrained(tmp_path / "weights.pth", arch=ARCH)


def test_tensors_without_values_are_no_weights(trunk: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({k: v.to("meta") for k, v in trunk.items()}, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="holds no weights|damaged or no checkpoint"):
        load_pretrained(tmp_path / "weights.pth", arch=ARCH)


OTHER_FILES = {
    "empty": (b"", "is empty: download or copy it again"),
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid 0\n",
        "Git LFS pointer.*git lfs pull",
    ),
    "html": (b"\n <!DOCTYPE html><html>Quota exceeded</html>", r"is a web page \(HTML\)"),
    "text": (b"no weights\n", "is a text file"),
    "gzip": (b"\x1f\x8b\x08\x00abc", "compressed by gzip: unpack it first"),
    "hdf5": (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
    "jpeg": (b"\xff\xd8\xff\xe0", "is an image"),
    "cut zip": (b"PK\x03\x04" + bytes(500), "cut off or damaged"),
    "cut safetensors": (b"\x00\x10\x00\x00\x00\x00\x00\x00{", "longer than its 9 bytes"),
}


@pytest.mark.parametrize("name", OTHER_FILES)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".onnx"])
def test_other_files_are_called_what_they_are(name: str, suffix: str, tmp_path: Path) -> None:
    content, message = OTHER_FILES[name]
    file = tmp_path / f"weights{suffix}"
    file.write_bytes(content)
    if suffix == ".onnx" and name == "text":
        message = "is an ONNX graph"
    with pytest.raises(UserError, match=message):
        load_pretrained(file)


def test_a_safetensors_file_is_known_by_its_content(
    trunk: dict[str, Tensor], tmp_path: Path
) -> None:
    file = tmp_path / "weights.pth"
    save_file(trunk, file)
    assert load_pretrained(file, arch=ARCH).arch == ARCH
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=f"cut off: {len(whole) // 2} bytes are not all of it"):
        load_pretrained(file, arch=ARCH)


def test_the_advice_for_torchscript_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.jit.script(tiny()).save("script.pt")
    with pytest.raises(UserError, match=r"is TorchScript, .*: save its weights with ") as error:
        load_pretrained(Path("script.pt"))
    exec(str(error.value).partition("save its weights with ")[2])
    assert load_pretrained(Path("weights.pth"), arch=ARCH).arch == ARCH


def test_a_path_that_is_no_file_never_hangs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "folder.pth").mkdir()
    for path, message in (
        (tmp_path / "pipe.pth", "is a named pipe, no checkpoint"),
        (Path("/dev/zero"), "/dev/zero is a device, no checkpoint"),
        (tmp_path / "folder.pth", "there is no checkpoint in"),
        (tmp_path / "none.pth", "there is no checkpoint"),
        (tmp_path / "pipe.pth" / "x", "there is no checkpoint"),
    ):
        for argv in (
            ["knn", "--data", "x"],
            ["export", str(tmp_path / "x.onnx"), "--format", "onnx"],
        ):
            assert main([argv[0], str(path), *argv[1:]]) == 2
            error = capsys.readouterr().err
            assert message in error
            assert error.count("\n") == 1


def test_a_damaged_newest_checkpoint_is_passed_over(tiny_config: Config) -> None:
    before, newest = save_run(tiny_config)
    newest.write_bytes(newest.read_bytes()[:1000])
    for folder in (tiny_config.out, tiny_config.out / "checkpoints"):
        loaded = load_pretrained(folder)
        assert loaded.path == before
        assert newest.name in loaded.notes[0]
    before.write_bytes(b"")
    with pytest.raises(UserError, match=r"all checkpoints in .* are damaged"):
        load_pretrained(tiny_config.out)


def test_a_forged_checkpoint_is_one_line(tiny_config: Config, tmp_path: Path) -> None:
    newest = save_run(tiny_config)[-1]
    stored = torch.load(newest, weights_only=True)
    file = tmp_path / "forged.pt"
    name = "backbone.conv1.weight"
    for change in (
        {"method": {k: v for k, v in stored["method"].items() if k != name}},
        {"method": {**stored["method"], name: torch.ones(3)}},
        {"method": {**stored["method"], name: "text"}},
        {"config": {**stored["config"], "arch": "no_net"}},
    ):
        torch.save({**stored, **change}, file)
        with pytest.raises(UserError, match=r"forged\.pt"):
            load_pretrained(file)


def test_metadata_that_cannot_be_right_is_refused(trunk: dict[str, Tensor], tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    good = {"fastsimsiam": "1", "arch": ARCH, "stem": "imagenet", "image_size": "32"}
    for change, message in (
        ({"image_size": "0"}, "damaged image_size"),
        ({"image_size": "[3"}, "damaged image_size"),
        ({"crop_fraction": "NaN"}, "damaged crop_fraction"),
        ({"crop_fraction": "7"}, "crop_fraction"),
        ({"stem": "big"}, "unknown stem"),
        ({"mean": "[0.5, 0.5]", "std": "[1, 1, 1]"}, "has a damaged mean or std: export it again"),
        ({"mean": "[0, 0, 0]"}, "has a damaged mean or std: export it again"),
        ({"mean": "[0, 0, 0]", "std": "[1, 1, 0]"}, "has a damaged mean or std: export it again"),
        ({"mean": "[0, 0, 0]", "std": '["a", 1, 1]'}, "has a damaged mean or std: export it again"),
    ):
        save_file(trunk, file, metadata=good | change)
        with pytest.raises(UserError, match=message):
            load_pretrained(file)
    save_file(trunk, file, metadata=good | {"config": '{"recipe": 3, "unknown": 1}'})
    loaded = load_pretrained(file)
    assert (loaded.image_size, loaded.config) == (32, None)
