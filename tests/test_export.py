"""Exported weights give the same features in torchvision, timm and onnxruntime."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch
import torchvision
from conftest import save_run
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fastsimsiam.cli import main
from fastsimsiam.config.evaluation import EvalOptions, LinearConfig
from fastsimsiam.config.run import Config, KnnConfig
from fastsimsiam.config.views import IMAGENET_PIXELS, NormalizeConfig
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.context import open_eval_context
from fastsimsiam.evaluate.inspect import inspect
from fastsimsiam.evaluate.knn import knn
from fastsimsiam.evaluate.linear_probe import linear
from fastsimsiam.evaluate.pretrained import load_pretrained
from fastsimsiam.tools.export import export
from fastsimsiam.train.pretrain import pretrain


@pytest.fixture
def run(tiny_config: Config) -> Path:
    """A short run of a ResNet-18."""
    pretrain(replace(tiny_config, arch="resnet18", max_steps=2, batch_size=8))
    return tiny_config.out


@pytest.fixture
def images() -> Tensor:
    """Three images (3, 3, 32, 32)."""
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def expected(run: Path, images: Tensor) -> Tensor:
    """Features of the checkpoint itself."""
    with torch.no_grad():
        features: Tensor = load_pretrained(run).backbone(images)
    return features


def run_card(card: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Runs the code of a card in the folder of its file."""
    monkeypatch.chdir(folder)
    (block,) = re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)
    namespace: dict[str, Any] = {}
    exec(block, namespace)
    return namespace


def card_mode(file: Path) -> int:
    """Permissions of the card of a file, which are those of any new file."""
    return file.with_name(file.name + ".md").stat().st_mode


def test_torchvision_loads_the_weights(
    run: Path, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "weights.safetensors"
    assert main(["export", str(run), str(file)]) == 0
    model = torchvision.models.resnet18()
    missing, unexpected = model.load_state_dict(load_file(file), strict=False)
    assert (missing, unexpected) == (["fc.weight", "fc.bias"], [])
    model.fc = nn.Identity()
    with torch.no_grad():
        assert torch.equal(model.eval()(images), expected(run, images))
    card = file.with_name("weights.safetensors.md").read_text()
    for word in (
        "# resnet18, 512 features",
        "recipe `imagenette`, 2 steps of 8",
        '"batch_size": 8',
    ):
        assert word in card
    model = run_card(file.with_name(file.name + ".md"), tmp_path, monkeypatch)["model"]
    with torch.no_grad():
        assert torch.equal(model(images), expected(run, images))
    assert file.stat().st_mode & 0o444 == card_mode(file) & 0o444
    # The exported file is a format that this package reads.
    assert load_pretrained(file).arch == "resnet18"


def test_a_network_with_the_cifar_stem_can_be_loaded_again(
    tiny_config: Config, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrain(replace(tiny_config, arch="resnet18", stem="cifar", max_steps=2, batch_size=8))
    file, card = export(tiny_config.out, tmp_path / "small.safetensors")
    again = load_pretrained(file)
    assert (again.arch, again.stem) == ("resnet18", "cifar")
    with torch.no_grad():
        assert torch.equal(again.backbone(images), expected(tiny_config.out, images))
        model = run_card(card, tmp_path, monkeypatch)["model"]
        assert torch.equal(model(images), expected(tiny_config.out, images))
    assert "no max-pooling" in card.read_text()


def test_timm_loads_the_weights(
    run: Path, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, card = export(run, tmp_path / "weights.safetensors", format="timm")
    model = timm.create_model("resnet18", checkpoint_path=str(file))
    model.reset_classifier(0)
    with torch.no_grad():
        features = model.eval()(images)
        again = run_card(card, tmp_path, monkeypatch)["model"](images)
    for result in (features, again):
        torch.testing.assert_close(result, expected(run, images), atol=1e-5, rtol=1e-5)


def test_onnxruntime_runs_the_graph(run: Path, images: Tensor, tmp_path: Path) -> None:
    file, card = export(run, tmp_path / "net.onnx", format="onnx")
    session = onnxruntime.InferenceSession(file)
    for batch in (images, images[:1]):
        (features,) = session.run(None, {"images": batch.numpy()})
        np.testing.assert_allclose(features, expected(run, batch).numpy(), atol=1e-4)
    assert 'InferenceSession("net.onnx")' in card.read_text()
    assert sorted(path.name for path in tmp_path.glob("net*")) == ["net.onnx", "net.onnx.md"]


def test_the_card_holds_scores_data_and_commit(run: Path, tmp_path: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    summary |= {"commit": "abc1234", "last": {"knn_top1_k5": 12.345}}
    (run / "summary.json").write_text(json.dumps(summary))
    _, card = export(run, tmp_path / "x.safetensors")
    for line in ("- commit: abc1234", "- knn_top1_k5: 12.35 %", f"- data: {summary['data']}"):
        assert f"{line}\n" in card.read_text()


def test_a_damaged_summary_leaves_no_partial_export(run: Path, tmp_path: Path) -> None:
    (run / "summary.json").write_text('{"config": {')
    with pytest.raises(UserError, match=r"summary\.json is damaged"):
        export(run, tmp_path / "x.safetensors")
    assert not list(tmp_path.glob("x.*"))


def test_what_cannot_be_exported_is_one_line(
    tiny_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(replace(tiny_config, max_steps=2))
    run = str(tiny_config.out)
    for argv, message in (
        ([run, str(tmp_path / "x.pth")], "name it NAME.safetensors"),
        ([run, str(tmp_path / "x.safetensors"), "--format", "onnx"], "name it NAME.onnx"),
        ([run, "/no/such/x.safetensors"], "there is no folder /no/such"),
        ([run, str(tmp_path / "x.safetensors"), "--format", "timm"], "only ResNets"),
        ([run, str(tmp_path / "x.safetensors"), "--image-size", "0"], "--image-size is 0"),
        (["/no/run", str(tmp_path / "x.safetensors")], "there is no checkpoint /no/run"),
    ):
        assert main(["export", *argv]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not list(tmp_path.glob("x.*"))


ON_CPU = EvalOptions(device="cpu", precision="fp32", workers=1, loader="cpu")


@pytest.mark.parametrize(
    ("format", "arch", "stem"),
    [
        ("torchvision", "tiny_resnet", "imagenet"),
        ("torchvision", "tiny_resnet", "cifar"),
        ("timm", "resnet18", "imagenet"),
    ],
)
def test_a_score_survives_export(
    format: str, arch: str, stem: str, tiny_config: Config, tmp_path: Path
) -> None:
    """Image size, crop, seed, normalization and views differ from the defaults, and so do scores."""
    config = replace(
        tiny_config,
        arch=arch,
        stem=stem,
        image_size=24,
        seed=3,
        knn=KnnConfig(crop_fraction=0.6),
        normalize=NormalizeConfig(mean=(0.1, 0.2, 0.3), std=(1.0, 0.5, 2.0)),
        views=tuple(replace(view, area=(0.5, 0.9)) for view in tiny_config.views),
    )
    save_run(config)
    file, card = export(config.out, tmp_path / "x.safetensors", format=format)
    assert (
        "the centered square of 0.6 of the image's shorter side, resized to 24" in card.read_text()
    )
    sources, data = (config.out, file), config.data
    assert "minus the mean (0.1, 0.2, 0.3), over the standard deviation (1, 0.5, 2)" in (
        card.read_text()
    )
    run, exported = (knn(source, data, k=(1, 7, 20), options=ON_CPU) for source in sources)
    assert run.trained == exported.trained
    assert run.untrained == exported.untrained
    assert run.step == exported.step == 2
    if format == "timm":
        return
    other = replace(ON_CPU, crop_fraction=0.9, image_size=16)
    run_otherwise, otherwise = (
        knn(source, data, k=(1, 7, 20), options=other) for source in sources
    )
    assert run_otherwise.trained == otherwise.trained != run.trained
    inspected = [inspect(source, data, options=ON_CPU).h for source in sources]
    assert inspected[0] == inspected[1]
    probe = LinearConfig(epochs=1, batch_size=32)
    probed = [linear(source, data, config=probe, cached=True, options=ON_CPU) for source in sources]
    assert (probed[0].losses, probed[0].top1) == (probed[1].losses, probed[1].top1)
    # And a second time.
    again, _ = export(file, tmp_path / "again.safetensors")
    with safe_open(file, "pt") as one, safe_open(again, "pt") as other_file:
        assert one.metadata() == other_file.metadata()


def test_values_given_to_export_are_those_of_the_file(tiny_config: Config, tmp_path: Path) -> None:
    save_run(tiny_config)
    argv = ["--image-size", "48", "--crop-fraction", "0.75"]
    assert main(["export", str(tiny_config.out), str(tmp_path / "x.safetensors"), *argv]) == 0
    loaded = load_pretrained(tmp_path / "x.safetensors")
    assert (loaded.image_size, loaded.crop_fraction) == (48, 0.75)
    assert load_pretrained(tmp_path / "x.safetensors", crop_fraction=0.5).crop_fraction == 0.5
    assert (
        main(["export", str(tiny_config.out), str(tmp_path / "y.safetensors"), *argv[2:-1], "0"])
        == 2
    )


def test_weights_of_others_are_scored_with_the_normalization_that_is_given(
    tiny_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Features of a run on pixels from 0 to 1, and of its weights in a file that records nothing."""
    plain = NormalizeConfig(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    save_run(replace(tiny_config, normalize=plain))
    own = load_pretrained(tiny_config.out)
    file = tmp_path / "foreign.pth"
    torch.save(own.backbone.state_dict(), file)
    same = replace(
        ON_CPU, arch="tiny_resnet", image_size=own.image_size, crop_fraction=own.crop_fraction
    )
    given = replace(same, mean=plain.mean, std=plain.std)
    features = {}
    for name, path, options in (
        ("run", tiny_config.out, ON_CPU),
        ("given", file, given),
        ("assumed", file, same),
    ):
        with open_eval_context(path, tiny_config.data, options) as context:
            features[name] = torch.cat([f for f, _ in context.features("val")])
        noted = f"note: {file} records no normalization of the images: ImageNet's is taken"
        assert (noted in capsys.readouterr().err) == (name == "assumed"), name
    assert torch.equal(features["given"], features["run"])
    assert not torch.allclose(features["assumed"], features["run"], atol=1e-3)
    # Exported, they need not be given again.
    out = tmp_path / "x.safetensors"
    argv = ["export", str(file), str(out), "--arch", "tiny_resnet"]
    assert main([*argv, *"--mean 0 0 0 --std 1 1 1".split()]) == 0
    assert (load_pretrained(out).normalize, load_pretrained(out).assumed) == (plain, False)
    assert "records no normalization" not in capsys.readouterr().err
    assert main([*argv, *"--mean 0 0 0".split()]) == 2
    assert "--mean is given without --std: give both" in capsys.readouterr().err
    assert main([*argv, *"--mean 0 0 0 --std 1 1 0".split()]) == 2
    assert "--std is 0" in capsys.readouterr().err


def test_onnx_holds_what_changes_a_score(tiny_config: Config, tmp_path: Path) -> None:
    config = replace(
        tiny_config,
        image_size=40,
        knn=KnnConfig(crop_fraction=0.7),
        normalize=NormalizeConfig(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
    )
    save_run(config)
    file, card = export(config.out, tmp_path / "x.onnx", format="onnx")
    assert "values from 0 to 1, not normalized. Output" in card.read_text()
    held = onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map
    assert {key: held[key] for key in ("arch", "stem", "image_size", "crop_fraction", "step")} == {
        "arch": "tiny_resnet",
        "stem": "imagenet",
        "image_size": "40",
        "crop_fraction": "0.7",
        "step": "2",
    }
    assert (json.loads(held["mean"]), json.loads(held["std"])) == ([0, 0, 0], [1, 1, 1])
    assert json.loads(held["config"])["recipe"] == config.recipe
    with pytest.raises(UserError, match="is an ONNX graph, which is not evaluated"):
        load_pretrained(file)


def test_a_file_of_an_earlier_version_has_the_default_values(
    tiny_config: Config, tmp_path: Path
) -> None:
    save_run(tiny_config)
    state = load_pretrained(tiny_config.out).backbone.state_dict()
    metadata = {"format": "pt", "arch": "tiny_resnet", "stem": "imagenet", "fastsimsiam": "0.2.0"}
    constants = {"mean": "[0.485, 0.456, 0.406]", "std": "[0.229, 0.224, 0.225]"}  # from 0.2 on
    for more in ({}, constants):
        save_file(state, tmp_path / "old.safetensors", metadata=metadata | more)
        loaded = load_pretrained(tmp_path / "old.safetensors")
        assert (loaded.arch, loaded.image_size, loaded.crop_fraction) == ("tiny_resnet", 224, 0.875)
        assert loaded.normalize == IMAGENET_PIXELS


def test_a_file_of_another_package_is_normalized_as_it_records(tmp_path: Path) -> None:
    state = torchvision.models.resnet18().state_dict()
    for metadata, expected in (
        ({}, IMAGENET_PIXELS),
        (
            {"mean": "[0.5, 0.5, 0.5]", "std": "[0.5, 0.5, 0.5]"},
            NormalizeConfig(mean=(0.5,) * 3, std=(0.5,) * 3),
        ),
        ({"mean": "of the training set", "std": "[0.5, 0.5, 0.5]"}, IMAGENET_PIXELS),
    ):
        save_file(state, tmp_path / "other.safetensors", metadata={"format": "pt"} | metadata)
        assert load_pretrained(tmp_path / "other.safetensors").normalize == expected


def test_a_card_takes_no_scores_of_a_run_that_happens_to_lie_above(
    tiny_config: Config, tmp_path: Path
) -> None:
    save_run(tiny_config)
    folder = tiny_config.out / "exported"
    folder.mkdir()
    (tiny_config.out / "summary.json").write_text('{"steps": 2, "last": {"knn_top1_k5": 99.0}}')
    file, card = export(tiny_config.out, folder / "x.safetensors")
    assert "knn_top1_k5: 99.00 %" in card.read_text()
    _, card = export(file, folder / "y.safetensors")
    assert "knn_top1_k5" not in card.read_text()
    for text in ("[1, 2]", '{"steps": 2, "last": 3}', '{"steps": 2, "last": {"knn_a": null}}'):
        (tiny_config.out / "summary.json").write_text(text)
        if text.startswith("["):
            with pytest.raises(UserError, match=r"summary\.json .*was not written by pretrain"):
                export(tiny_config.out, tmp_path / "z.safetensors")
        else:
            export(tiny_config.out, tmp_path / "z.safetensors")
