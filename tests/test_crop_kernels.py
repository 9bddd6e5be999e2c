"""The crop kernels make the crops of the matrix products, and their table fits its memory."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch

from fastsimsiam.config.views import Interpolation
from fastsimsiam.loaders import crop_table, device_crop
from fastsimsiam.loaders.base import ViewGroup

Boxes = npt.NDArray[np.int32]

# Height and width of frames, and two boxes in each: whole, at the edges, thin, a pixel, of odd sizes.
FRAMES: list[tuple[tuple[int, int], list[tuple[int, int, int, int]]]] = [
    ((75, 101), [(0, 0, 75, 101), (31, 60, 44, 41)]),
    ((23, 19), [(22, 18, 1, 1), (0, 0, 1, 19)]),
    ((30, 140), [(0, 1, 30, 139), (2, 0, 27, 9)]),
    ((64, 64), [(0, 0, 64, 64), (16, 16, 32, 32)]),
]
GROUPS = [
    ViewGroup(side=32, views=[0, 3], interpolations=("bilinear", "bicubic")),
    ViewGroup(side=37, views=[1], interpolations=("bicubic",)),
    ViewGroup(side=5, views=[2], interpolations=("bilinear",)),
]


def crops_and_wanted(device: torch.device) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The crops (B, V, S, S, 3) of every group by kernels, and by matrix products."""
    rng = np.random.default_rng(0)
    # Black and white noise overshoots everywhere; the rest tries every level.
    frames = [
        rng.integers(0, 2, (height * width, 3), dtype=np.uint8) * 255
        if number % 2
        else rng.integers(0, 256, (height * width, 3), dtype=np.uint8)
        for number, ((height, width), _) in enumerate(FRAMES)
    ]
    count = np.array([len(frame) for frame in frames])
    box = np.array([boxes + boxes[::-1] for _, boxes in FRAMES], np.int32)
    width = np.array([size[1] for size, _ in FRAMES])
    pixels = torch.from_numpy(np.concatenate(frames))
    ours, wanted = (
        cut(given, np.cumsum(count) - count, width, box, GROUPS)
        for cut, given in (
            (device_crop.by_kernels, pixels.to(device)),
            (device_crop.crop_views, pixels),
        )
    )
    return [(one.cpu(), another) for one, another in zip(ours, wanted, strict=True)]


def assert_crops_are_those_of_products(device: torch.device) -> None:
    """None is more than a level off, and few are that much."""
    for ours, wanted in crops_and_wanted(device):
        difference = (ours.short() - wanted.short()).abs()
        assert difference.max() <= 1
        assert difference.float().mean() < 2e-3


def test_kernels_make_the_crops() -> None:
    """By Triton's interpreter, which needs no GPU; in several pieces."""
    pytest.importorskip("triton")
    code = (
        "import sys, torch\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_crop_kernels import assert_crops_are_those_of_products, crop_table\n"
        "crop_table.MOST_BETWEEN = 1 << 14\n"
        "assert_crops_are_those_of_products(torch.device('cpu'))\n"
        "print('same')\n"
    )
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert done.stdout.strip() == "same", done.stderr[-2000:]


@pytest.mark.parametrize("most", [1, 1 << 14, 1 << 28])
def test_every_crop_is_made_once_within_the_memory(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crop_table, "MOST_BETWEEN", most)
    rng = np.random.default_rng(0)
    extent = rng.integers(1, 60, (50, 4, 2))
    box = np.concatenate([np.zeros_like(extent), extent], axis=2).astype(np.int32)
    width = extent[:, :, 1].max(axis=1)
    offset = np.cumsum(width * 60) - width * 60
    made = crop_table.crop_table(offset, width, box, GROUPS)
    crops: dict[int, list[int]] = {}
    most_needed = 0
    for launch in made.launches:
        group = GROUPS[launch.group]
        assert launch.side == group.side
        rows = made.table[launch.rows]
        needed = 3 * launch.side * rows[:, 4]
        assert (rows[:, 5] == np.cumsum(needed) - needed).all()
        assert needed.sum() <= most or len(rows) == 1
        most_needed = max(most_needed, int(needed.sum()))
        for number, start, stride, height, box_width, _ in rows.tolist():
            sample, view = divmod(number, len(group.views))
            assert group.interpolations[view] == launch.interpolation
            assert (start, stride) == (offset[sample], width[sample])
            assert [height, box_width] == box[sample, group.views[view], 2:].tolist()
        crops.setdefault(launch.group, []).extend(rows[:, 0].tolist())
    assert most_needed < made.between < 1.2 * most_needed + 100
    for number, group in enumerate(GROUPS):
        assert sorted(crops[number]) == list(range(50 * len(group.views)))
    if most == 1 << 28:
        assert len(made.launches) == 4  # one for each size and filter


@pytest.mark.parametrize("interpolation", get_args(Interpolation))
@pytest.mark.parametrize("side", [32, 224])
def test_kernels_compile_for_a_gpu(side: int, interpolation: Interpolation) -> None:
    """For Hopper, without one, since Triton brings its assembler."""
    pytest.importorskip("triton")
    from fastsimsiam.loaders import crop_kernels

    constants = {"SIDE": side, "CUBIC": interpolation == "bicubic", "COLUMNS": crop_table.COLUMNS}
    for kernel, shape, loaded, stored in (
        (crop_kernels.vertical_kernel, crop_kernels.vertical_tile(side), "frames", "between"),
        (crop_kernels.horizontal_kernel, crop_kernels.HORIZONTAL, "between", "crops"),
    ):
        rows, pixels, warps = shape
        ptx = compiled(kernel, constants | {"ROWS": rows, "PIXELS": pixels}, warps)
        each = 3 * rows * pixels // (32 * warps)  # pixels of a thread, in three colors
        bits = {"frames": "b8", "between": "b16", "crops": "b8"}
        assert ptx.count(f"ld.global.{bits[loaded]}") >= each
        assert ptx.count(f"st.global.{bits[stored]}") >= each
        # A load under a condition costs three instructions more, and a conversion of it is slow.
        assert not [line for line in ptx.splitlines() if "ld.global.b8" in line and "@" in line]


def compiled(kernel: Any, constants: dict[str, Any], warps: int) -> str:
    """The code of a kernel for launches as `crop_resize` makes them."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {"frames": "*u8", "table": "*i64", "between": "*u16", "crops": "*u8"}
    names = kernel.arg_names
    attributes = {
        (at,): [["tt.divisibility", 16]] for at, name in enumerate(names) if name in types
    }
    signature = {name: types.get(name, "constexpr") for name in names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": warps, "num_stages": 1, "enable_fp_fusion": True}
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    ptx: str = built.asm["ptx"]
    return ptx
