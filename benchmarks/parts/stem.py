"""The first convolution in other shapes: three channels fill neither tensor cores nor a CPU's vectors.

    python -m benchmarks.stem --json benchmarks/results/stem.json

The shapes alternate in one process, forward and backward pass (gradients of the weights alone: views
need none), compiled on a GPU; the best time of each counts. All have the same result up to rounding:
  plain           the 7x7 convolution of stride 2 on three channels
  padded          channels padded with zeros to eight
  space-to-depth  2x2 pixels turned into channels: a 4x4 convolution of stride 1 on 12 channels, padded
                  to 16 (fastsimsiam/models/fused_stem/convolution.py; the rearrangement is timed, too)
And the whole stem, convolution to max-pooling: torch's layers beside fastsimsiam/models/fused_stem.
On a GPU also the kernels of fastsimsiam/models/fused_stem by themselves, in several tiles, with the
bytes that they need over their time.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet18

from benchmarks.harness import conclude, part_parser
from fastsimsiam.doctor.measure import wait_for
from fastsimsiam.models.fused_stem import pool
from fastsimsiam.models.fused_stem.convolution import (
    BEFORE,
    SpaceToDepthConv2d,
    fits,
    space_to_depth,
)
from fastsimsiam.models.fused_stem.fuse import fuse_stem
from fastsimsiam.models.fused_stem.tiles import PoolTile, RearrangeTile

_SHAPES = (64, 224)
_POOL_TILES = (
    PoolTile(),
    PoolTile(pixels=32, warps=8),
    PoolTile(pixels=32),
    PoolTile(pixels=8, warps=2),
)
_REARRANGE_TILES = (RearrangeTile(), RearrangeTile(pixels=64), RearrangeTile(pixels=256))
_MULTIPLE = 8
"""Channels of bfloat16 in 16 bytes, the size of a tensor core's loads."""


def pad_channels(tensor: Tensor) -> Tensor:
    """Pads the channels of (N, C, H, W) with zeros to a multiple of eight; returns channels_last."""
    missing = -tensor.shape[1] % _MULTIPLE
    padded = F.pad(tensor, (0, 0, 0, 0, 0, missing))
    return padded.contiguous(memory_format=torch.channels_last)


class PaddedConv2d(nn.Conv2d):
    """A convolution with padded input channels."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(pad_channels(input), pad_channels(weight), bias)


STEMS: dict[str, type[nn.Conv2d]] = {
    "plain": nn.Conv2d,
    "padded": PaddedConv2d,
    "space-to-depth": SpaceToDepthConv2d,
}


def use_stem(module: nn.Module, shape: str) -> None:
    """Replaces the convolution of images in a module by one of STEMS, in place.

    Raises:
        ValueError: the module does not have exactly one such convolution; or `space-to-depth` is asked
            for and stride, kernel or padding are not those of a ResNet.
    """
    stems = [m for m in module.modules() if type(m) is nn.Conv2d and m.in_channels == 3]
    if len(stems) != 1:
        raise ValueError(f"{len(stems)} convolutions have three input channels")
    (stem,) = stems
    if shape == "space-to-depth" and not fits(stem):
        raise ValueError("space-to-depth needs stride 2, a 7x7 kernel and 3 pixels of padding")
    stem.__class__ = STEMS[shape]


def measure(images: int, side: int, rounds: int, device: torch.device) -> dict[str, float]:
    """Shape -> milliseconds of a forward and backward pass, compiled on a GPU."""
    torch.backends.cudnn.benchmark = True
    view = torch.randn(images, 3, side, side, device=device, dtype=torch.bfloat16)
    view = view.to(memory_format=torch.channels_last)
    candidates: dict[str, Any] = {}
    for name in STEMS:
        stem = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False).to(device)
        stem.to(memory_format=torch.channels_last)
        use_stem(stem, name)
        run = torch.compile(stem, dynamic=False) if device.type == "cuda" else stem
        candidates[name] = run, stem
    best = dict.fromkeys(candidates, float("inf"))
    gradient = torch.randn(images, 64, side // 2, side // 2, device=device, dtype=torch.bfloat16)
    gradient = gradient.to(memory_format=torch.channels_last)
    for _ in range(rounds):
        for name, (run, stem) in candidates.items():
            wait_for(device)
            started = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16):
                output = run(view)
            torch.autograd.grad(output, stem.weight, gradient)
            wait_for(device)
            best[name] = min(best[name], time.perf_counter() - started)
    return {name: 1e3 * seconds for name, seconds in best.items()}


def measure_whole(images: int, side: int, rounds: int, device: torch.device) -> dict[str, float]:
    """Milliseconds of a ResNet's stem, forward and backward, compiled: torch's layers and the fused."""
    torch.backends.cudnn.benchmark = True
    view = torch.randn(images, 3, side, side, device=device, dtype=torch.bfloat16)
    view = view.to(memory_format=torch.channels_last)
    shape = (images, 64, side // 4, side // 4)
    gradient = torch.randn(shape, device=device, dtype=torch.bfloat16)
    gradient = gradient.to(memory_format=torch.channels_last)
    best = {}
    for name in ("layers", "fused"):
        torch.compiler.reset()
        network = resnet18()
        if name == "fused":
            fuse_stem(network)
        layers = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
        layers = layers.to(device).to(memory_format=torch.channels_last)
        run = torch.compile(layers, dynamic=False) if device.type == "cuda" else layers
        weights = list(layers.parameters())
        for number in range(rounds + 1):
            wait_for(device)
            started = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16):
                output = run(view)
            torch.autograd.grad(output, weights, gradient)
            wait_for(device)
            seconds = time.perf_counter() - started
            if number:  # the first compiles
                best[name] = min(best.get(name, seconds), seconds)
    return {name: 1e3 * seconds for name, seconds in best.items()}


def measure_kernels(images: int, rounds: int, device: torch.device) -> list[dict[str, Any]]:
    """Kernel and tile, milliseconds and GB of the bytes that it needs, for views of 224 pixels."""
    from fastsimsiam.models.fused_stem import kernels

    def random_map(channels: int, side: int) -> Tensor:
        made = torch.randn(images, channels, side, side, device=device, dtype=torch.bfloat16)
        return made.to(memory_format=torch.channels_last)

    view, x = random_map(3, 224), random_map(64, 112)
    vector, rearranged, gradient = torch.ones(64, device=device), space_to_depth(view), x.clone()
    pooled, position, largest = pool.norm_relu_pool(x, vector, vector)
    outputs, alone, vectors = (pooled, position, largest), (pooled, position, None), (vector,) * 3
    pools: dict[str, tuple[list[Tensor], Callable[[PoolTile], None]]] = {
        "pool": ([x, pooled, position], lambda t: kernels.pool(x, None, None, alone, t)),
        "norm, pool": ([x, *outputs], lambda t: kernels.pool(x, vector, vector, outputs, t)),
        "pool, gradient": (
            [x, pooled, position],
            lambda t: kernels.pool_gradient(pooled, position, None, (None,) * 3, gradient, t),
        ),
        "norm, pool, gradient": (
            [x, gradient, pooled, position],
            lambda t: kernels.pool_gradient(pooled, position, x, vectors, gradient, t),
        ),
    }
    candidates: list[tuple[str, list[Tensor], Callable[[], None]]] = [
        (f"{name}: {tile}", maps, lambda run=run, tile=tile: run(tile))  # type: ignore[misc]
        for name, (maps, run) in pools.items()
        for tile in _POOL_TILES
    ]
    candidates += [
        (
            f"space to depth: {tile}",
            [view, rearranged],
            lambda tile=tile: kernels.space_to_depth(view, rearranged, BEFORE, tile),  # type: ignore[misc]
        )
        for tile in _REARRANGE_TILES
    ]
    rows = []
    for name, maps, run in candidates:
        run()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(rounds):
            run()
        end.record()
        wait_for(device)
        size = sum(tensor.numel() * tensor.element_size() for tensor in maps)
        rows.append({"kernel": name, "ms": start.elapsed_time(end) / rounds, "gb": size / 1e9})
    return rows


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    rows = [
        f"| image | {' | '.join(f'{name}, ms' for name in STEMS)} |",
        f"|---|{'---:|' * len(STEMS)}",
    ]
    for row in result["shapes"]:
        times = " | ".join(f"{row['ms'][name]:.2f}" for name in STEMS)
        rows.append(f"| {row['side']}x{row['side']} | {times} |")
    if "whole" in result["shapes"][0]:
        rows += ["", "| image | whole stem, ms | fused, ms |", "|---|---:|---:|"]
        for row in result["shapes"]:
            whole = row["whole"]
            rows.append(
                f"| {row['side']}x{row['side']} | {whole['layers']:.2f} | {whole['fused']:.2f} |"
            )
    if "kernels" in result:
        rows += ["", "| kernel | ms | GB/s |", "|---|---:|---:|"]
    for row in result.get("kernels", []):
        rate = row["gb"] / row["ms"] * 1e3
        rows.append(f"| {row['kernel']} | {row['ms']:.3f} | {rate:,.0f} |")
    return "\n".join(rows)


def main() -> None:
    """Runs the command line."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", 0) if gpu else torch.device("cpu")
    parser = part_parser(__doc__, rounds=30)
    parser.add_argument("--images", type=int, default=256 if gpu else 32, help="images per batch")
    parser.add_argument(
        "--sides", type=int, nargs="+", default=_SHAPES, help="image sides in pixels"
    )
    args = parser.parse_args()
    shapes = []
    for side in args.sides:
        settings = args.images, side, args.rounds, device
        shapes.append({"side": side, "ms": measure(*settings), "whole": measure_whole(*settings)})
    result: dict[str, Any] = {"regime": "stem", "images": args.images, "shapes": shapes}
    if gpu:
        result["kernels"] = measure_kernels(args.images, args.rounds, device)
    conclude(args, result, table)


if __name__ == "__main__":
    main()
