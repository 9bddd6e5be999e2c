"""BatchNorm with the following ReLU and addition, on feature maps of ResNet-50 at 224 pixels.

    python -m benchmarks.batch_norm --json benchmarks/results/batch-norm.json

Measures in seconds what the variants of the step take minutes for. The implementations alternate in one
process, forward and backward pass; the best time of each counts:
  eager        torch's kernels, one after the other
  compiled     Inductor's kernels
  recomputed   Inductor's kernels, the ReLU's mask recomputed from BatchNorm's input
               (fastsimsiam/models/fused_batch_norm)
  sums         recomputed, with the sums by custom operators (Triton kernels on a GPU)
  channel-sums the custom operators alone, on a GPU with several tile sizes
"GB/s" is the least traffic of both passes over the time: 8 times the map, 11 times with an addition.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import conclude, part_parser
from fastsimsiam.doctor.measure import wait_for
from fastsimsiam.models.fused_batch_norm.fuse import FusedBatchNorm2d
from fastsimsiam.models.fused_batch_norm.split import Tile
from fastsimsiam.models.fused_batch_norm.sums import gradient_sums, is_written, moments

# Channels, side of the map, and whether a residual branch is added.
_SHAPES = ((64, 112, False), (64, 56, False), (256, 56, True), (512, 28, True), (2048, 7, True))
_PASSES = {False: 8, True: 11}
_PASSES_OF_SUMS = {False: 3, True: 5}
_TILES = (
    Tile(),
    Tile(programs=1056),
    Tile(stages=3),
    Tile(rows=64, programs=1056),
    Tile(rows=64, warps=8, programs=1056),
    Tile(rows=64, warps=8, programs=1056, stages=3),
)
_SUMS = "channel-sums"
_Pass = Callable[[], object]


def implementations(x: Tensor, residual: Tensor | None, gradient: Tensor) -> dict[str, _Pass]:
    """Name -> a function that runs one forward and backward pass."""
    channels, device = x.shape[1], x.device
    norm = nn.BatchNorm2d(channels, device=device)
    maps = [x] if residual is None else [x, residual]
    for operand in maps:
        operand.requires_grad_()

    def plain(x: Tensor, residual: Tensor | None = None) -> Tensor:
        normed = norm(x)
        return F.relu(normed if residual is None else normed + residual)

    def fused(opaque: bool) -> _Pass:
        layer = FusedBatchNorm2d(channels, device=device)
        layer.opaque = opaque
        return compiled(lambda *maps: layer(*maps, relu=True), layer)

    def compiled(function: Callable[..., Tensor], layer: nn.Module) -> _Pass:
        return passes(torch.compile(function, fullgraph=True, dynamic=False), layer)

    def passes(function: Callable[..., Tensor], layer: nn.Module) -> _Pass:
        inputs = [*maps, *layer.parameters()]
        return lambda: torch.autograd.grad(function(*maps), inputs, gradient)

    candidates = {
        "eager": passes(plain, norm),
        "compiled": compiled(plain, norm),
        "recomputed": fused(opaque=False),
        "sums": fused(opaque=True),
    }
    vector = torch.ones(channels, device=device)
    with torch.no_grad():
        output = None if residual is None else plain(*maps)
    operands = gradient, None, x.detach(), vector, vector, vector, output, True
    if device.type != "cuda":
        return candidates | {_SUMS: lambda: (moments(x.detach()), gradient_sums(*operands))}
    from fastsimsiam.models.fused_batch_norm import kernels

    def channel_sums(tile: Tile) -> _Pass:
        keep = is_written(None, output)
        return lambda: (
            kernels.moments(x.detach(), tile),
            kernels.gradient_sums(*operands, keep, tile),
        )

    return candidates | {f"{_SUMS} {tile}": channel_sums(tile) for tile in _TILES}


def measure(
    images: int, channels: int, side: int, added: bool, rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Implementation -> seconds of each round, in bfloat16."""

    def random_map() -> Tensor:
        x = torch.randn(images, channels, side, side, device=device, dtype=torch.bfloat16)
        return x.to(memory_format=torch.channels_last)

    torch.compiler.reset()
    candidates = implementations(random_map(), random_map() if added else None, random_map())
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):  # the first round compiles
        for name, run in candidates.items():
            wait_for(device)
            started = time.perf_counter()
            run()
            wait_for(device)
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    rows = [
        "| channels | map | added | implementation | ms | GB/s |",
        "|---:|---|---|---|---:|---:|",
    ]
    for shape in result["shapes"]:
        size = 2 * shape["images"] * shape["channels"] * shape["side"] ** 2
        for name, seconds in shape["seconds"].items():
            passes = (_PASSES_OF_SUMS if name.startswith(_SUMS) else _PASSES)[shape["added"]]
            best = min(seconds)
            rows.append(
                f"| {shape['channels']} | {shape['side']}x{shape['side']} | "
                f"{'yes' if shape['added'] else 'no'} | {name} | {1e3 * best:.2f} | "
                f"{passes * size / best / 1e9:,.0f} |"
            )
    return "\n".join(rows)


def main() -> None:
    """Runs the command line."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", 0) if gpu else torch.device("cpu")
    parser = part_parser(__doc__, rounds=20)
    parser.add_argument(
        "--images",
        type=int,
        default=256 if gpu else 8,
        help="images of the largest map; smaller maps get more images, for the same number of bytes",
    )
    args = parser.parse_args()
    largest = max(channels * side**2 for channels, side, _ in _SHAPES)
    shapes = []
    for channels, side, added in _SHAPES:
        # With few bytes, kernels would finish before the host has launched the next one.
        images = args.images * largest // (channels * side**2)
        seconds = measure(images, channels, side, added, args.rounds, device)
        shapes.append(
            {
                "images": images,
                "channels": channels,
                "side": side,
                "added": added,
                "seconds": seconds,
            }
        )
    conclude(args, {"regime": "batch-norm", "shapes": shapes}, table)


if __name__ == "__main__":
    main()
