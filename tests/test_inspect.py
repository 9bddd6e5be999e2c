"""Collapse metrics: known values, brute force, and a run."""

import json
import math
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from conftest import save_run

from fastsimsiam.cli import main
from fastsimsiam.config.evaluation import EvalOptions
from fastsimsiam.config.methods import BYOLConfig, MethodConfig, MoCoConfig, SimCLRConfig
from fastsimsiam.config.run import Config
from fastsimsiam.config.views import ViewSpec
from fastsimsiam.evaluate import inspect as inspect_module
from fastsimsiam.evaluate import trained_method
from fastsimsiam.evaluate.collapse import (
    CollapseMetrics,
    alignment,
    collapse_metrics,
    effective_rank,
    uniformity,
)
from fastsimsiam.evaluate.inspect import describe_std, format_report, inspect
from fastsimsiam.methods.base import Method
from fastsimsiam.methods.registry import build_method
from fastsimsiam.plan.batches import TrainPlan
from fastsimsiam.train.pretrain import pretrain


def test_spread_features_are_healthy() -> None:
    metrics = collapse_metrics(torch.randn(4000, 32, generator=torch.Generator().manual_seed(0)))
    assert metrics.std == pytest.approx(1, abs=0.01)
    assert metrics.mean_cosine == pytest.approx(0, abs=1e-3)
    assert 31 < metrics.effective_rank <= 32
    # On a sphere of 32 dimensions: -4 + half the variance of 4 cos, and higher orders.
    assert metrics.uniformity == pytest.approx(-4 + 8 / 32, abs=0.02)
    assert metrics.variance_median == pytest.approx(1, abs=0.05)
    assert metrics.dead == 0


def test_equal_features_are_collapsed() -> None:
    metrics = collapse_metrics(torch.ones(50, 8))
    assert metrics.std == pytest.approx(0, abs=1e-4)
    assert metrics.mean_cosine == pytest.approx(1, abs=1e-5)
    assert metrics.effective_rank == pytest.approx(1)
    assert metrics.uniformity == pytest.approx(0, abs=1e-4)
    assert metrics.dead == 1


def test_a_plane_has_rank_two() -> None:
    generator = torch.Generator().manual_seed(0)
    plane = torch.randn(500, 2, generator=generator) @ torch.linalg.qr(torch.randn(16, 16))[0][:2]
    assert effective_rank(plane) == pytest.approx(2, abs=0.01)
    # Fewer images than dimensions: the other Gram matrix.
    assert 1.5 < effective_rank(plane[:10]) <= 2


def test_metrics_equal_brute_force() -> None:
    features = torch.randn(1500, 6, generator=torch.Generator().manual_seed(1)) + 0.5
    unit = F.normalize(features, dim=1).double().numpy()
    pairs = [(i, j) for i in range(0, 1500, 7) for j in range(1500) if i != j]
    metrics = collapse_metrics(features)
    i, j = np.array(pairs).T
    cosine = (unit[i] * unit[j]).sum(axis=1)
    assert metrics.mean_cosine == pytest.approx(cosine.mean(), abs=0.01)
    squares = ((unit[i] - unit[j]) ** 2).sum(axis=1)
    assert uniformity(F.normalize(features, dim=1)) == pytest.approx(
        math.log(np.exp(-2 * squares).mean()), abs=0.01
    )
    one, other = torch.tensor([[2.0, 0], [0, 1]]), torch.tensor([[1.0, 0], [1, 0]])
    assert alignment(one, other) == pytest.approx((0 + 2) / 2)


@pytest.mark.parametrize(("std", "word"), [(0.02, "collapsed"), (0.3, "half"), (0.97, "healthy")])
def test_the_diagnosis(std: float, word: str) -> None:
    assert describe_std(std).startswith(word)


def test_inspect_a_run(
    tiny_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(replace(tiny_config, max_steps=2))
    capsys.readouterr()
    file = tmp_path / "inspect.json"
    argv = ["--data", str(tiny_config.data), "--device", "cpu", "--json", str(file)]
    assert main(["inspect", str(tiny_config.out), *argv]) == 0
    table = capsys.readouterr().out
    assert "z projection" in table
    assert "effective rank" in table
    result = json.loads(file.read_text())
    assert list(result) == [
        "h",
        "z",
        "diagnosis",
        "checkpoint",
        "step",
        "data",
        "bad_images",
        "notes",
    ]
    assert list(result["h"]) == [field.name for field in fields(CollapseMetrics)]
    assert result["h"]["images"] == result["z"]["images"] == 24
    assert result["z"]["dim"] == 64
    assert result["diagnosis"] == describe_std(result["z"]["std"])
    assert 0 < result["h"]["alignment"] < 2
    assert main(["inspect", str(tiny_config.out), *argv, "--images", "1"]) == 2


@pytest.mark.parametrize(
    ("sizes", "inspected"),
    [
        ((16, 32, 16, 32), (1, 3)),  # 2 x 32 + 2 x 16 pixels, small views first
        ((16, None, 16, None), (1, 3)),  # None: the image size of the training, 32
        ((32, 16, 16), (0, 1)),  # one large view: the first two of all
        ((32, 32), (0, 1)),
    ],
)
def test_the_first_two_large_views_are_inspected(
    sizes: tuple[int | None, ...],
    inspected: tuple[int, int],
    tiny_config: Config,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    views = tuple(ViewSpec(size=size, hue=number / 100) for number, size in enumerate(sizes))
    pretrain(replace(tiny_config, max_steps=2, views=views))
    plans: list[TrainPlan] = []

    def recorded(**fields: object) -> TrainPlan:
        plans.append(TrainPlan(**fields))
        return plans[-1]

    monkeypatch.setattr(inspect_module, "TrainPlan", recorded)
    # Smaller than the small views: the training's image size decides.
    options = EvalOptions(device="cpu", precision="fp32", image_size=8)
    result = inspect(tiny_config.out, tiny_config.data, options=options)
    assert plans[0].specs == tuple(views[view] for view in inspected)
    assert result.h.alignment is not None


@pytest.mark.parametrize(
    ("method", "spread", "word"),
    [
        (MoCoConfig(queue_size=8, projector_layers=1, bn_group_size=0), 1.0, "h"),
        (MoCoConfig(queue_size=8, projector_layers=1, bn_group_size=0), 0.05, "h"),
        (MoCoConfig(queue_size=8, projector_layers=1, bn_group_size=0), 0.0, "collapsed"),
        (BYOLConfig(hidden_dim=32), 0.3, "h"),
        (BYOLConfig(hidden_dim=32), 0.05, "collapsed"),  # its loss keeps nothing apart
        (SimCLRConfig(), 0.0, "collapsed"),
    ],
)
def test_h_is_judged_where_no_norm_keeps_z_apart(
    method: MethodConfig,
    spread: float,
    word: str,
    tiny_config: Config,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Projections around an offset: close together and told apart, or equal."""

    def built(config: Config) -> Method:
        made = build_method(config)

        def offset(module: torch.nn.Module, args: object, out: torch.Tensor) -> torch.Tensor:
            centered = F.normalize(out - out.mean(dim=0), dim=1)
            return centered * spread + out.shape[1] ** -0.5

        assert isinstance(made.projector, torch.nn.Sequential)
        made.projector.register_forward_hook(offset)
        return made

    alike = ViewSpec(
        area=(0.9, 1.0), ratio=(1.0, 1.0), flip=0.0, jitter=0.0, grayscale=0.0, blur=0.0
    )
    config = replace(tiny_config, method=method, views=(alike, alike))
    save_run(config)
    monkeypatch.setattr(trained_method, "build_method", built)
    options = EvalOptions(device="cpu", precision="fp32")
    result = inspect(config.out, config.data, options=options)
    assert result.z is not None
    assert (result.z.std < 0.1) == (spread < 0.1)
    if word == "h":
        assert result.diagnosis.startswith(describe_std(result.h.std))
        assert "judged by h" in result.diagnosis
    else:
        assert result.diagnosis.startswith(word)


def test_weights_without_a_projector_have_no_z(
    tiny_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "weights.pth")
    options = EvalOptions(device="cpu", precision="fp32", image_size=32)
    result = inspect(tmp_path / "weights.pth", tiny_config.data, images=8, options=options)
    assert result.z is None
    assert result.diagnosis == describe_std(result.h.std)
    assert list(result.as_dict()) == [
        "h",
        "diagnosis",
        "checkpoint",
        "step",
        "data",
        "bad_images",
        "notes",
    ]
    table = format_report(result)
    assert "h backbone" in table
    assert "z projection" not in table
    assert "8 images, dimensions: h 512. " in table


def test_one_image_is_too_few(
    tiny_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(replace(tiny_config, max_steps=2))
    for split in ("train", "val"):
        (tmp_path / split / "ant").mkdir(parents=True)
        source = tiny_config.data / "train" / "ant" / "02.JPEG"
        (tmp_path / split / "ant" / "a.JPEG").write_bytes(source.read_bytes())
    capsys.readouterr()
    assert main(["inspect", str(tiny_config.out), "--data", str(tmp_path)]) == 2
    assert "has 1 image to inspect" in capsys.readouterr().err
