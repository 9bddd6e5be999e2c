"""Convolutions of small maps on a CPU: oneDNN's beside the product of patches and kernels.

    python -m benchmarks.small_maps --json benchmarks/results/small-maps.json

The 3x3 convolutions of ResNet-18's last stages, 64 images, forward and backward, both ways in turns in
one process; the best time of each counts. It shows where fastsimsiam/small_maps.py draws its line.
"""

import time
from typing import Any

import torch
from torch import nn

from benchmarks.harness import conclude, parser_of_parts
from fastsimsiam.models.small_convolutions import SmallMapConv2d

# Channels and side of the map, which ResNet-18 has at 32, 64, 96 and 128 pixels.
_SHAPES = ((512, 1), (512, 2), (512, 3), (256, 2), (256, 4), (512, 4))
_IMAGES = 64


class _Product(SmallMapConv2d):
    """Always the product."""

    largest_map = 1 << 30


def measure(channels: int, side: int, dtype: torch.dtype, rounds: int) -> dict[str, float]:
    """Milliseconds of a forward and backward pass, by either way."""
    image = torch.randn(_IMAGES, channels, side, side, dtype=dtype)
    image = image.to(memory_format=torch.channels_last).requires_grad_()
    layers = {"convolution": nn.Conv2d, "product": _Product}
    made = {
        name: kind(channels, channels, 3, padding=1, bias=False, dtype=dtype).to(
            memory_format=torch.channels_last
        )
        for name, kind in layers.items()
    }
    best = dict.fromkeys(made, float("inf"))
    for _ in range(rounds):
        for name, layer in made.items():
            started = time.perf_counter()
            output = layer(image)
            output.backward(output.detach())
            best[name] = min(best[name], time.perf_counter() - started)
    return {name: 1e3 * seconds for name, seconds in best.items()}


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    rows = [
        "| channels | map | dtype | convolution, ms | product, ms |",
        "|---:|---|---|---:|---:|",
    ]
    for found in result["shapes"]:
        side = found["side"]
        rows.append(
            f"| {found['channels']} | {side}x{side} | {found['dtype']} | "
            f"{found['convolution']:.1f} | {found['product']:.1f} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Runs the command line."""
    parser = parser_of_parts(__doc__, rounds=20)
    args = parser.parse_args()
    shapes = [
        {"channels": channels, "side": side, "dtype": str(dtype).removeprefix("torch.")}
        | measure(channels, side, dtype, args.rounds)
        for dtype in (torch.bfloat16, torch.float32)
        for channels, side in _SHAPES
    ]
    conclude(args, {"regime": "small-maps", "images": _IMAGES, "shapes": shapes}, table)


if __name__ == "__main__":
    main()
