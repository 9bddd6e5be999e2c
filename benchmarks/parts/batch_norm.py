"""BatchNorm with the ReLU and addition behind it, several ways, on maps of ResNet-50 at 224 pixels.

    python -m benchmarks.batch_norm --json benchmarks/results/batch-norm.json

A look at what the step's variants are made of, in seconds instead of minutes. Forward and backward pass
in turns in one process; the best time of each way counts. Ways:
  eager        torch's kernels, one after the other
  compiled     Inductor's
  recomputed   the same, with the ReLU's mask from BatchNorm's input (benchmarks/norm)
  sums         likewise, and the sums by operators of their own: Triton kernels on a GPU
  channel-sums these alone, on a GPU with tiles of several sizes
"GB/s" are those of the fewest bytes that both passes can do with: 8 times the map, 11 with an addition.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.harness import conclude, parser_of_parts
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
_Work = Callable[[], object]


def ways(x: Tensor, residual: Tensor | None, gradient: Tensor) -> dict[str, _Work]:
    """Way -> a forward and backward pass."""
    channels, device = x.shape[1], x.device
    norm = nn.BatchNorm2d(channels, device=device)
    maps = [x] if residual is None else [x, residual]
    for operand in maps:
        operand.requires_grad_()

    def plain(x: Tensor, residual: Tensor | None = None) -> Tensor:
        normed = norm(x)
        return F.relu(normed if residual is None else normed + residual)

    def fused(opaque: bool) -> _Work:
        layer = FusedBatchNorm2d(channels, device=device)
        layer.opaque = opaque
        return compiled(lambda *maps: layer(*maps, relu=True), layer)

    def compiled(function: Callable[..., Tensor], layer: nn.Module) -> _Work:
        return passes(torch.compile(function, fullgraph=True, dynamic=False), layer)

    def passes(function: Callable[..., Tensor], layer: nn.Module) -> _Work:
        wanted = [*maps, *layer.parameters()]
        return lambda: torch.autograd.grad(function(*maps), wanted, gradient)

    found = {
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
        return found | {_SUMS: lambda: (moments(x.detach()), gradient_sums(*operands))}
    from fastsimsiam.models.fused_batch_norm import kernels

    def sums_alone(tile: Tile) -> _Work:
        keep = is_written(None, output)
        return lambda: (
            kernels.moments(x.detach(), tile),
            kernels.gradient_sums(*operands, keep, tile),
        )

    return found | {f"{_SUMS} {tile}": sums_alone(tile) for tile in _TILES}


def measure(
    images: int, channels: int, side: int, added: bool, rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Way -> seconds of each round, in bfloat16."""

    def a_map() -> Tensor:
        made = torch.randn(images, channels, side, side, device=device, dtype=torch.bfloat16)
        return made.to(memory_format=torch.channels_last)

    torch.compiler.reset()
    made = ways(a_map(), a_map() if added else None, a_map())
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for number in range(rounds + 1):  # the first compiles
        for name, work in made.items():
            wait_for(device)
            started = time.perf_counter()
            work()
            wait_for(device)
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    rows = ["| channels | map | added | way | ms | GB/s |", "|---:|---|---|---|---:|---:|"]
    for found in result["shapes"]:
        size = 2 * found["images"] * found["channels"] * found["side"] ** 2
        for name, seconds in found["seconds"].items():
            passes = (_PASSES_OF_SUMS if name.startswith(_SUMS) else _PASSES)[found["added"]]
            best = min(seconds)
            rows.append(
                f"| {found['channels']} | {found['side']}x{found['side']} | "
                f"{'yes' if found['added'] else 'no'} | {name} | {1e3 * best:.2f} | "
                f"{passes * size / best / 1e9:,.0f} |"
            )
    return "\n".join(rows)


def main() -> None:
    """Runs the command line."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", 0) if gpu else torch.device("cpu")
    parser = parser_of_parts(__doc__, rounds=20)
    parser.add_argument(
        "--images",
        type=int,
        default=256 if gpu else 8,
        help="of the largest map; of smaller ones more, as many bytes",
    )
    args = parser.parse_args()
    largest = max(channels * side**2 for channels, side, _ in _SHAPES)
    shapes = []
    for channels, side, added in _SHAPES:
        # Smaller ones would be over before the host has launched them.
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
