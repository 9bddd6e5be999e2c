"""Regime "step": a training step on a synthetic batch that lies on the device. No loader, no color.

    python -m benchmarks.step --json benchmarks/results/step.json

The default is ResNet-50 at 224 pixels on a GPU, ResNet-18 at 64 pixels on a CPU. Each variant runs in a
fresh process: some steps to warm up and compile, then timed ones. Variants:
  textbook-fp32           what one writes first: float32, NCHW, eager
  textbook-amp            bfloat16 autocast
  textbook-amp-nhwc       and channels_last
  eager                   ours, not compiled: the same with fused SGD; on a CPU, small maps by products
                          and freed memory kept
  eager-convolutions      and without these products (CPU)
  eager-returned-memory   or with freed memory given back to the system (CPU)
  compiled                ours, the whole step one graph
  compiled-foreach-sgd    with foreach SGD
  compiled-joint-views    both views through the network at once, BatchNorm by view
  compiled-aten-bn        BatchNorm by ATen's kernels instead of Inductor's
  compiled-fused-bn       the ReLU's mask from BatchNorm's input, two users' gradients in one pass
  compiled-fused-bn-sums  and BatchNorm's sums by operators of their own, Triton kernels on a GPU
  compiled-padded-stem    the views' three channels filled up to eight
  compiled-space-to-depth or 2x2 pixels made to channels
  compiled-1x1-matmul     1x1 convolutions as matrix products
  compiled-autotuned      Inductor times its kernels first (GPU)
  compiled-cuda-graphs    launches recorded once (GPU)
  compiled-cudnn-guess    convolutions as cuDNN guesses, where all others let it time them first (GPU)

The limit is that of benchmarks/roofline.py with this machine's own ceilings, measured in the same run:
arithmetic and a copy. All variants compute the same step (tests/test_step_variants.py).
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.harness import conclude, machine, parser, run_all, summary, words_of
from benchmarks.roofline import FUSIONS, PARTS, step_cost
from benchmarks.step_variants import VARIANTS, Step
from fastsimsiam.config.run import Config
from fastsimsiam.doctor.measure import wait_for
from fastsimsiam.methods.registry import build_method
from fastsimsiam.recipes import catalogue

_WARM_UP = 3
_SAME_LOSS = 0.02
"""Rounding apart, all variants have the same loss behind the warm-up,"""
_SAME_GRADIENT = 0.6
"""and for each parameter the same norm of its gradient: one that is lost is 1 off, a double one
too, bfloat16 up to a third in ResNet-50."""
_NO_GRADIENT = 1e-5
"""Of the largest norm; below it there is nothing but rounding."""
_TRIES = 8
_LONGEST_TRIES = 4.0
_SAME = ("arch", "image_size", "batch_size")


def config_of(arch: str, image_size: int, batch_size: int) -> Config:
    """The ImageNet recipe, on this scale."""
    recipe = catalogue.recipe("imagenet-100ep")
    return replace(recipe, arch=arch, image_size=image_size, batch_size=batch_size)


def measure(name: str, config: Config, steps: int, device: torch.device) -> dict[str, Any]:
    """Times one variant in this process."""
    step = Step(config, VARIANTS[name], device)
    views = step.views(config, 0)
    started = time.perf_counter()
    gradients = step.gradient_norms(views)
    for _ in range(_WARM_UP):
        loss = step(views)
    wait_for(device)
    warm_up = time.perf_counter() - started
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        step(views)
        wait_for(device)
        seconds.append(time.perf_counter() - started)
    parts = [step.seconds_of_parts(views) for _ in range(steps)]
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
    return {
        "step_seconds": seconds,
        "part_seconds": parts,
        "warm_up_seconds": warm_up,
        "peak_mib": peak,
        "loss": loss.item(),
        "gradient_norms": gradients,
    }


def _best(work: Callable[[], object], device: torch.device) -> float:
    times: list[float] = []
    # A CPU that has to emulate bfloat16 takes half a minute for what others do in a millisecond.
    while len(times) < _TRIES and sum(times) < _LONGEST_TRIES:
        wait_for(device)
        started = time.perf_counter()
        work()
        wait_for(device)
        times.append(time.perf_counter() - started)
    return min(times)


def ceilings(device: torch.device) -> dict[str, float]:
    """What this machine can do at best: arithmetic, and a copy (read and written together).

    Arithmetic is the faster of a matrix product and a 3x3 convolution: MKL's float32 products on an AMD
    processor take twice as long as oneDNN's convolutions.
    """
    side, images = (8192, 512) if device.type == "cuda" else (2048, 32)
    if device.type == "cuda":  # torch lets convolutions round float32 to TF32, unlike products
        torch.set_float32_matmul_precision("high")
    found = {}
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        product = 2 * side**3 / _best(lambda a=a, b=b: a @ b, device)
        image, kernel = (
            torch.randn(shape, device=device, dtype=dtype).to(memory_format=torch.channels_last)
            for shape in ((images, 256, 28, 28), (256, 256, 3, 3))
        )
        seconds = _best(lambda x=image, w=kernel: F.conv2d(x, w, padding=1), device)
        convolution = 2 * image.numel() * kernel[0].numel() / seconds
        found[f"{name}_flops_per_second"] = max(product, convolution)
    source = torch.empty(
        (1 << 30) if device.type == "cuda" else (1 << 28), dtype=torch.uint8, device=device
    )
    target = torch.empty_like(source)
    seconds = _best(lambda: target.copy_(source), device)
    return found | {"bytes_per_second": 2 * source.numel() / seconds}


def analyzed(
    config: Config, samples: dict[str, list[dict[str, Any]]], most: dict[str, float]
) -> dict[str, Any]:
    """Images/s, achieved rates and share of the limit of every variant."""
    found = {}
    for name, runs in samples.items():
        dtype = VARIANTS[name].dtype
        key = "float32" if dtype == torch.float32 else "bfloat16"
        cost = step_cost(lambda: build_method(config), config.image_size, 2, dtype)
        views = 2 * config.batch_size
        time_of = summary([second for run in runs for second in run["step_seconds"]])
        seconds = time_of["median"]
        rates = most[f"{key}_flops_per_second"], most["bytes_per_second"]
        limit = {fusion: cost.seconds(views, fusion, *rates) for fusion in FUSIONS}
        found[name] = {
            "step_ms": seconds * 1e3,
            "part_ms": {
                part: 1e3
                * statistics.median(taken[part] for run in runs for taken in run["part_seconds"])
                for part in PARTS
            },
            "part_limit_ms": {
                part: 1e3 * cost.part_seconds(part, views, "fused", *rates) for part in PARTS
            },
            "spread": time_of["spread"],
            "images_per_second": config.batch_size / seconds,
            "flops_per_second": views * cost.flops / seconds,
            "bytes_per_second_if_fused": (views * cost.bytes["fused"] + cost.parameter_bytes)
            / seconds,
            "share_of_limit": {fusion: limit[fusion] / seconds for fusion in FUSIONS},
            "peak_mib": max((run["peak_mib"] or 0 for run in runs), default=0),
        }
    return found


def unlike_the_plainest(samples: dict[str, list[dict[str, Any]]]) -> list[str]:
    """The variants that did not compute the step of the first in the order of VARIANTS.

    Raises:
        SystemExit: that one's own loss is not finite.
    """
    found = {name: samples[name][0] for name in VARIANTS if name in samples}
    first, plainest = next(iter(found.items()))
    if not math.isfinite(plainest["loss"]):
        raise SystemExit(f"{first}: its loss is {plainest['loss']}, nothing can be held against it")
    return [name for name, run in found.items() if not _is_like(run, plainest)]


def _is_like(run: dict[str, Any], plainest: dict[str, Any]) -> bool:
    wanted, norms = plainest["gradient_norms"], run["gradient_norms"]
    nothing = _NO_GRADIENT * max(wanted.values())
    return (
        abs(run["loss"] - plainest["loss"]) < _SAME_LOSS
        and norms.keys() == wanted.keys()
        and all(
            abs(norms[name] - norm) < max(nothing, _SAME_GRADIENT * norm)
            for name, norm in wanted.items()
        )
    )


def held_in(args: argparse.Namespace) -> dict[str, Any] | None:
    """The result that `--add` adds to, if there is one.

    Raises:
        SystemExit: it is of another model or machine, or too old.
    """
    if not (args.add and args.json and args.json.exists()):
        return None
    held: dict[str, Any] = json.loads(args.json.read_text())
    ours = {key: getattr(args, key) for key in _SAME} | of_machine(machine())
    theirs = {key: held[key] for key in _SAME} | of_machine(held["machine"])
    other = [key for key, value in ours.items() if theirs[key] != value]
    if other:
        raise SystemExit(
            f"{args.json} is of another {', '.join(other)}: name another file, or leave out --add"
        )
    if any("gradient_norms" not in runs[0] for runs in held["samples"].values()):
        raise SystemExit(
            f"{args.json} is of before gradients were compared: name another file, or leave out --add"
        )
    return held


def of_machine(whole: dict[str, Any]) -> dict[str, Any]:
    """What figures of one table must have in common."""
    return {key: whole[key] for key in ("cpu", "gpu", "versions")}


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    rows = [
        f"{result['arch']}, {result['image_size']} pixels, batch {result['batch_size']}:",
        "",
        "| variant | ms/step | images/s | TFLOP/s | of the limit, separate | fused | epilogue |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, found in result["variants"].items():
        share = " | ".join(f"{found['share_of_limit'][fusion]:.0%}" for fusion in FUSIONS)
        rows.append(
            f"| {name} | {found['step_ms']:,.1f} | {found['images_per_second']:,.0f} | "
            f"{found['flops_per_second'] / 1e12:,.2f} | {share} |"
        )
    most = result["ceilings"]
    rows += [
        "",
        f"The machine's ceilings: {most['bfloat16_flops_per_second'] / 1e12:,.2f} TFLOP/s in "
        f"bfloat16, {most['float32_flops_per_second'] / 1e12:,.2f} in float32, "
        f"{most['bytes_per_second'] / 1e9:,.0f} GB/s.",
    ]
    return "\n".join(rows)


def main() -> None:
    """Runs the command line."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", 0) if gpu else torch.device("cpu")
    options = parser(__doc__)
    options.add_argument("--arch", default="resnet50" if gpu else "resnet18")
    options.add_argument("--image-size", type=int, default=224 if gpu else 64, help="pixels")
    options.add_argument("--batch-size", type=int, default=256 if gpu else 64, help="images")
    options.add_argument("--steps", type=int, default=20 if gpu else 6, help="timed steps of a run")
    options.add_argument("--only", nargs="+", choices=VARIANTS, help="variants (all)")
    options.add_argument(
        "--add", action="store_true", help="keep what else the file of --json holds of this machine"
    )
    args = options.parse_args()
    if args.add and not args.json:
        options.error("--add needs --json: the file to add to")
    config = config_of(args.arch, args.image_size, args.batch_size)
    if args.measure:
        found = (
            ceilings(device)
            if args.measure == "ceilings"
            else measure(args.measure, config, args.steps, device)
        )
        print(json.dumps(found))
        return
    held = held_in(args)
    names = args.only or [name for name, v in VARIANTS.items() if v.only in (None, device.type)]
    passed = words_of(args, ("arch", "image_size", "batch_size", "steps"))
    wanted = names if held else [*names, "ceilings"]
    samples, failed = run_all("benchmarks.step", wanted, args.repeats, passed)
    if held:
        most, samples = held["ceilings"], held["samples"] | samples
        failed += [name for name in held.get("failed", []) if name not in samples]
    elif "ceilings" in samples:
        found = samples.pop("ceilings")
        most = {key: max(run[key] for run in found) for key in found[0]}
    else:
        raise SystemExit("ceilings: failed, so nothing can be held against them")
    for name in unlike_the_plainest(samples):
        loss = samples.pop(name)[0]["loss"]
        print(f"{name}: NOT THE SAME STEP, left out (loss {loss:.4f})", file=sys.stderr)
        failed.append(name)
    samples = {name: samples[name] for name in VARIANTS if name in samples}
    result = {
        "regime": "step",
        **{key: getattr(args, key) for key in _SAME},
        "ceilings": most,
        "variants": analyzed(config, samples, most),
        "samples": samples,
        "failed": failed,
    }
    conclude(args, result, table)


if __name__ == "__main__":
    main()
