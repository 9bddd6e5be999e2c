"""Regime "step": a training step on a random batch that is on the device. No loader, no color.

    python -m benchmarks.step --json benchmarks/results/step.json

The default is ResNet-50 at 224 pixels on a GPU, ResNet-18 at 64 pixels on a CPU. Each variant runs in a
fresh process: steps for warm-up and compilation, then timed steps. Variants:
  textbook-fp32           float32, NCHW, eager
  textbook-amp            bfloat16 autocast, NCHW, eager
  textbook-amp-nhwc       bfloat16 autocast, channels_last, eager
  eager                   ours, not compiled: textbook-amp-nhwc with fused SGD; on a CPU also with
                          matrix products for convolutions of small maps and with freed memory kept
  eager-convolutions      eager without these products (CPU)
  eager-returned-memory   eager with freed memory returned to the system (CPU)
  compiled                ours, the whole step as one graph
  compiled-foreach-sgd    foreach SGD instead of fused
  compiled-joint-views    both views in one batch, BatchNorm still per view
  compiled-aten-bn        BatchNorm by ATen's kernels instead of Inductor's
  compiled-fused-bn       the ReLU's mask recomputed from BatchNorm's input, gradients of two users
                          summed in the same pass
  compiled-fused-bn-sums  compiled-fused-bn with BatchNorm's sums by custom operators (Triton on a GPU)
  compiled-fused-stem     compiled-fused-bn-sums, and the layers before the first block by
                          fastsimsiam/models/fused_stem: 2x2 pixels as channels, pooling with BatchNorm
  compiled-fused-1x1-stem the same layers, and BatchNorm within the 1x1 convolutions (GPU)
  compiled-padded-stem    the views' three channels padded to eight
  compiled-space-to-depth 2x2 pixels of the views turned into channels
  compiled-1x1-matmul     1x1 convolutions as matrix products
  compiled-autotuned      Inductor's autotuning, max_autotune (GPU)
  compiled-cuda-graphs    CUDA graphs (GPU)
  compiled-cudnn-guess    cuDNN's heuristics choose the convolutions; all others use its benchmark mode
                          (GPU)

    python -m benchmarks.step --method all --json benchmarks/results/step-methods.json

With `--method` it is the step of each method instead of the variants, see
benchmarks/regimes/method_steps.py.

The limit is the roofline of benchmarks/parts/roofline.py with this machine's ceilings (arithmetic and
copy bandwidth), measured in the same run. All variants compute the same step
(tests/test_step_variants.py).
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

from benchmarks import method_steps
from benchmarks.harness import (
    conclude,
    machine,
    read_result,
    regime_parser,
    run_all,
    summary,
    to_argv,
)
from benchmarks.roofline import FUSIONS, PARTS, step_cost
from benchmarks.step_variants import VARIANTS, Step
from fastsimsiam.config.run import Config
from fastsimsiam.doctor.measure import wait_for
from fastsimsiam.methods.registry import build_method
from fastsimsiam.recipes import catalogue
from fastsimsiam.system.device import choose_dtype

_WARM_UP = 3
_LOSS_TOLERANCE = 0.02
"""Largest difference of a variant's loss after the warm-up, which rounding explains."""
_GRADIENT_TOLERANCE = 0.6
"""Largest relative difference of the norm of a parameter's gradient. A lost gradient differs by 1, a
doubled one too; bfloat16 by up to a third in ResNet-50."""
_NO_GRADIENT = 1e-5
"""Share of the largest norm below which a gradient is rounding alone."""
_TRIES = 8
_MAX_SECONDS = 4.0
_SETTINGS = ("arch", "image_size", "batch_size")
"""Options that all variants of a result file have in common."""


def config_of(arch: str, image_size: int, batch_size: int) -> Config:
    """The ImageNet recipe with this network, image size and batch size."""
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
    # A CPU that emulates bfloat16 takes half a minute for what others compute in a millisecond.
    while len(times) < _TRIES and sum(times) < _MAX_SECONDS:
        wait_for(device)
        started = time.perf_counter()
        work()
        wait_for(device)
        times.append(time.perf_counter() - started)
    return min(times)


def ceilings(device: torch.device) -> dict[str, float]:
    """Peak FLOP/s by dtype and bytes/s of a copy (read and written together), measured.

    FLOP/s are those of the faster of a matrix product and a 3x3 convolution: MKL's float32 products on
    an AMD processor take twice as long as oneDNN's convolutions.
    """
    side, images = (8192, 512) if device.type == "cuda" else (2048, 32)
    if (
        device.type == "cuda"
    ):  # TF32 for products too: by default torch has it for convolutions alone
        torch.set_float32_matmul_precision("high")
    rates = {}
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        # Where bfloat16 is emulated, the rate is the same for less work, and far from float32's.
        native = dtype == torch.float32 or choose_dtype("auto", device)[0] == dtype
        n, count = (side, images) if native else (side // 4, images // 16)
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        product = 2 * n**3 / _best(lambda a=a, b=b: a @ b, device)
        image, kernel = (
            torch.randn(shape, device=device, dtype=dtype).to(memory_format=torch.channels_last)
            for shape in ((count, 256, 28, 28), (256, 256, 3, 3))
        )
        seconds = _best(lambda x=image, w=kernel: F.conv2d(x, w, padding=1), device)
        convolution = 2 * image.numel() * kernel[0].numel() / seconds
        rates[f"{name}_flops_per_second"] = max(product, convolution)
    source = torch.empty(
        (1 << 30) if device.type == "cuda" else (1 << 28), dtype=torch.uint8, device=device
    )
    target = torch.empty_like(source)
    seconds = _best(lambda: target.copy_(source), device)
    return rates | {"bytes_per_second": 2 * source.numel() / seconds}


def analyze(
    config: Config, samples: dict[str, list[dict[str, Any]]], peak: dict[str, float]
) -> dict[str, Any]:
    """Images/s, achieved rates and share of the limit of every variant.

    Args:
        config: the configuration of the step.
        samples: variant -> what `measure` returned for each run.
        peak: the machine's `ceilings`.
    """
    variants = {}
    for name, runs in samples.items():
        dtype = VARIANTS[name].dtype
        key = "float32" if dtype == torch.float32 else "bfloat16"
        cost = step_cost(lambda: build_method(config), config.image_size, 2, dtype)
        views = 2 * config.batch_size
        times = summary([second for run in runs for second in run["step_seconds"]])
        seconds = times["median"]
        rates = peak[f"{key}_flops_per_second"], peak["bytes_per_second"]
        limit = {fusion: cost.seconds(views, fusion, *rates) for fusion in FUSIONS}
        variants[name] = {
            "step_ms": seconds * 1e3,
            "part_ms": {
                part: 1e3
                * statistics.median(step[part] for run in runs for step in run["part_seconds"])
                for part in PARTS
            },
            "part_limit_ms": {
                part: 1e3 * cost.part_seconds(part, views, "fused", *rates) for part in PARTS
            },
            "spread": times["spread"],
            "images_per_second": config.batch_size / seconds,
            "flops_per_second": views * cost.flops / seconds,
            "bytes_per_second_if_fused": (views * cost.bytes["fused"] + cost.parameter_bytes)
            / seconds,
            "share_of_limit": {fusion: limit[fusion] / seconds for fusion in FUSIONS},
            "peak_mib": max((run["peak_mib"] or 0 for run in runs), default=0),
        }
    return variants


def different_steps(samples: dict[str, list[dict[str, Any]]]) -> list[str]:
    """The variants that did not compute the same step as the first one in the order of VARIANTS.

    Raises:
        SystemExit: the first one's loss is not finite.
    """
    runs = {name: samples[name][0] for name in VARIANTS if name in samples}
    first, baseline = next(iter(runs.items()))
    if not math.isfinite(baseline["loss"]):
        raise SystemExit(f"{first}: the loss is {baseline['loss']}, so no variant can be compared")
    return [name for name, run in runs.items() if not _is_same_step(run, baseline)]


def _is_same_step(run: dict[str, Any], baseline: dict[str, Any]) -> bool:
    expected, norms = baseline["gradient_norms"], run["gradient_norms"]
    negligible = _NO_GRADIENT * max(expected.values())
    return (
        abs(run["loss"] - baseline["loss"]) < _LOSS_TOLERANCE
        and norms.keys() == expected.keys()
        and all(
            abs(norms[name] - norm) < max(negligible, _GRADIENT_TOLERANCE * norm)
            for name, norm in expected.items()
        )
    )


def existing_result(args: argparse.Namespace) -> dict[str, Any] | None:
    """The result that `--add` adds to, if there is one.

    Raises:
        SystemExit: the result has other settings, is of another machine, or has no gradient norms.
    """
    if not (args.add and args.json and args.json.exists()):
        return None
    existing = read_result(args.json)
    ours = {key: getattr(args, key) for key in _SETTINGS} | _hardware(machine())
    theirs = {key: existing[key] for key in _SETTINGS} | _hardware(existing["machine"])
    different = [key for key, value in ours.items() if theirs[key] != value]
    if different:
        raise SystemExit(
            f"{args.json} has another {', '.join(different)}: name another file, or leave out --add"
        )
    if any("gradient_norms" not in runs[0] for runs in existing["samples"].values()):
        raise SystemExit(
            f"{args.json} has no gradient norms to compare: name another file, or leave out --add"
        )
    return existing


def _hardware(info: dict[str, Any]) -> dict[str, Any]:
    """Hardware and versions, which all variants of a table have in common."""
    return {key: info[key] for key in ("cpu", "gpu", "versions")}


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    rows = [
        f"{result['arch']}, {result['image_size']} pixels, batch {result['batch_size']}:",
        "",
        "| variant | ms/step | images/s | TFLOP/s | of the limit, separate | fused | epilogue |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, variant in result["variants"].items():
        share = " | ".join(f"{variant['share_of_limit'][fusion]:.0%}" for fusion in FUSIONS)
        rows.append(
            f"| {name} | {variant['step_ms']:,.1f} | {variant['images_per_second']:,.0f} | "
            f"{variant['flops_per_second'] / 1e12:,.2f} | {share} |"
        )
    peak = result["ceilings"]
    rows += [
        "",
        f"The machine's ceilings: {peak['bfloat16_flops_per_second'] / 1e12:,.2f} TFLOP/s in "
        f"bfloat16, {peak['float32_flops_per_second'] / 1e12:,.2f} in float32, "
        f"{peak['bytes_per_second'] / 1e9:,.0f} GB/s.",
    ]
    return "\n".join(rows)


def main() -> None:
    """Runs the command line."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", 0) if gpu else torch.device("cpu")
    parser = regime_parser(__doc__)
    parser.add_argument("--arch", default="resnet50" if gpu else "resnet18", help="backbone")
    parser.add_argument("--image-size", type=int, default=224 if gpu else 64, help="pixels")
    parser.add_argument(
        "--batch-size", type=int, default=256 if gpu else 64, help="images per step"
    )
    parser.add_argument(
        "--steps", type=int, help="timed steps per run (20 on a GPU and with --method, else 6)"
    )
    parser.add_argument("--only", nargs="+", choices=VARIANTS, help="variants (all)")
    parser.add_argument(
        "--method",
        nargs="+",
        choices=["all", *method_steps.method_names()],
        help="compare the steps of these methods with SimSiam's, in the variant of --only "
        "(compiled on a GPU, else eager)",
    )
    parser.add_argument(
        "--add", action="store_true", help="keep the other variants in the file of --json"
    )
    args = parser.parse_args()
    args.steps = args.steps or (20 if gpu or args.method else 6)
    if args.add and not args.json:
        parser.error("--add needs --json: the file to add to")
    if args.method:
        (variant, *more) = args.only or ["compiled" if gpu else "eager"]
        if more or variant not in method_steps.MEASURED_VARIANTS or args.add:
            parser.error(
                "--method takes one variant by --only, "
                f"{' or '.join(method_steps.MEASURED_VARIANTS)}, and no --add"
            )
        if not args.measure:
            method_steps.run(args, variant)
            return
        sample = method_steps.measure(args.measure, args, args.steps, variant, device)
        print(json.dumps(sample))
        return
    config = config_of(args.arch, args.image_size, args.batch_size)
    if args.measure:
        sample = (
            ceilings(device)
            if args.measure == "ceilings"
            else measure(args.measure, config, args.steps, device)
        )
        print(json.dumps(sample))
        return
    existing = existing_result(args)
    names = args.only or [name for name, v in VARIANTS.items() if v.only in (None, device.type)]
    argv = to_argv(args, ("arch", "image_size", "batch_size", "steps"))
    jobs = names if existing else [*names, "ceilings"]
    samples, failed = run_all("benchmarks.step", jobs, args.repeats, argv)
    if existing:
        peak, samples = existing["ceilings"], existing["samples"] | samples
        failed += [name for name in existing.get("failed", []) if name not in samples]
    elif "ceilings" in samples:
        runs = samples.pop("ceilings")
        peak = {key: max(run[key] for run in runs) for key in runs[0]}
    else:
        raise SystemExit("ceilings: failed, so there is no limit to compare with")
    for name in different_steps(samples):
        loss = samples.pop(name)[0]["loss"]
        print(f"{name}: NOT THE SAME STEP, left out (loss {loss:.4f})", file=sys.stderr)
        failed.append(name)
    samples = {name: samples[name] for name in VARIANTS if name in samples}
    result = {
        "regime": "step",
        **{key: getattr(args, key) for key in _SETTINGS},
        "ceilings": peak,
        "variants": analyze(config, samples, peak),
        "samples": samples,
        "failed": failed,
    }
    conclude(args, result, table)


if __name__ == "__main__":
    main()
