"""Fixtures: small synthetic data sets, and photographs if they are available."""

import importlib.util
import io
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_backbone  # noqa: F401
import torch
from PIL import Image, ImageOps

from fastsimsiam.config.methods import SimSiamConfig
from fastsimsiam.config.optimizer import OptimizerConfig
from fastsimsiam.config.run import CheckpointConfig, Config, KnnConfig
from fastsimsiam.doctor.synthetic import textured_image
from fastsimsiam.methods.base import Progress
from fastsimsiam.methods.registry import build_method
from fastsimsiam.recipes import catalogue
from fastsimsiam.runs.checkpoint import Checkpoint, CheckpointStore

CPU = torch.device("cpu")


def open_with_pil(file: Path | io.BytesIO) -> Image.Image:
    """Returns the upright RGB image of a file by PIL alone: the reference of the loaders."""
    with Image.open(file) as image:
        turned = ImageOps.exif_transpose(image)
        return (turned.convert("RGBA") if turned.mode == "P" else turned).convert("RGB")


def progress(step: int) -> Progress:
    """A run of one step per epoch, at a step."""
    return Progress(step=step, steps_per_epoch=1, total_steps=100)


def require(name: str) -> None:
    """Skips where an optional library is not installed; fails where it is said to be."""
    found = importlib.util.find_spec("nvidia.dali" if name == "dali" else name)
    if found is None and os.environ.get("FASTSIMSIAM_REQUIRE_LOADERS"):
        pytest.fail(f"{name} is not installed, and FASTSIMSIAM_REQUIRE_LOADERS is set")
    if found is None:
        pytest.skip(f"{name} is not installed")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keeps the index cache of the tests apart from the user's."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def class_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 training and 24 validation images of 3 classes, JPEG and PNG, of many sizes."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 32), ("val", 8)):
        for name in ("ant", "bee", "cow"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                height, width = rng.integers(20, 90, 2).tolist()
                image = textured_image(rng, height, width)
                if number % 8 == 0:
                    image.save(folder / f"{number:02d}.png")
                elif number % 8 == 1:
                    image.convert("L").save(folder / f"{number:02d}.jpg", quality=90)
                else:
                    image.save(folder / f"{number:02d}.JPEG", quality=90)
    return root


@pytest.fixture(scope="session")
def photos() -> Path:
    """Full-size photographs with the irregularities of ImageNet."""
    root = os.environ.get("FASTSIMSIAM_TEST_DATA")
    if not root:
        pytest.skip("FASTSIMSIAM_TEST_DATA is not set: real photographs are not tested")
    return Path(root) / "photos"


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photographs where they are available, else JPEGs of about their size."""
    if os.environ.get("FASTSIMSIAM_TEST_DATA"):
        return Path(os.environ["FASTSIMSIAM_TEST_DATA"]) / "photos"
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(40):
        folder = root / "train" / ("ant", "bee")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        height, width = rng.integers(200, 500, 2).tolist()
        textured_image(rng, height, width).save(folder / f"{number:02d}.JPEG", quality=90)
    return root


@pytest.fixture
def tiny_config(class_folders: Path, tmp_path: Path) -> Config:
    """A run of a few seconds on a CPU in float32: 12 steps, 2 epochs."""
    config = catalogue.recipe("imagenette")
    return replace(
        config,
        data=class_folders,
        out=tmp_path / "run",
        arch="tiny_resnet",
        epochs=2,
        batch_size=16,
        image_size=32,
        method=SimSiamConfig(projector_layers=2, projector_dim=64, predictor_dim=16),
        # A low rate amplifies rounding errors little within twelve steps.
        optimizer=OptimizerConfig(lr=0.1),
        knn=KnnConfig(every_epochs=0),
        checkpoint=CheckpointConfig(every_epochs=0.5, min_minutes=0.0),
        device="cpu",
        precision="fp32",
        compile="off",
        loader="cpu",
        workers=2,
        log_every=2,
    )


@pytest.fixture
def gpu_config(tiny_config: Config) -> Config:
    """The tiny run on a GPU."""
    return replace(tiny_config, device="cuda", precision="bf16", log_every=100)


def save_run(config: Config, steps: tuple[int, ...] = (1, 2)) -> list[Path]:
    """Checkpoints of a run without the training: random weights of the config's seed."""
    store = CheckpointStore(config.out, keep=len(steps))
    torch.manual_seed(config.seed)
    method = build_method(config)
    for module in method.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as after some steps of training
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    return [
        store.save(
            Checkpoint(
                config=config,
                step=step,
                data="",
                method=method.state_dict(),
                optimizer={"state": {}, "param_groups": []},
                rng={"cpu": torch.get_rng_state()},
            )
        )
        for step in steps
    ]
