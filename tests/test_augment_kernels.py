"""The photometric part as kernels gives the views that torch operations give."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastsimsiam.augment.photometric import Photometric
from fastsimsiam.augment.table import COLUMNS, TILES, Tiles, coefficients, fits
from fastsimsiam.config.views import IMAGENET_PIXELS, ViewSpec
from fastsimsiam.plan.views import draw_views

_INTERPRETED = """
import itertools
from dataclasses import replace
import numpy as np
import torch
from fastsimsiam.augment import fused
from fastsimsiam.augment.table import Tiles, coefficients
from fastsimsiam.augment.photometric import Photometric
from fastsimsiam.config.views import NormalizeConfig, ViewSpec
from fastsimsiam.plan.views import draw_views

LEVELS = NormalizeConfig(mean=(0.0, 0.0, 0.0), std=(1 / 255,) * 3)
rng = np.random.default_rng(0)

def batch(specs, size, views, side):
    # Not noise alone: a blur would leave one gray, and contrast would have nothing to do.
    coarse = rng.integers(0, 256, (size, views, 1, 1, 3))
    pixels = (coarse + rng.integers(-60, 60, (size, views, side, side, 3))).clip(0, 255)
    sizes = np.full((size, 2), side, np.int32)
    table = draw_views(specs, seed=0, epoch=0, index=np.arange(size), sizes=sizes)
    return torch.as_tensor(pixels.astype(np.uint8)), table

def tensors(table):
    return {name: torch.as_tensor(value) for name, value in table.photometric().items()}

def errors(specs, sides, crops, table):
    # (V, B): the largest difference of each image, in gray levels.
    used = fused.photometric_views
    calls = []
    fused.photometric_views = lambda *operands: calls.append(0) or used(*operands)
    ours = Photometric(specs, sides, normalize=LEVELS, fused=True)(crops, tensors(table))
    fused.photometric_views = used
    assert calls, "the kernels were used"
    wanted = Photometric(specs, sides, normalize=LEVELS)(crops, tensors(table))
    for view, other in zip(ours, wanted, strict=True):
        assert view.shape == other.shape and view.stride() == other.stride()
    pairs = zip(ours, wanted, strict=True)
    return torch.stack([(a - b).abs().amax((1, 2, 3)) for a, b in pairs])

# Blurred images are products of float16; others are exact, but for a mean between two levels.
def check(specs, sides, crops, table, least_blurred=1):
    found, blurred = errors(specs, sides, crops, table), torch.as_tensor(table.blur_sigma.T) > 0
    assert blurred.sum() >= least_blurred
    print("plain", found[~blurred].max().item(), "blurred", found[blurred].max().item())
    assert found[~blurred].max() < 1e-3
    assert found[blurred].max() < 0.5

strong = ViewSpec(jitter=1.0, hue=0.5, brightness=0.8, contrast=0.8, saturation=0.8)
specs = (strong, replace(strong, grayscale=0.5, grayscale_first=True))
fused.TILES = Tiles(rows=32, cols=64, block=256, part=256, sums_block=128)

# Every order of the four operations, in an image of an odd side and several tiles.
crops, table = batch(specs, 24, 2, 23)
orders = list(itertools.permutations(range(4)))
table.order[:, 0] = orders
table.order[:, 1] = orders[::-1]
check(specs, (23, 23), (crops,), table, 12)

# Solarize: where two results differ by a little at its threshold, they do by a level behind it.
bright = tuple(replace(spec, solarize=0.7) for spec in specs)
crops, table = batch(bright, 8, 2, 20)
assert errors(bright, (20, 20), (crops,), table).max() < 1.5
calm = (ViewSpec(solarize=0.5, jitter=0.0, blur=0.0, grayscale=0.0),)
crops, table = batch(calm, 8, 1, 20)
assert 0 < table.solarize.sum() < 8 and (crops == 128).any()
assert errors(calm, (20,), (crops,), table).max() < 1e-3

# Two sizes, one view without anything; a wider blur; what is drawn but not asked for stays undone.
mixed = (ViewSpec(blur_sigma=(2.5, 2.6), blur=1.0), ViewSpec(size=9), ViewSpec(blur=1.0, flip=1.0))
crops, table = batch(mixed, 2, 3, 40)
small = torch.as_tensor(rng.integers(0, 256, (2, 1, 9, 9, 3), dtype=np.uint8))
check(mixed, (40, 9, 40), (crops[:, ::2], small), table)
nothing = (ViewSpec(flip=0.0, jitter=0.0, grayscale=0.0, blur=0.0),)
crops, table = batch(specs[:1], 4, 1, 16)
assert errors(nothing, (16,), (crops,), table).max() < 1e-3

# With the tiles of a GPU, in bfloat16, to which the interpreter does not round but cuts off; compiled.
fused.TILES = Tiles()
crops, table = batch(specs, 4, 2, 60)
module = Photometric(specs, (60, 60), torch.bfloat16, fused=True)
views = module((crops,), tensors(table))
wanted = Photometric(specs, (60, 60))((crops,), tensors(table))
whole = torch.compile(module, fullgraph=True, dynamic=False, backend="aot_eager")
for ours, compiled, theirs in zip(views, whole((crops,), tensors(table)), wanted, strict=True):
    assert ours.dtype == compiled.dtype == torch.bfloat16
    assert torch.equal(ours, compiled)
    torch.testing.assert_close(ours.float(), theirs, rtol=2**-7, atol=0.5 / 255 / 0.22)

flat = {name: value.flatten(0, 1) for name, value in tensors(table).items()}
read = coefficients(flat, None, flat["grayscale"], LEVELS, flip=True, radius=6)
operands = crops, read, torch.bfloat16, True, False, 6
torch.library.opcheck(fused.photometric_views, operands)
print("same")
"""


def test_kernels_make_the_views() -> None:
    """By Triton's interpreter, which needs no GPU."""
    pytest.importorskip("triton")
    words = [sys.executable, "-c", _INTERPRETED]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    print(done.stdout)
    assert done.stdout.splitlines()[-1:] == ["same"], done.stderr[-2000:]


@pytest.mark.parametrize("output", ["bf16", "fp32"])
@pytest.mark.parametrize("side", [224, 96])
def test_kernels_compile_for_a_gpu(side: int, output: str) -> None:
    """Hardly a register is spilled, and with the blur's products on tensor cores."""
    pytest.importorskip("triton")
    from fastsimsiam.augment import kernels

    pixels, part = side * side, TILES.part_of(side * side)
    parts = -(-pixels // part)
    used = {"SIDE": side, "PARTS": parts, "JITTER": True, "SOLARIZE": output == "fp32"}
    tile = {"RADIUS": 6, "ROWS": TILES.rows, "COLS": TILES.cols}
    if output == "bf16":
        sizes = {"PIXELS": pixels, "PARTS": parts, "PART": part, "BLOCK": TILES.sums_block}
        assert_compiles(kernels.gray_sums_kernel, sizes, TILES.sums_warps, output)
        # As a launch does where an image has one view.
        single = {"batch": 1, "count": 1} | used | {"BLOCK": TILES.block}
        assert_compiles(kernels.plain_kernel, single, TILES.warps, output)
    assert_compiles(kernels.plain_kernel, used | {"BLOCK": TILES.block}, TILES.warps, output)
    most = TILES.blur_registers
    ptx = assert_compiles(kernels.blurred_kernel, used | tile, TILES.blur_warps, output, most)
    assert ptx.count("wgmma.mma_async") >= 6


def assert_compiles(
    kernel: Any, constants: dict[str, Any], warps: int, output: str, most: int | None = None
) -> str:
    """Compiles for Hopper, without one, since Triton brings its assembler; returns the PTX."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = {"crops": "*u8", "table": "*fp32", "sums": "*fp32", "views": f"*{output}"}
    types |= {"batch": "i32", "count": "i32"} | dict.fromkeys(constants, "constexpr")
    signature = {name: types.get(name, "fp32") for name in kernel.arg_names}
    attributes = {
        (at,): [["tt.divisibility", 16]]
        for at, kind in enumerate(signature.values())
        if kind.startswith("*")
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": warps, "num_stages": 1, "enable_fp_fusion": True}
    options |= {"maxnreg": most} if most else {}
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    reader = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if reader.exists():
        cubin = next(path for path in built.metadata_group.values() if path.endswith("cubin"))
        words = [str(reader), "-res-usage", cubin]
        usage = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        registers, stack = (int(re.search(rf"{w}:(\d+)", usage)[1]) for w in ("REG", "STACK"))
        print(kernel.__name__, constants, f"{registers} registers, {stack} bytes spilled")
        # A handful of words where registers are limited, so that two programs fit a processor.
        assert stack <= (64 if most else 0)
        assert registers * 32 * warps * 2 <= 65536
    return str(built.asm["ptx"])


def test_parts_of_an_image_cover_it_once() -> None:
    for pixels in (1, 1024, 96 * 96, 224 * 224, 331 * 331):
        part = TILES.part_of(pixels)
        assert part % TILES.sums_block == 0
        assert part <= TILES.part
        parts = -(-pixels // part)
        assert parts == -(-pixels // TILES.part)
        assert pixels / parts > part - TILES.sums_block
    assert Tiles(part=256, sums_block=128).part_of(500) == 256


def test_without_a_gpu_and_with_a_wide_blur_nothing_changes() -> None:
    assert fits(6)
    assert not fits(40)
    specs = (ViewSpec(solarize=0.5),)
    sizes = np.full((4, 2), 32, np.int32)
    table = draw_views(specs, seed=0, epoch=0, index=np.arange(4), sizes=sizes)
    photometric = {name: torch.as_tensor(value) for name, value in table.photometric().items()}
    crops = (torch.randint(0, 256, (4, 1, 32, 32, 3), dtype=torch.uint8),)
    fused, plain = (Photometric(specs, (32,), fused=on)(crops, photometric) for on in (True, False))
    assert torch.equal(fused[0], plain[0])


def test_a_table_has_finite_coefficients() -> None:
    specs = (ViewSpec(), ViewSpec(blur=0.0, jitter=0.0))
    sizes = np.full((16, 2), 32, np.int32)
    table = draw_views(specs, seed=0, epoch=0, index=np.arange(16), sizes=sizes)
    flat = {n: torch.as_tensor(v).flatten(0, 1) for n, v in table.photometric().items()}
    made = coefficients(flat, flat["grayscale"], None, IMAGENET_PIXELS, flip=False, radius=6)
    assert made.shape == (32, COLUMNS)
    assert made.dtype == torch.float32
    assert made.isfinite().all()
