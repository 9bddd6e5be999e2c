"""Convolutions of small maps on a CPU: oneDNN's kernels beside products of patches and weights.

    python -m benchmarks.small_maps --json benchmarks/results/small-maps.json

The 3x3 convolutions of ResNet-18's last stages, 64 images, forward and backward. Both implementations
alternate in one process; the best time of each counts. The result is the reason for the size limit in
fastsimsiam/models/small_convolutions.py.
"""

import time
from typing import Any

import torch
from torch import nn

from benchmarks.harness import conclude, part_parser
from fastsimsiam.models.small_convolutions import SmallMapConv2d

# (channels, side of the map), as in ResNet-18 at 32, 64, 96 and 128 pixels.
_SHAPES = ((512, 1), (512, 2), (512, 3), (256, 2), (256, 4), (512, 4))
_IMAGES = 64


class _Product(SmallMapConv2d):
    """`SmallMapConv2d` that takes the product for maps of any size."""

    largest_map = 1 << 30


def measure(channels: int, side: int, dtype: torch.dtype, rounds: int) -> dict[str, float]:
    """Implementation -> milliseconds of a forward and backward pass."""
    image = torch.randn(_IMAGES, channels, side, side, dtype=dtype)
    image = image.to(memory_format=torch.channels_last).requires_grad_()
    classes = {"convolution": nn.Conv2d, "product": _Product}
    layers = {
        name: layer_class(channels, channels, 3, padding=1, bias=False, dtype=dtype).to(
            memory_format=torch.channels_last
        )
        for name, layer_class in classes.items()
    }
    best = dict.fromkeys(layers, float("inf"))
    for _ in range(rounds):
        for name, layer in layers.items():
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
    for shape in result["shapes"]:
        side = shape["side"]
        rows.append(
            f"| {shape['channels']} | {side}x{side} | {shape['dtype']} | "
            f"{shape['convolution']:.1f} | {shape['product']:.1f} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Runs the command line."""
    parser = part_parser(__doc__, rounds=20)
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
