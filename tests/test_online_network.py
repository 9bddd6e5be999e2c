"""Everything that takes a checkpoint takes the network that was trained, never its target."""

import copy
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from conftest import CPU, save_run
from safetensors.torch import load_file
from test_report import read
from throwaway_method import throwaway
from torch import Tensor, nn

from fastsimsiam.cli import main
from fastsimsiam.config.methods import MethodConfig
from fastsimsiam.config.run import Config
from fastsimsiam.evaluate.pretrained import load_backbone
from fastsimsiam.methods.base import Method, ParameterGroup
from fastsimsiam.methods.registry import build_method, register_method
from fastsimsiam.runs.checkpoint import load
from fastsimsiam.train.pretrain import pretrain


@dataclass(frozen=True, kw_only=True)
class HeadlessConfig(MethodConfig):
    """Options of a method without a projector."""

    name: ClassVar[str] = "headless"


class Headless(Method):
    """Regresses the features of a target network."""

    def __init__(self, backbone: nn.Module, feature_dim: int, config: HeadlessConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.target_backbone = copy.deepcopy(backbone).requires_grad_(False)

    def forward(
        self, views: tuple[Tensor, ...], labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        h, target = self.backbone(views[0]).float(), self.target_backbone(views[1]).float()
        return (h - target).square().mean(), {}

    def parameter_groups(self) -> list[ParameterGroup]:
        return [ParameterGroup(parameters=list(self.backbone.parameters()))]


register_method(HeadlessConfig, Headless)


@pytest.fixture(params=["throwaway", "headless"])
def run(request: pytest.FixtureRequest, class_folders: Path, tmp_path: Path) -> Config:
    """A run whose target network is of no use: whatever takes it is refused, or is not a number."""
    config = replace(throwaway(), data=class_folders, out=tmp_path / "run")
    if request.param == "headless":
        config = replace(config, method=HeadlessConfig())
    (path,) = save_run(config, steps=(24,))
    stored = torch.load(path, weights_only=True)
    targets = [key for key in stored["method"] if key.startswith("target_")]
    assert targets
    for key in targets:
        if stored["method"][key].is_floating_point():
            stored["method"][key].fill_(float("nan"))
    torch.save(stored, path)
    (config.out / "metrics.jsonl").write_text('{"step": 24, "epoch": 4, "loss": 3.7}\n')
    return config


@pytest.mark.parametrize(
    ("needs_labels", "words"),
    [(False, "Pretrained without labels by"), (True, "Pretrained with labels by")],
)
def test_a_card_names_the_method_and_whether_it_saw_labels(
    needs_labels: bool,
    words: str,
    tiny_config: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = replace(tiny_config, method=HeadlessConfig())
    monkeypatch.setattr(Headless, "needs_labels", needs_labels)
    save_run(config)
    assert main(["export", str(config.out), str(tmp_path / "weights.safetensors")]) == 0
    card = (tmp_path / "weights.safetensors.md").read_text()
    assert f"{words} the method `headless`: recipe `imagenette`, 2 steps of 16 images" in card


def online_features(config: Config, images: Tensor) -> Tensor:
    method = build_method(config)
    (path,) = (config.out / "checkpoints").glob("*.pt")
    method.load_state_dict(load(path).method)
    with torch.no_grad():
        features: Tensor = method.backbone.eval()(images)
    return features


def test_the_weights_are_those_of_the_online_network(run: Config, tmp_path: Path) -> None:
    images = torch.randn(2, 3, 32, 32)
    expected = online_features(run, images)
    assert expected.isfinite().all()
    backbone = load_backbone(run.out)
    with torch.no_grad():
        assert torch.equal(backbone(images), expected)
    assert main(["export", str(run.out), str(tmp_path / "weights.safetensors")]) == 0
    exported = load_file(tmp_path / "weights.safetensors")
    assert exported.keys() == backbone.state_dict().keys()
    for key, value in backbone.state_dict().items():
        assert torch.equal(exported[key], value)


@pytest.mark.parametrize(
    "argv",
    [
        ["knn", "--k", "5"],
        ["linear", "--cached", "--epochs", "1", "--batch-size", "32"],
        ["inspect"],
        ["embed"],
        ["report"],
    ],
    ids=lambda argv: argv[0],
)
def test_every_command_takes_the_online_network(
    run: Config, argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command, *options = argv
    file = tmp_path / ("features.npz" if command == "embed" else "result")
    out = "--json" if command in ("knn", "linear", "inspect") else "--out"
    words = ["--data", str(run.data), "--device", "cpu", "--precision", "fp32", out, str(file)]
    words = [word for word in words if command != "report" or word not in ("--precision", "fp32")]
    assert main([command, str(run.out), *options, *words]) == 0
    printed = capsys.readouterr()
    with_projector = run.method.name == "throwaway"
    if command == "inspect":
        result = json.loads(file.read_text())
        assert ("z" in result) == with_projector
        notes = [] if with_projector else ["no z: headless has no projector"]
        assert result["notes"] == notes
        assert ("note: no z" in printed.err) == (not with_projector)
        assert ("z projection" in printed.out) == with_projector
    elif command == "embed":
        assert np.isfinite(np.load(file)["features"]).all()
    elif command == "report":
        page = read(file)
        assert "No diagnosis: the method logs no collapse metric." in page.text
        assert {"map", "confusion"} <= page.charts.keys()
    else:
        assert "nan" not in file.read_text().lower()


def test_the_untrained_network_is_the_one_that_the_run_began_with(
    class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where residual blocks begin at a scale of 1: the same score before and after the run."""
    config = replace(throwaway(), data=class_folders, out=tmp_path / "run", max_steps=1)
    config = replace(
        config, zero_init_residual=False, knn=replace(config.knn, every_epochs=1, k=(3, 7))
    )
    summary = pretrain(config)
    file = tmp_path / "knn.json"
    argv = ["--data", str(config.data), "--k", "3", "7", "--device", "cpu", "--precision", "fp32"]
    assert main(["knn", str(config.out), *argv, "--json", str(file)]) == 0
    untrained = json.loads(file.read_text())["untrained"]
    for k in (3, 7):
        assert untrained[str(k)] == pytest.approx(summary.first[f"knn_top1_k{k}"])
    torch.manual_seed(config.seed)
    built = build_method(config).backbone.to(CPU)
    assert all(module.weight.any() for module in built.modules() if hasattr(module, "weight"))
