"""What the log says of metrics: a collapse, images that show nothing, numbers that are none."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from fastsimsiam.config.run import Config
from fastsimsiam.loaders.base import Batch
from fastsimsiam.methods.simsiam import SimSiam
from fastsimsiam.train.health import Health
from fastsimsiam.train.pretrain import pretrain


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
    assert "stop_gradient" in told(new(), (10, 0.18, -0.95))[0]


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
