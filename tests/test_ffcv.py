"""Parts of the loader `ffcv` that have an oracle of their own."""

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import CPU, open_with_pil, require

from fastsimsiam.config.views import ViewSpec
from fastsimsiam.loaders.base import LoaderOptions
from fastsimsiam.loaders.ffcv_epoch import balanced
from fastsimsiam.loaders.ffcv_loader import FfcvLoader
from fastsimsiam.loaders.reference_loader import crop_with_pil
from fastsimsiam.plan.batches import TrainPlan
from fastsimsiam.storage.beton import open_beton
from fastsimsiam.storage.class_folder import open_split
from fastsimsiam.tools.pack import PackOptions, pack


def spread(cost: npt.NDArray[np.int64], order: npt.NDArray[np.int64], workers: int) -> float:
    """Largest less smallest sum of the pieces that threads get."""
    pieces = [cost[piece].sum() for piece in np.array_split(order, workers)]
    return float(max(pieces) - min(pieces))


@pytest.mark.parametrize("size", [64, 50])
@pytest.mark.parametrize("workers", [1, 2, 7])
def test_work_is_dealt_out_evenly(workers: int, size: int) -> None:
    dealt, in_turn, as_it_comes = 0.0, 0.0, 0.0
    for seed in range(20):
        cost = np.random.default_rng(seed).lognormal(10, 0.5, size).astype(np.int64)
        order = balanced(cost, workers)
        assert sorted(order) == list(range(size))
        dealt += spread(cost, order, workers)
        by_cost = np.argsort(-cost)
        turns = np.concatenate([by_cost[worker::workers] for worker in range(workers)])
        in_turn += spread(cost, turns, workers)
        as_it_comes += spread(cost, np.arange(size), workers)
    if workers > 1:
        assert dealt < 0.75 * in_turn
        assert dealt < 0.75 * as_it_comes


def test_what_the_compiled_code_leaves_is_resampled_by_each_views_filter(
    class_folders: Path, tmp_path: Path
) -> None:
    require("ffcv")
    pack(open_split(class_folders, "train"), tmp_path / "train.beton", PackOptions(), workers=2)
    storage = open_beton(tmp_path / "train.beton")
    plan = TrainPlan(
        label=storage.label,
        sizes=storage.sizes,
        seed=0,
        specs=(ViewSpec(), ViewSpec(interpolation="bicubic")),
        image_size=32,
        batch_size=4,
    )
    loader, batch = FfcvLoader(storage, LoaderOptions(device=CPU, workers=1)), plan.batch(0, 0)
    crops = torch.empty((4, 2, 32, 32, 3), dtype=torch.uint8)
    loader._repair(plan, batch, 1, (crops,))
    image = open_with_pil(io.BytesIO(storage.read(int(batch.index[1]))))
    for view, interpolation in enumerate(plan.interpolations):
        box = batch.views.box[1, view].tolist()
        wanted = np.asarray(crop_with_pil(image, box, 32, interpolation), np.int16)
        assert np.abs(crops[1, view].numpy() - wanted).max() <= 1
