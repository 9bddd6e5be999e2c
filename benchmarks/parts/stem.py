"""The first convolution in other shapes: three channels do not fill a tensor core, nor a CPU's vectors.

    python -m benchmarks.stem --json benchmarks/results/stem.json

Forward and backward pass (of the weights alone: views need no gradient), in turns in one process; the
best time of each way counts, compiled on a GPU. Ways, all with the same result but for rounding:
  plain           as it is
  padded          channels filled up with zeros, to eight
  space-to-depth  2x2 pixels become channels, and the stride one: the 7x7 kernel is a 4x4 kernel of 12
                  channels, filled up to 16
"""

import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import conclude, parser_of_parts
from fastsimsiam.doctor.measure import wait_for

_SHAPES = (64, 224)
_MULTIPLE = 8
"""Channels of bfloat16 that are 16 bytes, what a tensor core's loads are made of."""


def fill_up(tensor: Tensor) -> Tensor:
    """(N, C, H, W) with zeros for channels, up to a multiple of eight; channels_last."""
    missing = -tensor.shape[1] % _MULTIPLE
    filled = F.pad(tensor, (0, 0, 0, 0, 0, missing))
    return filled.contiguous(memory_format=torch.channels_last)


class PaddedConv2d(nn.Conv2d):
    """A convolution whose input channels are filled up."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(fill_up(input), fill_up(weight), bias)


class SpaceToDepthConv2d(nn.Conv2d):
    """A convolution of stride 2 as one of stride 1, of half the side, four times the channels.

    The kernel begins one pixel earlier, with zeros, so that its side is even.
    """

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        assert not isinstance(self.padding, str)
        before = self.padding[0] + 1
        behind = self.kernel_size[0] - self.padding[0] - 2
        image = F.pixel_unshuffle(F.pad(input, (before, behind, before, behind)), 2)
        kernel = F.pixel_unshuffle(F.pad(weight, (1, 0, 1, 0)), 2)
        return F.conv2d(fill_up(image), fill_up(kernel), bias)


WAYS: dict[str, type[nn.Conv2d]] = {
    "plain": nn.Conv2d,
    "padded": PaddedConv2d,
    "space-to-depth": SpaceToDepthConv2d,
}


def use_stem(module: nn.Module, way: str) -> None:
    """Has the convolution of images inside a module done in another way, in place.

    Raises:
        ValueError: there is none, or more than one, or for space-to-depth its stride, kernel or padding
            are not a ResNet's.
    """
    stems = [m for m in module.modules() if type(m) is nn.Conv2d and m.in_channels == 3]
    if len(stems) != 1:
        raise ValueError(f"{len(stems)} convolutions have three input channels")
    (stem,) = stems
    fits = stem.stride == (2, 2) and stem.kernel_size == (7, 7) and stem.padding == (3, 3)
    if way == "space-to-depth" and not fits:
        raise ValueError("space-to-depth wants stride 2, a 7x7 kernel and 3 pixels of padding")
    stem.__class__ = WAYS[way]


def measure(images: int, side: int, rounds: int, device: torch.device) -> dict[str, float]:
    """Milliseconds of a forward and backward pass, by each way, compiled on a GPU."""
    torch.backends.cudnn.benchmark = True
    view = torch.randn(images, 3, side, side, device=device, dtype=torch.bfloat16)
    view = view.to(memory_format=torch.channels_last)
    made: dict[str, Any] = {}
    for name in WAYS:
        stem = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False).to(device)
        stem.to(memory_format=torch.channels_last)
        use_stem(stem, name)
        made[name] = (torch.compile(stem, dynamic=False) if device.type == "cuda" else stem, stem)
    best = dict.fromkeys(made, float("inf"))
    gradient = torch.randn(images, 64, side // 2, side // 2, device=device, dtype=torch.bfloat16)
    gradient = gradient.to(memory_format=torch.channels_last)
    for _ in range(rounds):
        for name, (run, stem) in made.items():
            wait_for(device)
            started = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16):
                output = run(view)
            torch.autograd.grad(output, stem.weight, gradient)
            wait_for(device)
            best[name] = min(best[name], time.perf_counter() - started)
    return {name: 1e3 * seconds for name, seconds in best.items()}


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    rows = [
        f"| image | {' | '.join(f'{way}, ms' for way in WAYS)} |",
        f"|---|{'---:|' * len(WAYS)}",
    ]
    for found in result["shapes"]:
        times = " | ".join(f"{found['ms'][way]:.2f}" for way in WAYS)
        rows.append(f"| {found['side']}x{found['side']} | {times} |")
    return "\n".join(rows)


def main() -> None:
    """Runs the command line."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", 0) if gpu else torch.device("cpu")
    parser = parser_of_parts(__doc__, rounds=30)
    parser.add_argument("--images", type=int, default=256 if gpu else 32, help="in a batch")
    args = parser.parse_args()
    shapes = [
        {"side": side, "ms": measure(args.images, side, args.rounds, device)} for side in _SHAPES
    ]
    conclude(args, {"regime": "stem", "images": args.images, "shapes": shapes}, table)


if __name__ == "__main__":
    main()
