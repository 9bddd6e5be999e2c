"""What version 0.1.0 wrote still loads: a run's folder, its checkpoint, a packed file.

The run in golden/run-0.1.0 was made by that version, before the package was laid out in folders:
micro_resnet on images like those of `old_data`, with the loader `folder`, `compile` "colour" and views
with a field `grey`.
"""

import lzma
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CPU, require
from PIL import Image

import fastsimsiam
from fastsimsiam.config.methods import SimSiamConfig
from fastsimsiam.config.stored import differing_keys, from_dict, to_dict
from fastsimsiam.config.views import IMAGENET_PIXELS
from fastsimsiam.loaders.base import LoaderOptions
from fastsimsiam.loaders.registry import build_loader
from fastsimsiam.plan.batches import CenterPlan
from fastsimsiam.report.runs import read_runs
from fastsimsiam.runs.checkpoint import load
from fastsimsiam.storage.beton import open_beton
from fastsimsiam.train.pretrain import pretrain

GOLDEN = Path(__file__).parent / "golden"
CHECKPOINT = Path("checkpoints") / "step-00000002.pt"


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    """A copy of the run's folder."""
    shutil.copytree(GOLDEN / "run-0.1.0", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def old_data(tmp_path: Path) -> Path:
    """Images of the same names and sizes as those that the run saw."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for name in ("ant", "bee"):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
                image = Image.fromarray(pixels).resize((24, 20))
                image.save(folder / f"{number}.jpg", quality=90)
    return tmp_path / "data"


def test_an_old_checkpoint_has_todays_names(old_run: Path) -> None:
    config = load(old_run / CHECKPOINT).config
    assert (config.loader, config.compile) == ("cpu", "color")
    assert [view.grayscale for view in config.views] == [0.3, 0.1]
    assert [view.interpolation for view in config.views] == ["bilinear"] * 2
    assert [view.grayscale_first for view in config.views] == [False] * 2
    assert config.normalize == IMAGENET_PIXELS
    assert config.method == SimSiamConfig(projector_layers=2, projector_dim=16, predictor_dim=8)
    assert differing_keys(from_dict(to_dict(config)), config) == []


def test_an_old_choice_of_nvjpeg_is_a_loader_today() -> None:
    stored = torch.load(GOLDEN / "run-0.1.0" / CHECKPOINT, weights_only=True)["config"]
    stored["folder"] = {"decoder": "nvjpeg", "crops": "host"}
    assert from_dict(stored).loader == "nvjpeg"
    stored["folder"] = {"decoder": "cpu", "crops": "device"}
    assert from_dict(stored).loader == "cpu"
    assert from_dict(stored).cpu.crops == "device"


def test_a_stored_config_that_is_damaged_is_one_line() -> None:
    stored = to_dict(fastsimsiam.recipe("demo"))
    for broken in (
        {key: value for key, value in stored.items() if key != "recipe"},
        stored | {"method": None},
        stored | {"views": 3},
    ):
        with pytest.raises(fastsimsiam.UserError, match="the stored config is damaged"):
            from_dict(broken)


def test_an_old_run_is_resumed(old_run: Path, old_data: Path) -> None:
    config = load(old_run / CHECKPOINT).config
    config = replace(config, data=old_data, out=old_run, max_steps=None, compile="off")
    summary = pretrain(config, resume=True)
    assert summary.steps == 4
    log = (old_run / "log.txt").read_text()
    assert "resumed at step 2" in log
    assert len((old_run / "metrics.jsonl").read_text().splitlines()) == 7


def test_an_old_run_is_evaluated_and_reported(old_run: Path, old_data: Path) -> None:
    options = fastsimsiam.EvalOptions(device="cpu", workers=1)
    result = fastsimsiam.knn(old_run, old_data, k=(3,), options=options)
    assert 0 <= result.trained[3] <= 100
    (run,) = read_runs([old_run])
    assert run.config.loader == "cpu"
    assert [epoch for epoch, _ in run.values("loss")] == [0.5, 1.0]


def test_an_old_packed_file_is_read(tmp_path: Path) -> None:
    require("ffcv")
    file = tmp_path / "train.beton"
    file.write_bytes(lzma.decompress((GOLDEN / "train.beton.xz").read_bytes()))
    shutil.copy(GOLDEN / "train.beton.json", tmp_path)
    storage = open_beton(file)
    assert storage.classes == ["ant", "bee"]
    plan = CenterPlan(
        label=storage.label, sizes=storage.sizes, image_size=16, batch_size=16, fraction=1.0
    )
    loader = build_loader("ffcv", storage, LoaderOptions(device=CPU, workers=1))
    (batch,) = loader.iterate(plan)
    loader.close()
    assert batch.label.tolist() == [0] * 8 + [1] * 8
