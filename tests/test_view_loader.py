"""The Python API from end to end: the README's block, `Loader` in other loops, Lightning."""

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_backbone  # noqa: F401 (registers tiny_resnet)
import torch
from torch import nn

import fastsimsiam
from fastsimsiam.config.run import Config
from fastsimsiam.config.views import ViewSpec
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.linear_probe import LinearConfig

ROOT = Path(__file__).parents[1]


def test_pretrain_evaluate_and_load(tiny_config: Config) -> None:
    config = fastsimsiam.recipe(
        "imagenette",
        data=tiny_config.data,
        out=tiny_config.out,
        arch="tiny_resnet",
        image_size=32,
        batch_size=16,
        epochs=1,
        device="cpu",
        knn=tiny_config.knn,
    )
    summary = fastsimsiam.pretrain(config)
    assert summary.steps == 6
    result = fastsimsiam.knn(config.out, config.data, k=(5,))
    assert set(result.trained) == {5}
    backbone = fastsimsiam.load_backbone(config.out)
    assert backbone(torch.zeros(2, 3, 32, 32)).shape == (2, 128)


def test_a_plain_training_loop(class_folders: Path) -> None:
    """PyTorch alone on the fast loader: SimSiam's loss falls."""
    config = fastsimsiam.recipe("imagenette", arch="tiny_resnet", image_size=32)
    method = fastsimsiam.build_method(
        replace(config, method=replace(config.method, projector_layers=2))
    )
    optimizer = torch.optim.SGD(method.parameters(), lr=0.05, momentum=0.9)
    losses = []
    with fastsimsiam.Loader(
        class_folders, batch_size=16, image_size=32, device="cpu", workers=1
    ) as loader:
        assert len(loader) == 6
        for _ in range(5):
            for views, label in loader:
                assert views[0].shape == (16, 3, 32, 32)
                assert label.shape == (16,)
                loss, _ = method(views, label)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
        assert loader.epoch == 5
    assert sum(losses[-6:]) < sum(losses[:6])


def test_epochs_differ_and_repeat(class_folders: Path) -> None:
    one_view = (ViewSpec(area=(0.08, 1.0)),)
    with fastsimsiam.Loader(
        class_folders, batch_size=16, image_size=32, views=one_view, device="cpu", workers=1
    ) as loader:
        first, second = list(loader), list(loader)
        loader.epoch = 0
        again = list(loader)
        assert loader.classes == ["ant", "bee", "cow"]
    assert len(first[0][0]) == 1
    assert torch.equal(first[0][0][0], again[0][0][0])
    assert not torch.equal(first[0][0][0], second[0][0][0])
    assert abs(first[0][0][0].mean().item()) < 2


def test_the_loader_takes_the_place_of_a_dataloader(class_folders: Path) -> None:
    """Code without knowledge of it asks for its length and iterates over it once per epoch."""

    def any_trainer(batches: object, module: nn.Module, epochs: int) -> int:
        count = 0
        for _ in range(epochs):
            assert len(batches) == 3  # type: ignore[arg-type]
            for views, _ in batches:  # type: ignore[attr-defined]
                module(views[0])
                count += 1
        return count

    with fastsimsiam.Loader(
        class_folders, batch_size=32, image_size=32, device="cpu", workers=1
    ) as loader:
        assert any_trainer(loader, nn.Conv2d(3, 4, 3), 2) == 6


def test_labels_are_the_same_in_both_splits(class_folders: Path, tmp_path: Path) -> None:
    shutil.copytree(class_folders, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "val" / "bee")
    with fastsimsiam.Loader(
        tmp_path / "data", batch_size=16, image_size=32, split="val", device="cpu", workers=1
    ) as loader:
        assert loader.classes == ["ant", "bee", "cow"]
        assert {int(label) for _, labels in loader for label in labels} == {0, 2}


def test_wrong_arguments_are_named(class_folders: Path) -> None:
    with pytest.raises(UserError, match="image_size is 0"):
        fastsimsiam.Loader(class_folders, batch_size=8, image_size=0)
    with pytest.raises(UserError, match="views is empty"):
        fastsimsiam.Loader(class_folders, batch_size=8, views=())
    with pytest.raises(UserError, match="batch_size is 0"):
        fastsimsiam.Loader(class_folders, batch_size=0)
    with pytest.raises(UserError, match="fewer than one batch of 1000"):
        fastsimsiam.Loader(class_folders, batch_size=1000)
    with pytest.raises(UserError, match="folder is called cpu now"):
        fastsimsiam.Loader(class_folders, batch_size=8, device="cpu", loader="folder")


def test_the_readmes_python_runs(class_folders: Path, tmp_path: Path) -> None:
    """The README's block, reduced to a few seconds on a CPU."""
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    for written, small in (
        (
            'data="data/imagenette", out="runs/imagenette", epochs=200',
            f'data="{class_folders}", out="{tmp_path / "run"}", epochs=1, arch="tiny_resnet", '
            f'image_size=32, batch_size=16, device="cpu"',
        ),
        (
            '"data/imagenette", batch_size=256, image_size=128',
            f'"{class_folders}", batch_size=16, image_size=32, device="cpu"',
        ),
        ('"runs/imagenette"', f'"{tmp_path / "run"}"'),
        ('"data/imagenette"', f'"{class_folders}"'),
        ("cached=True", "cached=True, config=layer"),
        ("range(100)", "range(2)"),
    ):
        assert written in block
        block = block.replace(written, small)
    namespace: dict[str, object] = {"layer": LinearConfig(batch_size=16, epochs=2)}
    exec(block, namespace)
    assert isinstance(namespace["backbone"], nn.Module)
    assert [tuple(view.shape) for view in namespace["views"]] == [(16, 3, 32, 32)] * 2  # type: ignore[attr-defined]


def test_the_lightning_example_runs(class_folders: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "examples" / "lightning_loop.py",
            "--data",
            class_folders,
            "--epochs",
            "12",
            "--device",
            "cpu",
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    scores = re.search(r"\{'loss': (-[\d.]+), 'collapse_std': ([\d.]+)\}", done.stdout)
    assert scores, done.stdout
    assert float(scores[1]) < -0.02
    assert float(scores[2]) > 0.5
