"""Crops made on the CPU, against Pillow's passes."""

import ctypes
import mmap
import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import textured_image
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from fastsimsiam.config.views import Interpolation
from fastsimsiam.loaders import device_crop
from fastsimsiam.loaders.base import ViewGroup
from fastsimsiam.loaders.host_crop import crop_views
from fastsimsiam.loaders.reference_loader import crop_with_pil

# height, width and box of a frame, and side of the crop: smaller, larger, thin, a pixel, few rows.
CROPS = [
    ((375, 500), (20, 31, 300, 211), 224),
    ((375, 500), (75, 200, 300, 300), 224),
    ((90, 60), (3, 5, 40, 50), 224),
    ((90, 60), (83, 5, 7, 55), 64),
    ((1200, 1600), (0, 0, 1200, 1600), 32),
    ((1200, 1600), (0, 0, 1200, 1600), 4),
    ((3000, 40), (0, 0, 3000, 40), 224),
    ((40, 3000), (0, 0, 40, 3000), 96),
    ((5, 5), (2, 3, 1, 1), 64),
    ((1, 1), (0, 0, 1, 1), 224),
    ((224, 224), (0, 0, 224, 224), 224),
    ((12, 9), (1, 0, 11, 9), 10),
]


def picture(kind: str, height: int, width: int) -> Image.Image:
    """Smooth, or black and white noise, which brings out every rounding."""
    rng = np.random.default_rng(0)
    if kind == "texture":
        return textured_image(rng, height, width)
    return Image.fromarray(rng.integers(0, 2, (height, width, 3), dtype=np.uint8) * 255)


def before_a_wall(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The same pixels in memory that ends with them: whoever reads further is killed."""
    pages = -(-pixels.size // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    wall = ctypes.c_void_p(start + pages * mmap.PAGESIZE)
    assert ctypes.CDLL(None).mprotect(wall, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    first = pages * mmap.PAGESIZE - pixels.size
    out = np.frombuffer(memory, np.uint8, pixels.size, first).reshape(pixels.shape)
    np.copyto(out, pixels)
    return out


@pytest.mark.parametrize(("size", "box", "side"), CROPS)
@pytest.mark.parametrize("kind", ["texture", "noise"])
@pytest.mark.parametrize("interpolation", get_args(Interpolation))
def test_a_crop_is_that_of_pils_passes(
    interpolation: Interpolation,
    kind: str,
    size: tuple[int, int],
    box: tuple[int, int, int, int],
    side: int,
) -> None:
    """Bit for bit; black and white noise overshoots everywhere, so every clip is tried."""
    image = picture(kind, *size)
    frame = before_a_wall(np.asarray(image))
    out = np.empty((2, side, side, 3), np.uint8)
    crop_views(frame, np.array([(0, 0, *size), box], np.int32), out, (interpolation,) * 2)
    resampling = Image.Resampling[interpolation.upper()]
    for (top, left, height, width), crop in zip([(0, 0, *size), box], out, strict=True):
        cut = image.crop((left, top, left + width, top + height))
        passes = cut.resize((side, height), resampling).resize((side, side), resampling)
        np.testing.assert_array_equal(crop, np.asarray(passes))
        # Pillow itself takes the vertical pass first where that is less work.
        whole = crop_with_pil(image, (top, left, height, width), side, interpolation)
        difference = np.abs(crop.astype(np.int16) - np.asarray(whole, np.int16)).max()
        # Where the bicubic filter overshoots, it matters which pass is clipped first.
        assert difference <= (1 if interpolation == "bilinear" else 2 if kind == "texture" else 32)


def test_a_frame_that_was_turned_is_cropped_alike() -> None:
    pixels = np.asarray(picture("texture", 120, 90))
    box = np.array([(10, 20, 70, 60)], np.int32)
    turned, straight = np.empty((2, 1, 64, 64, 3), np.uint8)
    crop_views(pixels.transpose(1, 0, 2)[::-1], box, turned)
    crop_views(pixels.transpose(1, 0, 2)[::-1].copy(), box, straight)
    np.testing.assert_array_equal(turned, straight)


def test_a_machine_where_nothing_can_be_kept_compiles_each_time() -> None:
    code = (
        "import numpy as np\n"
        "from numba.core.caching import CacheImpl\n"
        "CacheImpl._locator_classes = []\n"  # as if no folder could be written to
        "from fastsimsiam.loaders.host_crop import crop_views\n"
        "out = np.zeros((1, 4, 4, 3), np.uint8)\n"
        "crop_views(np.full((9, 9, 3), 7, np.uint8), np.array([(0, 0, 9, 9)], np.int32), out)\n"
        "assert (out == 7).all()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_code_that_several_processes_have_kept_is_not_mixed_up(tmp_path: Path) -> None:
    """The first process uses one filter, the second the other, and the third takes both from files."""
    code = (
        "import sys\n"
        "import numpy as np\n"
        "from PIL import Image\n"
        "from fastsimsiam.loaders.host_crop import crop_views\n"
        "frame = np.random.default_rng(0).integers(0, 256, (60, 50, 3), dtype=np.uint8)\n"
        "for name in sys.argv[1:]:\n"
        "    out = np.zeros((1, 32, 32, 3), np.uint8)\n"
        "    crop_views(frame, np.array([(0, 0, 60, 50)], np.int32), out, (name,))\n"
        "    kind = Image.Resampling[name.upper()]\n"
        "    wanted = Image.fromarray(frame).resize((32, 60), kind).resize((32, 32), kind)\n"
        "    assert (out[0] == np.asarray(wanted)).all(), name\n"
    )
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    for names in (["bilinear"], ["bicubic"], ["bilinear", "bicubic"]):
        subprocess.run([sys.executable, "-c", code, *names], check=True, env=environment)


class Work(TorchDispatchMode):
    """The most bytes that a result of an operator has, and how many batched products there are."""

    def __init__(self) -> None:
        super().__init__()
        self.most_bytes = self.products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        self.products += func is torch.ops.aten.bmm.default
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.most_bytes = max(self.most_bytes, tensor.numel() * tensor.element_size())
        return result


@pytest.mark.parametrize("interpolation", get_args(Interpolation))
@pytest.mark.parametrize(
    ("extents", "pieces"),
    [
        # 40 small boxes to a piece of 2^18 pixels; the large one exceeds it alone, for both views.
        ([(60, 80)] * 15 + [(600, 800)] + [(80, 60)] * 16, 4),
        # Two large boxes to a piece, the small ones together; in their own order it would be 16.
        ([(30, 40), (300, 400)] * 8, 9),
    ],
)
def test_crops_on_a_device_come_in_pieces_of_alike_boxes(
    extents: list[tuple[int, int]],
    pieces: int,
    interpolation: Interpolation,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(device_crop, "_PIECE_PIXELS", 1 << 18)
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 2, (*extent, 3), dtype=np.uint8) * 255 for extent in extents]
    count = np.array([height * width for height, width in extents])
    box = np.array([[(0, 0, *extent)] * 2 for extent in extents], np.int32)
    with Work() as work:
        (crops,) = device_crop.crop_views(
            torch.from_numpy(np.concatenate([frame.reshape(-1, 3) for frame in frames])),
            np.cumsum(count) - count,
            np.array([width for _, width in extents]),
            box,
            [ViewGroup(side=32, views=[0, 1], interpolations=(interpolation,) * 2)],
        )
    resampling = Image.Resampling[interpolation.upper()]
    for frame, both in zip(frames, crops.numpy().astype(int), strict=True):
        # The vertical pass first.
        passes = Image.fromarray(frame).resize((frame.shape[1], 32), resampling)
        assert np.abs(both - np.asarray(passes.resize((32, 32), resampling))).max() <= 1
    assert work.products == 2 * pieces
    # Three float32 colors of a piece, or of a box that is larger than one.
    assert work.most_bytes <= max(1 << 18, count.max()) * 3 * 4
