"""ResNet-50's bottleneck blocks with BatchNorm in their 1x1 convolutions, beside cuDNN and Inductor.

    python -m benchmarks.conv1x1 --json benchmarks/results/conv1x1.json

Of each of the four stages, first the kernels (fastsimsiam/models/fused_bottleneck) with all candidates
for their tiles, beside cuDNN's convolution of the same shape, which leaves BatchNorm to other kernels;
then whole blocks in training mode, forward and backward pass, compiled:
  plain  torchvision's block
  norms  BatchNorm with ReLU and addition fused (fastsimsiam/models/fused_batch_norm)
  fused  BatchNorm in the 1x1 convolutions
The result is written after every shape, and nothing is begun after `--seconds`. "GB/s" is the least
traffic of a kernel over its time. The best tiles belong into `MEASURED` of the package's tiles.py.
Without a GPU, torch's operations stand for the kernels.
"""

import contextlib
import functools
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from benchmarks.harness import conclude, part_parser, write_result
from fastsimsiam.models.fused_batch_norm.fuse import fuse_norms
from fastsimsiam.models.fused_bottleneck import operators
from fastsimsiam.models.fused_bottleneck.fuse import FusedBottleneck
from fastsimsiam.models.fused_bottleneck.tiles import Operation, Tile, candidates
from fastsimsiam.system.resources import num_cores

# Channels of the narrow maps, and side of the maps.
_SHAPES = ((64, 56), (128, 28), (256, 14), (512, 7))
_COMPILERS = 8
_Run = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A kernel on given maps.

    Attributes:
        operation: the operation whose tiles it takes.
        shape: of the convolution's weight, or of the products.
        run: runs it, with a tile on a GPU and without one elsewhere.
        convolution: cuDNN's convolution that it stands for; None: it is additional.
        maps: narrow maps it reads and writes; a wide one counts four.
        products: products of a matrix of pixels and narrow channels with a square one.
    """

    operation: Operation
    shape: tuple[int, int]
    run: Callable[[Tile | None], object]
    convolution: _Run | None
    maps: int
    products: int


def kernels(images: int, channels: int, side: int, device: torch.device) -> dict[str, Kernel]:
    """Name -> kernel, in the order of a block's forward and backward pass."""
    gpu = device.type == "cuda"

    def a_map(channels: int) -> Tensor:
        x = torch.randn(images, channels, side, side, device=device, dtype=torch.bfloat16)
        return x.to(memory_format=torch.channels_last)

    def of(name: str, operator: Callable[..., object], *operands: Any) -> Callable[..., object]:
        if not gpu:
            return lambda tile: operator(*operands)
        from fastsimsiam.models.fused_bottleneck import launch

        return lambda tile: getattr(launch, name)(*operands, tile)

    wide_map, other_wide, narrow_map, other_narrow = (
        a_map(size) for size in (4 * channels, 4 * channels, channels, channels)
    )
    first = torch.randn(channels, 4 * channels, device=device, dtype=torch.bfloat16)
    last, square = first.t().contiguous(), first[:, :channels].contiguous()
    narrow, wide = (torch.ones(size, device=device) for size in (channels, 4 * channels))

    def gradient(y: Tensor, x: Tensor, weight: Tensor, of_input: bool) -> _Run:
        mask = [of_input, not of_input, False]
        operands = y, x, weight[:, :, None, None], None, (1, 1), (0, 0), (1, 1), False, (0, 0), 1
        return lambda: torch.ops.aten.convolution_backward(*operands, mask)

    def products(*operands: Any) -> Callable[..., object]:
        return of("products", operators.channel_products, *operands)

    return {
        "conv1 and moments": Kernel(
            operation="moments",
            shape=(channels, 4 * channels),
            run=of("moments", operators.conv_moments, wide_map, first),
            convolution=lambda: F.conv2d(wide_map, first[:, :, None, None]),
            maps=5,
            products=4,
        ),
        "covariance": Kernel(
            operation="products",
            shape=(channels, channels),
            run=products(narrow_map, narrow_map, narrow, narrow, True, True),
            convolution=None,
            maps=1,
            products=1,
        ),
        "norm, conv3, norm and join": Kernel(
            operation="join",
            shape=(4 * channels, channels),
            run=of(
                "join",
                operators.conv_join,
                *(narrow_map, narrow, narrow, last, wide, wide, wide_map, None, None),
            ),
            convolution=lambda: F.conv2d(narrow_map, last[:, :, None, None]),
            maps=9,
            products=4,
        ),
        "conv3's weight": Kernel(
            operation="products",
            shape=(4 * channels, channels),
            run=products(wide_map, narrow_map, narrow, narrow, False, True),
            convolution=gradient(wide_map, narrow_map, last, of_input=False),
            maps=5,
            products=4,
        ),
        "conv3's input and sums": Kernel(
            operation="masked-gradient",
            shape=(4 * channels, channels),
            run=of(
                "masked_gradient",
                operators.conv_masked_gradient,
                *(wide_map, last, narrow_map, narrow, narrow, narrow, square, narrow),
            ),
            convolution=gradient(wide_map, narrow_map, last, of_input=True),
            maps=6,
            products=5,
        ),
        "conv1's weight": Kernel(
            operation="products",
            shape=(channels, 4 * channels),
            run=products(narrow_map, wide_map, None, None, False, False),
            convolution=gradient(other_narrow, wide_map, first, of_input=False),
            maps=5,
            products=4,
        ),
        "conv1's input and join": Kernel(
            operation="join-gradient",
            shape=(channels, 4 * channels),
            run=of(
                "join_gradient",
                operators.conv_join_gradient,
                *(narrow_map, first, None, wide_map, other_wide),
            ),
            convolution=gradient(other_narrow, wide_map, first, of_input=True),
            maps=13,
            products=4,
        ),
    }


def block_runs(
    images: int, channels: int, side: int, device: torch.device
) -> dict[str, Callable[[], _Run]]:
    """Name -> a function that makes a function that runs a block forward and backward."""
    shape = images, 4 * channels, side, side
    x, gradient = (
        torch.randn(shape, device=device, dtype=torch.bfloat16)
        .relu()
        .to(memory_format=torch.channels_last)
        for _ in range(2)
    )
    x.requires_grad_()

    def block() -> nn.Module:
        made = Bottleneck(4 * channels, channels).to(device)
        return made.to(memory_format=torch.channels_last)

    def fused() -> nn.Module:
        made = block()
        made.__class__ = FusedBottleneck
        made.masks_input = made.is_masked = True  # as within a stage
        return made

    def passes(make: Callable[[], nn.Module]) -> _Run:
        module = make()
        compiled = torch.compile(module, fullgraph=True, dynamic=False)
        inputs = [x, *module.parameters()]

        def run() -> object:
            with torch.autocast(device.type, torch.bfloat16):
                output = compiled(x)
            return torch.autograd.grad(output, inputs, gradient)

        return run

    makers = {"plain": block, "fused": fused, "norms": lambda: fuse_norms(block())}
    return {name: functools.partial(passes, make) for name, make in makers.items()}


def milliseconds(run: _Run, rounds: int, device: torch.device) -> float:
    """Median time of a run, the first not counted."""
    if device.type == "cuda":
        from triton.testing import do_bench

        return float(do_bench(run, warmup=5, rep=rounds, return_mode="median"))
    times = []
    for _ in range(min(rounds, 3) + 1):
        started = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times[1:])


def compile_kernels(job: tuple[int, int, str]) -> None:
    """Compiles a kernel with all candidates into Triton's cache, by runs on small maps."""
    channels, side, name = job
    kernel = kernels(16, channels, side, torch.device("cuda", 0))[name]
    for tile in candidates(kernel.operation, *kernel.shape):
        # The measurement reports what fails.
        with contextlib.suppress(Exception):
            kernel.run(tile)


def measure_kernels(
    images: int, channels: int, side: int, rounds: int, device: torch.device
) -> dict[str, Any]:
    """Kernel -> its traffic and arithmetic, and milliseconds of cuDNN and of each tile."""
    result: dict[str, Any] = {}
    rows = images * side**2
    for name, kernel in kernels(images, channels, side, device).items():
        times: dict[str, float | None] = {}
        if kernel.convolution is not None:
            times["cudnn"] = milliseconds(kernel.convolution, rounds, device)
        tiles: tuple[Tile | None, ...] = (None,)
        if device.type == "cuda":
            tiles = candidates(kernel.operation, *kernel.shape)
        for tile in tiles:
            try:
                run = functools.partial(kernel.run, tile)
                times[str(tile)] = milliseconds(run, rounds, device)
            except Exception as error:  # too much shared memory, and whatever Triton may raise
                print(f"{name} {tile}: {type(error).__name__}: {error}", file=sys.stderr)
                times[str(tile)] = None
        result[name] = {
            "operation": kernel.operation,
            "shape": kernel.shape,
            "bytes": 2 * rows * channels * kernel.maps,
            "flops": 2 * rows * channels**2 * kernel.products,
            "ms": times,
        }
    return result


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    rows = [
        "| channels | map | kernel | cuDNN alone, ms | fused, ms | GB/s | TFLOP/s | best tile |",
        "|---:|---|---|---:|---:|---:|---:|---|",
    ]
    for shape in result["shapes"]:
        label = f"| {shape['channels']} | {shape['side']}x{shape['side']} |"
        for name, kernel in shape["kernels"].items():
            times = {tile: ms for tile, ms in kernel["ms"].items() if ms is not None}
            alone = times.pop("cudnn", None)
            if not times:
                continue
            tile, ms = min(times.items(), key=lambda pair: pair[1])
            rows.append(
                f"{label} {name} | {'' if alone is None else f'{alone:.3f}'} | {ms:.3f} | "
                f"{kernel['bytes'] / ms / 1e6:,.0f} | {kernel['flops'] / ms / 1e9:,.0f} | {tile} |"
            )
    rows += ["", "| channels | map | block | ms | of plain |", "|---:|---|---|---:|---:|"]
    for shape in result["shapes"]:
        plain = shape["blocks"].get("plain")
        for name, ms in shape["blocks"].items():
            share = "" if plain is None else f"{ms / plain:.2f}"
            label = f"| {shape['channels']} | {shape['side']}x{shape['side']} |"
            rows.append(f"{label} {name} | {ms:.2f} | {share} |")
    return "\n".join(rows)


def main() -> None:
    """Runs the command line."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", 0) if gpu else torch.device("cpu")
    parser = part_parser(__doc__, rounds=20)
    parser.add_argument("--images", type=int, default=512 if gpu else 2, help="images of a batch")
    parser.add_argument("--seconds", type=float, default=50, help="when to begin nothing more")
    args = parser.parse_args()
    started = time.monotonic()
    torch.backends.cudnn.benchmark = True
    result: dict[str, Any] = {"regime": "conv1x1", "images": args.images, "shapes": []}

    def is_over(doing: str) -> bool:
        seconds = time.monotonic() - started
        print(f"{seconds:5.1f} s  {doing}", file=sys.stderr, flush=True)
        if args.json and result["shapes"]:
            write_result(args.json, result)
        return bool(seconds > args.seconds)

    if gpu:
        names = kernels(1, 64, 7, device)
        jobs = [(*shape, name) for shape in _SHAPES for name in names]
        is_over(f"compiling {len(jobs)} kernels")
        # In processes of their own: Triton compiles one kernel at a time.
        with multiprocessing.get_context("spawn").Pool(min(_COMPILERS, num_cores())) as pool:
            pool.map(compile_kernels, jobs, chunksize=1)
    for channels, side in _SHAPES:
        if is_over(f"kernels of {channels} channels"):
            break
        times = measure_kernels(args.images, channels, side, args.rounds, device)
        result["shapes"].append(
            {"channels": channels, "side": side, "kernels": times, "blocks": {}}
        )
    for shape in result["shapes"]:
        channels = shape["channels"]
        runs = block_runs(args.images, channels, shape["side"], device)
        for name, make in runs.items():
            if is_over(f"block of {channels} channels, {name}"):
                break
            torch.compiler.reset()
            shape["blocks"][name] = milliseconds(make(), args.rounds, device)
    conclude(args, result, table)


if __name__ == "__main__":
    main()
