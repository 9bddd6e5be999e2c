"""Parts of the loader `ffcv` that have an oracle of their own."""

import numpy as np
import numpy.typing as npt
import pytest
from conftest import require, textured_image
from PIL import Image

from fastsimsiam.loaders.ffcv_loader import balanced
from fastsimsiam.loaders.reference_loader import crop_with_pil

# height, width and box of a frame, and side of the crop: smaller, larger, thin, a pixel.
CROPS = [
    ((375, 500), (20, 31, 300, 211), 224),
    ((90, 60), (3, 5, 40, 50), 224),
    ((1200, 1600), (0, 0, 1200, 1600), 32),
    ((3000, 40), (0, 0, 3000, 40), 224),
    ((40, 3000), (0, 0, 40, 3000), 96),
    ((5, 5), (2, 3, 1, 1), 64),
    ((224, 224), (0, 0, 224, 224), 224),
]


@pytest.mark.parametrize(("size", "box", "side"), CROPS)
@pytest.mark.parametrize("kind", ["texture", "noise"])
def test_compiled_resampling_is_pils(
    kind: str, size: tuple[int, int], box: tuple[int, int, int, int], side: int
) -> None:
    require("ffcv")
    from fastsimsiam.loaders.numba_resample import PADDING, resample_box, row_bytes

    rng = np.random.default_rng(0)
    if kind == "texture":
        image = textured_image(rng, *size)
    else:
        image = Image.fromarray(rng.integers(0, 2, (*size, 3), dtype=np.uint8) * 255)
    pixels = np.asarray(image)
    frame = np.concatenate([pixels.reshape(-1), np.zeros(PADDING, np.uint8)])
    rows = np.empty((box[2], row_bytes(side)), np.uint8)
    out = np.empty((side, side, 3), np.uint8)
    resample_box(frame.ctypes.data, 3 * size[1], np.array(box, np.int32), rows, out)
    top, left, height, width = box
    crop = image.crop((left, top, left + width, top + height))
    passes = crop.resize((side, height), Image.Resampling.BILINEAR)
    passes = passes.resize((side, side), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(out, np.asarray(passes))
    # Pillow itself takes the vertical pass first where that is less work.
    whole = np.asarray(crop_with_pil(image, box, side), np.int16)
    assert np.abs(out.astype(np.int16) - whole).max() <= 1


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
