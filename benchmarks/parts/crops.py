"""Crops on the device: two views of a batch, from frames that lie in its memory.

    python -m benchmarks.crops

On a GPU by kernels, with several tiles of either pass, and by matrix products; elsewhere by products
alone. The candidates alternate in one process; the best round counts. "ms" is the time of a batch when
one follows the other, "host" how long the host takes to launch one. The boxes are those of SimSiam's
recipe: 20% to 100% of the frame.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, get_args

import numpy as np
import torch

from benchmarks.harness import conclude, part_parser
from fastsimsiam.config.views import Interpolation, ViewSpec
from fastsimsiam.doctor.measure import wait_for
from fastsimsiam.loaders import device_crop
from fastsimsiam.loaders.base import ViewGroup
from fastsimsiam.plan.views import draw_views

# Batch, height and width of the frames, and side of the crops: photos, a resident set, and CIFAR.
_SHAPES = ((512, 375, 500, 224), (256, 160, 160, 128), (512, 32, 32, 32))
# Pixels, most columns, and warps of a tile; the default first.
_VERTICAL = (
    (256, 128, 1),
    (512, 256, 1),
    (512, 256, 2),
    (1024, 512, 4),
    (128, 128, 1),
    (512, 128, 1),
)
# Rows, columns, and warps.
_HORIZONTAL = ((32, 32, 4), (16, 32, 4), (16, 32, 2), (8, 32, 1), (64, 32, 8), (16, 64, 4))
_IN_A_ROW = 5


@contextmanager
def products() -> Iterator[None]:
    """Crops are made by matrix products."""
    device_crop.KERNELS = False
    try:
        yield
    finally:
        device_crop.KERNELS = True


@contextmanager
def tiles(vertical: tuple[int, int, int], horizontal: tuple[int, int, int]) -> Iterator[None]:
    """Crops are made by kernels with these tiles."""
    from fastsimsiam.loaders import crop_kernels

    usual = crop_kernels.VERTICAL, crop_kernels.HORIZONTAL
    crop_kernels.VERTICAL, crop_kernels.HORIZONTAL = vertical, horizontal
    try:
        yield
    finally:
        crop_kernels.VERTICAL, crop_kernels.HORIZONTAL = usual


def candidates(device: torch.device) -> dict[str, Callable[[], Any]]:
    """Name -> a context in which crops are made that way."""
    found: dict[str, Callable[[], Any]] = {"products": products}
    if device.type == "cuda":
        for tile in _VERTICAL:
            found[f"vertical {tile}"] = lambda tile=tile: tiles(tile, _HORIZONTAL[0])
        for tile in _HORIZONTAL[1:]:
            found[f"horizontal {tile}"] = lambda tile=tile: tiles(_VERTICAL[0], tile)
    return found


def measure(
    shape: tuple[int, int, int, int],
    interpolation: Interpolation,
    rounds: int,
    device: torch.device,
) -> dict[str, dict[str, float]]:
    """Candidate -> the least milliseconds per batch, and of the host to launch one."""
    batch, height, width, side = shape
    pixels = torch.randint(256, (batch * height * width, 3), dtype=torch.uint8, device=device)
    index = np.arange(batch)
    sizes = np.tile(np.array([height, width], np.int32), (batch, 1))
    box = draw_views((ViewSpec(), ViewSpec()), seed=0, epoch=0, index=index, sizes=sizes).box
    group = ViewGroup(side=side, views=[0, 1], interpolations=(interpolation,) * 2)
    places = index * height * width, np.full(batch, width)
    best: dict[str, dict[str, float]] = {}
    for number in range(rounds + 1):  # the first round compiles
        for name, chosen in candidates(device).items():
            with chosen():
                wait_for(device)
                started = time.perf_counter()
                for _ in range(_IN_A_ROW):
                    device_crop.crop_views(pixels, *places, box, [group])
                launched = time.perf_counter()
                wait_for(device)
                done = time.perf_counter()
            spent = {"ms": 1e3 * (done - started) / _IN_A_ROW}
            spent["host_ms"] = 1e3 * (launched - started) / _IN_A_ROW
            if number:
                least = best.setdefault(name, spent)
                best[name] = {key: min(least[key], value) for key, value in spent.items()}
    return best


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    rows = [
        "| batch | frame | side | filter | candidate | ms | host |",
        "|---:|---|---:|---|---|---:|---:|",
    ]
    for case in result["cases"]:
        batch, height, width, side = case["shape"]
        rows += [
            f"| {batch} | {width}x{height} | {side} | {case['filter']} | {name} | {spent['ms']:.3f} | "
            f"{spent['host_ms']:.3f} |"
            for name, spent in case["best"].items()
        ]
    return "\n".join(rows)


def main() -> None:
    """Runs the command line."""
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    args = part_parser(__doc__, rounds=5).parse_args()
    shapes = _SHAPES if device.type == "cuda" else [(8, *shape[1:]) for shape in _SHAPES]
    cases = [
        {"shape": shape, "filter": name, "best": measure(shape, name, args.rounds, device)}
        for shape in shapes
        for name in get_args(Interpolation)
    ]
    conclude(args, {"regime": "crops", "cases": cases}, table)


if __name__ == "__main__":
    main()
