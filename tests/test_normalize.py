"""Whatever a run subtracts from pixels, and divides them by, is what its evaluations do."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CPU, open_with_pil, save_run
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

import fastsimsiam
from fastsimsiam.config.evaluation import EvalOptions, LinearConfig
from fastsimsiam.config.run import Config, KnnConfig
from fastsimsiam.config.views import IMAGENET_PIXELS, NormalizeConfig, ViewSpec
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.context import open_eval_context
from fastsimsiam.evaluate.features import center_plan
from fastsimsiam.evaluate.pretrained import load_pretrained
from fastsimsiam.loaders.base import LoaderOptions
from fastsimsiam.loaders.reference_loader import crop_with_pil
from fastsimsiam.loaders.registry import build_loader
from fastsimsiam.plan.batches import TrainPlan
from fastsimsiam.recipes import catalogue
from fastsimsiam.report.neighbors import find_neighbors
from fastsimsiam.storage.class_folder import open_split
from fastsimsiam.tools.export import export
from fastsimsiam.tools.views import draw_views_grid

NONE = NormalizeConfig(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
"""SimCLR's: pixels as they are."""
ON_CPU = EvalOptions(device="cpu", precision="fp32", workers=1, loader="cpu")
PROBE = LinearConfig(epochs=1, batch_size=32)


@dataclass
class Seen:
    """The smallest and the largest pixel of all images that networks have received."""

    low: float = 0.0
    high: float = 0.0
    images: int = 0

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Called before every forward pass of every module."""
        images = inputs[0]
        if isinstance(module, nn.Conv2d) and images.shape[1] == 3 and not images.is_meta:
            self.low = min(self.low, images.min().item())
            self.high = max(self.high, images.max().item())
            self.images += len(images)


@contextmanager
def watched() -> Iterator[Seen]:
    seen = Seen()
    hook = register_module_forward_pre_hook(seen)
    try:
        yield seen
    finally:
        hook.remove()


@pytest.fixture(params=[NONE, IMAGENET_PIXELS], ids=["none", "imagenet"])
def run(request: pytest.FixtureRequest, tiny_config: Config) -> Config:
    return replace(tiny_config, normalize=request.param)


@pytest.mark.parametrize("source", ["run", "exported"])
@pytest.mark.parametrize("what", ["knn", "linear", "cached", "inspect", "embed", "neighbors"])
def test_networks_see_what_they_were_trained_on(
    what: str, source: str, run: Config, tmp_path: Path
) -> None:
    save_run(run)
    path = run.out
    if source == "exported":
        path, _ = export(run.out, tmp_path / "x.safetensors")
    with watched() as seen:
        if what == "knn":
            fastsimsiam.knn(path, run.data, k=(5,), options=ON_CPU)
        elif what in ("linear", "cached"):
            cached = what == "cached"
            fastsimsiam.linear(path, run.data, config=PROBE, cached=cached, options=ON_CPU)
        elif what == "inspect":
            fastsimsiam.inspect(path, run.data, options=ON_CPU)
        elif what == "embed":
            fastsimsiam.embed(path, run.data, tmp_path / "x.npz", options=ON_CPU)
        else:
            with open_eval_context(path, run.data, ON_CPU) as context:
                find_neighbors(context)
    check(seen, run.normalize)


def check(seen: Seen, constants: NormalizeConfig) -> None:
    """Images go from black to white, in the run's numbers."""
    assert seen.images >= 24
    if constants == NONE:
        assert seen.low >= 0.0
        assert 0.8 < seen.high <= 1.0
    else:
        assert seen.low < -1.5
        assert 1.5 < seen.high < 2.7


def test_training_and_its_own_evaluation_agree_with_knn(run: Config) -> None:
    config = replace(run, max_steps=2, knn=KnnConfig(k=(7,), every_epochs=2))
    with watched() as seen:
        summary = fastsimsiam.pretrain(config)
    check(seen, run.normalize)
    result = fastsimsiam.knn(run.out, run.data, k=(7,), options=ON_CPU)
    assert result.trained[7] == pytest.approx(summary.last["knn_top1_k7"])


def test_features_are_those_of_pixels_as_they_are(tiny_config: Config, tmp_path: Path) -> None:
    config = replace(tiny_config, normalize=NONE)
    save_run(config)
    fastsimsiam.embed(config.out, config.data, tmp_path / "x.npz", split="val", options=ON_CPU)
    stored = torch.from_numpy(np.load(tmp_path / "x.npz")["features"])
    val = open_split(config.data, "val")
    loader = build_loader("cpu", val, LoaderOptions(device=CPU, workers=1))
    plan = center_plan(val, config.image_size, config.knn.crop_fraction)
    (batch,) = loader.iterate(plan)
    loader.close()
    pixels = batch.crops[0][:, 0].permute(0, 3, 1, 2).float() / 255
    backbone = load_pretrained(config.out).backbone
    std, mean = (
        torch.tensor(c)[:, None, None] for c in (IMAGENET_PIXELS.std, IMAGENET_PIXELS.mean)
    )
    with torch.no_grad():
        torch.testing.assert_close(stored, backbone(pixels), atol=1e-5, rtol=1e-4)
        assert (stored - backbone((pixels - mean) / std)).abs().max() > 0.1


def test_a_linear_evaluation_goes_on_with_its_own_normalization_alone(
    tiny_config: Config, tmp_path: Path
) -> None:
    save_run(tiny_config)
    one, _ = export(tiny_config.out, tmp_path / "one.safetensors")
    metadata = {"fastsimsiam": "1", "arch": tiny_config.arch, "stem": "imagenet"}
    metadata |= {"image_size": "32", "mean": "[0, 0, 0]", "std": "[1, 1, 1]"}
    other = tmp_path / "other.safetensors"
    save_file(load_file(one), other, metadata=metadata)
    folder = tmp_path / "layer"
    for file, resume in ((other, False), (other, True)):
        fastsimsiam.linear(
            file, tiny_config.data, config=PROBE, out=folder, resume=resume, options=ON_CPU
        )
    with pytest.raises(UserError, match="was made with another normalize .*: pass the old one"):
        fastsimsiam.linear(
            one, tiny_config.data, config=PROBE, out=folder, resume=True, options=ON_CPU
        )


def test_the_picture_of_views_is_in_their_own_colors(class_folders: Path, tmp_path: Path) -> None:
    """And its crops are those of their filter: views of a tile's size are shown pixel by pixel."""
    plain = ViewSpec(flip=0, jitter=0, grayscale=0, blur=0)
    specs = (plain, replace(plain, interpolation="bicubic"))
    config = replace(catalogue.recipe("demo"), views=specs, image_size=192)
    storage, samples = open_split(class_folders, "train"), [3, 50]
    plan = TrainPlan(
        label=storage.label, sizes=storage.sizes, seed=1, specs=specs, image_size=192, batch_size=2
    )
    boxes = plan.rows(0, np.array(samples)).views.box
    for constants in (IMAGENET_PIXELS, NONE):
        file = tmp_path / "views.png"
        told = replace(config, normalize=constants)
        draw_views_grid(storage, samples, told, seed=1, out=file)
        grid = open_with_pil(file)
        for row, sample in enumerate(samples):
            image = open_with_pil(storage.file_of(sample))
            for view, spec in enumerate(specs):
                box = boxes[row, view].tolist()
                crop = crop_with_pil(image, box, 192, spec.interpolation)
                left, top = 8 + 200 * (view + 1), 32 + 200 * row
                tile = grid.crop((left, top, left + 192, top + 192))
                difference = np.asarray(tile, np.int16) - np.asarray(crop, np.int16)
                assert np.abs(difference).mean() < 0.1


def test_a_loop_of_ones_own_chooses_its_normalization(class_folders: Path) -> None:
    with fastsimsiam.Loader(
        class_folders, batch_size=16, image_size=32, normalize=NONE, device="cpu", workers=1
    ) as loader:
        views, _ = next(iter(loader))
    assert all(view.min() >= 0 and 0.9 < view.max() <= 1 for view in views)
