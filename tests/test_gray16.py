"""Gray levels of 16 bits look the same everywhere: loaders, packed files, evaluation, pictures."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import CPU, require
from PIL import Image

from fastsimsiam import Loader
from fastsimsiam.cli import main
from fastsimsiam.config.evaluation import EvalOptions
from fastsimsiam.config.run import Config
from fastsimsiam.config.stored import differing_keys
from fastsimsiam.config.views import ViewSpec
from fastsimsiam.evaluate.context import open_eval_context
from fastsimsiam.loaders.base import LoaderOptions
from fastsimsiam.loaders.dark_gray import dark_gray_warning
from fastsimsiam.loaders.decode import read_rgb
from fastsimsiam.loaders.registry import build_loader
from fastsimsiam.plan.batches import TrainPlan
from fastsimsiam.report.thumbnails import center
from fastsimsiam.storage.beton import open_beton
from fastsimsiam.storage.class_folder import open_split
from fastsimsiam.storage.image_files import ImageFiles
from fastsimsiam.tools.pack import PackOptions, pack
from fastsimsiam.train.pretrain import pretrain

TWELVE_BITS = 4095


@pytest.fixture
def x_rays(tmp_path: Path) -> Path:
    """12-bit levels in 16-bit files of two classes, and the same in 8 bits under `eight/`."""
    y, x = np.mgrid[0:48, 0:64]
    for number in range(20):
        level = 2047.5 * (1 + np.sin(x / (4 + number) + number) * np.cos(y / 9))
        level = np.round(level).astype(np.uint16)
        for kind, pixels in (
            ("sixteen", level),
            ("eight", np.round(level / TWELVE_BITS * 255).astype(np.uint8)),
        ):
            folder = tmp_path / kind / f"k{number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return tmp_path


def first_crops(name: str, storage: ImageFiles, gray16_max: int) -> np.ndarray:
    """The crops of a batch."""
    plan = TrainPlan(
        label=storage.label,
        sizes=storage.sizes,
        seed=0,
        specs=(ViewSpec(), ViewSpec()),
        image_size=32,
        batch_size=10,
    )
    options = LoaderOptions(device=CPU, workers=2, gray16_max=gray16_max)
    with closing(build_loader(name, storage, options)) as loader:
        return next(iter(loader.iterate(plan))).crops[0].numpy()


@pytest.mark.parametrize("name", ["cpu", "resident", "reference", "dali"])
def test_every_loader_scales_them(name: str, x_rays: Path) -> None:
    if name == "dali":
        require("dali")
    scaled = first_crops(name, open_split(x_rays / "sixteen", "train"), TWELVE_BITS)
    wanted = first_crops(name, open_split(x_rays / "eight", "train"), 65535)
    np.testing.assert_array_equal(scaled, wanted)
    assert wanted.max() > 240


def test_packed_files_and_pictures_show_them(x_rays: Path, tmp_path: Path) -> None:
    storage = open_split(x_rays / "sixteen", "train")
    eight = open_split(x_rays / "eight", "train")
    pictures = [
        np.asarray(center(one, 3, side=32, fraction=1.0, gray16_max=TWELVE_BITS))
        for one in (storage, eight)
    ]
    np.testing.assert_array_equal(*pictures)
    manifest = pack(storage, tmp_path / "a.beton", PackOptions(quality=98, gray16_max=TWELVE_BITS))
    assert manifest["options"]["gray16_max"] == TWELVE_BITS
    beton = open_beton(tmp_path / "a.beton")
    for index in range(len(eight)):
        wanted = read_rgb(eight, index).astype(np.int16)
        assert np.abs(read_rgb(beton, index) - wanted).mean() < 2


def test_the_views_command_shows_them(x_rays: Path, tmp_path: Path) -> None:
    grids = []
    for kind, option in (("sixteen", ["--gray16-max", str(TWELVE_BITS)]), ("eight", [])):
        out = tmp_path / f"{kind}.png"
        argv = ["views", str(x_rays / kind), "--out", str(out), "--images", "2", *option]
        assert main(argv) == 0
        with Image.open(out) as grid:
            grids.append(np.asarray(grid))
    np.testing.assert_array_equal(*grids)


def test_the_loader_for_other_programs_scales_them(x_rays: Path) -> None:
    views = []
    for kind, most in (("sixteen", TWELVE_BITS), ("eight", 65535)):
        with Loader(
            x_rays / kind, batch_size=10, image_size=32, device="cpu", gray16_max=most
        ) as loader:
            (view, _), _ = next(iter(loader))
            views.append(view.numpy())
            assert loader.warned_images == {}
    np.testing.assert_array_equal(*views)


def test_evaluation_scales_as_training_did(tiny_config: Config, x_rays: Path) -> None:
    config = replace(
        tiny_config,
        data=x_rays / "sixteen",
        gray16_max=TWELVE_BITS,
        batch_size=10,
        epochs=1,
        max_steps=1,
    )
    pretrain(config)
    for given, used in ((None, TWELVE_BITS), (65535, 65535)):
        options = EvalOptions(device="cpu", loader="cpu", gray16_max=given, image_size=32)
        with open_eval_context(config.out, config.data, options, need_val=False) as context:
            assert context.config.gray16_max == used
            batch = next(context.loader("train").iterate(context.centered("train")))
            assert (batch.crops[0].max() > 240) == (used == TWELVE_BITS)


def test_a_run_keeps_its_largest_level(tiny_config: Config) -> None:
    other = replace(tiny_config, gray16_max=TWELVE_BITS)
    assert differing_keys(tiny_config, other) == ["gray16_max (65535 -> 4095)"]
    assert not differing_keys(tiny_config, replace(tiny_config, check_images=False))


def test_dark_images_of_fewer_bits_are_told(
    x_rays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sixteen = open_split(x_rays / "sixteen", "train")
    line = dark_gray_warning(sixteen, 65535)
    assert line is not None
    assert "data of 12 bits, pass --gray16-max 4095" in line
    assert dark_gray_warning(sixteen, TWELVE_BITS) is None
    assert dark_gray_warning(open_split(x_rays / "eight", "train"), 65535) is None
    bright = tmp_path / "bright" / "k"
    bright.mkdir(parents=True)
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(bright / "a.png")
    assert dark_gray_warning(open_split(bright.parent, "train"), 65535) is None
    assert main(["pack", str(x_rays / "sixteen"), str(tmp_path / "p.beton")]) == 0
    assert "WARNING: the 16-bit gray images" in capsys.readouterr().err
