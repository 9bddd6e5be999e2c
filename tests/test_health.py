"""What the log says of metrics: a collapse, images that show nothing, numbers that are none."""

import json
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
import tiny_backbone  # noqa: F401
import torch
from PIL import Image

from fastsimsiam.commands.pretrain import _arguments
from fastsimsiam.config.run import Config
from fastsimsiam.loaders.base import Batch
from fastsimsiam.methods.base import Method, Progress
from fastsimsiam.methods.byol import BYOL, BYOLNoMomentum
from fastsimsiam.methods.moco import MoCo
from fastsimsiam.methods.moco_v3 import MoCoV3
from fastsimsiam.methods.registry import build_method, find_method
from fastsimsiam.methods.simclr import SimCLR
from fastsimsiam.methods.simsiam import SimSiam
from fastsimsiam.methods.supcon import SupCon
from fastsimsiam.recipes import catalogue
from fastsimsiam.train.health import Health
from fastsimsiam.train.pretrain import pretrain

RECIPES = [
    "byol-imagenette",
    "byol-no-momentum-imagenette",
    "imagenette",
    "moco-v2-imagenette",
    "moco-v3-imagenette",
    "simclr-imagenette",
    "supcon-imagenette",
]


def told(health: Health, *steps: tuple[int, float, float], last: int = 10**9) -> list[str]:
    """Warnings of lines (step, collapse_std, loss)."""
    return [
        warning
        for step, std, loss in steps
        for warning in health.warnings(
            step, {"loss": loss, "collapse_std": std}, (), last=step == last
        )
    ]


def test_black_images_are_told_whatever_the_loss(tiny_config: Config, tmp_path: Path) -> None:
    for split, number in (("train", 32), ("val", 4)):
        for name in ("a", "b"):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for image in range(number // 2):
                Image.new("RGB", (40, 40)).save(folder / f"{image}.png")
    config = replace(tiny_config, data=tmp_path / "data")
    pretrain(config)
    metrics = json.loads((config.out / "metrics.jsonl").read_text().splitlines()[0])
    assert metrics["collapse_std"] == 0.0
    assert abs(metrics["loss"]) < 0.1
    log = (config.out / "log.txt").read_text()
    assert log.count("WARNING: step 2: all images get the same output") == 1
    assert "32 of the 32 views of this batch are of a single color" in log


def test_equal_outputs_are_told_after_some_steps_or_at_the_end() -> None:
    def new() -> Health:
        return Health(SimSiam, 256)

    assert not told(new(), (10, 0.05, -0.3), (100, 0.05, -0.3))
    assert len(told(new(), (10, 0.05, -0.3), (110, 0.05, -0.3), (120, 0.05, -0.3))) == 1
    assert len(told(new(), (10, 0.05, -0.3), (20, 0.05, -0.3), last=20)) == 1
    # Networks without BatchNorm at the output begin so, and recover.
    assert not told(new(), (10, 0.05, 0.0), (60, 0.3, -0.2), (110, 0.05, -0.3), (160, 0.5, -0.3))
    # Near the smallest loss a spread that a BatchNorm keeps up is a collapse, at once.
    assert "--method.stop-gradient on" in told(new(), (10, 0.18, -0.95))[0]


CONTRASTIVE = [MoCo, MoCoV3, SimCLR, SupCon]
EVERY = [*CONTRASTIVE, BYOL, BYOLNoMomentum, SimSiam]


@pytest.mark.parametrize("method", CONTRASTIVE)
def test_images_that_are_told_apart_are_no_collapse(method: type[Method]) -> None:
    """However long the spread is small, and at the end of a short run."""
    metrics = {"loss": 7.0, "collapse_std": 0.07, "contrast_accuracy": 0.7, "chance_accuracy": 0.1}
    for last in (400, 10):
        health = Health(method, 64)
        for step in range(0, last + 1, 10):
            assert not list(health.warnings(step, metrics, (), last=step == last))


@pytest.mark.parametrize("method", CONTRASTIVE)
def test_a_small_spread_at_the_level_of_chance_is_told(method: type[Method]) -> None:
    metrics = {"loss": 7.0, "collapse_std": 0.07, "contrast_accuracy": 0.009}
    health = Health(method, 64)
    lines = [
        line
        for step in range(0, 400, 10)
        for line in health.warnings(step, metrics, (), last=False)
    ]
    assert len(lines) == 1


@pytest.mark.parametrize("method", EVERY)
def test_equal_outputs_are_told_at_once_by_every_method(method: type[Method]) -> None:
    """A queue of old keys lets a collapsed network find the newest: its accuracy may be 1."""
    for accuracy in (0.0, 1.0):
        metrics = {"loss": 3.9, "collapse_std": 2e-4, "contrast_accuracy": accuracy}
        (line,) = Health(method, 64).warnings(1, metrics, (), last=False)
        assert line.startswith(
            "all images get the same output (std*sqrt(D) 0.000, healthy is about"
        )


@pytest.mark.parametrize("method", EVERY)
def test_small_healthy_batches_are_silent(method: type[Method]) -> None:
    """Eight images, at the start: images are found by chance, and are spread."""
    for batch in (2, 4, 8, 9, 16):
        for std in (0.55, 0.9):
            start = {"loss": 4.0, "collapse_std": std, "contrast_accuracy": 0.0}
            assert method.warning(start, batch) is None


@pytest.mark.parametrize("method", EVERY)
def test_lines_without_a_spread_have_no_warning(method: type[Method]) -> None:
    assert method.warning({"loss": -5.0, "contrast_accuracy": 0.0}, 32) is None
    assert method.warning({}, 32) is None
    assert not method.told_apart({}, 32)


@pytest.mark.parametrize("recipe", RECIPES)
def test_black_images_are_told_by_every_method(recipe: str) -> None:
    config = catalogue.recipe(recipe)
    small = {"hidden_dim": 32, "projection_dim": 16, "projector_dim": 32, "queue_size": 64}
    known = {f.name for f in fields(config.method)}
    options = {name: value for name, value in small.items() if name in known}
    if "bn_group_size" in known:
        options["bn_group_size"] = 4
    made = build_method(
        replace(config, arch="two_layers", method=replace(config.method, **options))
    )
    black = torch.zeros(8, 3, 32, 32)
    labels = torch.arange(8) % 2
    for step in range(3):
        with torch.no_grad():
            made.before_step(Progress(step=step, steps_per_epoch=4, total_steps=8))
        loss, metrics = made((black, black), labels)
        made.after_part()
        with torch.no_grad():
            made.after_step()
        values = {"loss": float(loss.detach()), **{k: float(v) for k, v in metrics.items()}}
        (line,) = Health(type(made), 8).warnings(step, values, (), last=False)
        assert line.startswith("all images get the same output (std*sqrt(D) 0.000")


@pytest.mark.parametrize("recipe", RECIPES)
def test_advice_can_be_typed(recipe: str) -> None:
    """Each option that a warning names is one of the method's recipes."""
    method = find_method(catalogue.recipe(recipe).method)
    told = method.warning({"loss": -1.0, "collapse_std": 0.0}, 64)
    assert told is not None
    options = re.findall(r"(--[a-z.-]*[a-z])(?: (on|mlp|constant|[0-9]+))?", told)
    assert len(options) >= 2
    words = [word for name, value in options for word in (name, value or "0.5")]
    assert _arguments([recipe, "--data", "data", "--out", "out", *words])
    assert not re.search(r"\b(optimizer|method)[._]\w+_", told)


def test_small_batches_are_not_called_collapsed() -> None:
    """Behind a BatchNorm sixteen images have a spread below the threshold of their collapse."""
    assert not told(Health(SimSiam, 16), *((step, 0.5, -0.5) for step in range(10, 400, 10)))


def test_metrics_that_are_no_numbers_are_told_once() -> None:
    health = Health(SimSiam, 16)
    (line,) = told(health, (10, float("nan"), 0.1), (20, float("nan"), 0.1))
    assert line == "collapse_std is not a finite number"


def test_views_of_one_color_are_counted() -> None:
    crops = torch.randint(0, 255, (4, 2, 8, 8, 3), dtype=torch.uint8)
    crops[0] = 255
    crops[1, 1] = torch.tensor([1, 2, 3], dtype=torch.uint8)
    label = torch.zeros(4, dtype=torch.int64)
    part = Batch(index=label, label=label, crops=(crops,), photometric={})
    metrics = {"loss": 0.0, "collapse_std": 0.0}
    (line,) = Health(SimSiam, 4).warnings(1, metrics, (part, part), last=False)
    assert "6 of the 16 views" in line


@pytest.mark.parametrize("std", [0.2, 0.9])
def test_a_healthy_spread_is_not_told(std: float) -> None:
    assert not told(Health(SimSiam, 256), *((step, std, -0.8) for step in range(0, 500, 50)))
