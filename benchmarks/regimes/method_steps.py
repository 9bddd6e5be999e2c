"""The training step of each method beside SimSiam's: `benchmarks.step --method NAME`.

A method has the optimizer and the views of its recipe; the network, the image size and the batch size
are those of the command, the precision is the one that training would choose. Its step and SimSiam's
alternate in one process, so that their ratio holds on a machine with other load. The expected ratio is
that of the passes through the networks, a backward pass counted as two forward passes: the method's
share of SimSiam's network work. What a step takes beyond it is the cost of everything else: heads,
loss, queue, target network and optimizer.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gate import cost_ratio
from benchmarks.harness import conclude, run_all, summary, to_argv
from benchmarks.step_variants import VARIANTS, Step
from fastsimsiam.config.methods import MethodConfig
from fastsimsiam.config.run import Config
from fastsimsiam.config.views import view_sizes
from fastsimsiam.doctor.measure import SMALL_LR, wait_for
from fastsimsiam.methods.registry import METHODS, build_method
from fastsimsiam.recipes import catalogue
from fastsimsiam.recipes.base import IMAGENET
from fastsimsiam.system.device import choose_dtype
from fastsimsiam.train.checks import accepts_batch

BASELINE = "simsiam"
"""The method with whose step the others are compared."""
MEASURED_VARIANTS = ("eager", "compiled")
"""Variants of the step that hold for every method."""
_WARM_UP = 3
_COUNTED_IMAGES = 16
"""So many images are enough to count passes, or the next double number that the method accepts."""


@dataclass(frozen=True, kw_only=True)
class Passes:
    """Passes of an image through networks of the backbone's kind, a view of full size being one.

    Attributes:
        forward: forward passes, through the trained network and its target.
        backward: those of them that a backward pass follows.
    """

    forward: float
    backward: float

    @property
    def work(self) -> float:
        """The network work in forward passes; a backward pass is worth two."""
        return self.forward + 2 * self.backward


def method_names() -> list[str]:
    """Names of all registered methods, the baseline first."""
    names = [config.name for config in METHODS]
    return sorted(names, key=lambda name: name != BASELINE)


def recipe_of(name: str, arch: str, image_size: int, batch_size: int) -> Config:
    """The recipe of a method with this network, image size and batch size.

    That is its first one for ImageNet, else its first one. A method without a recipe has its default
    options in SimSiam's recipe. Small views keep their share of the image size.

    Args:
        name: the method's name.
        arch: torchvision's name of the network.
        image_size: side of the views in pixels.
        batch_size: images per step.
    """
    recipes = [r for r in catalogue.RECIPES.values() if r.make().method.name == name]
    recipes.sort(key=lambda recipe: recipe.data_set != IMAGENET)
    if recipes:
        config = recipes[0].make()
    else:
        config = replace(catalogue.recipe("imagenet-100ep"), method=_options(name)())
    views = tuple(
        replace(view, size=round(view.size * image_size / config.image_size)) if view.size else view
        for view in config.views
    )
    return replace(
        config,
        arch=arch,
        stem="imagenet",
        image_size=image_size,
        batch_size=batch_size,
        views=views,
        accumulate=1,
    )


def _options(name: str) -> type[MethodConfig]:
    return next(config for config in METHODS if config.name == name)


def count_passes(config: Config) -> Passes:
    """Counts the passes of a step through networks of the backbone's kind, by running one on a CPU."""
    method = build_method(config)
    pixels = {True: 0, False: 0}

    def count(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        images = inputs[0]
        pixels[output.requires_grad] += len(images) * images.shape[-2] * images.shape[-1]

    for module in method.modules():
        if type(module) is type(method.backbone):
            module.register_forward_hook(count)
    images = _COUNTED_IMAGES
    while images < config.batch_size and not accepts_batch(config, images):
        images *= 2
    images = min(images, config.batch_size)
    views = tuple(
        torch.randn(images, 3, size, size) for size in view_sizes(config.views, config.image_size)
    )
    method(views, torch.arange(images) % 2)
    whole = images * config.image_size**2
    backward = pixels[True] / whole
    return Passes(forward=backward + pixels[False] / whole, backward=backward)


def measure(
    name: str, args: argparse.Namespace, steps: int, variant: str, device: torch.device
) -> dict[str, Any]:
    """Times a method's step and SimSiam's alternately, in this process."""
    samples: dict[str, list[float]] = {}
    functions, parts = [], []
    dtype, _ = choose_dtype("auto", device)
    for number, method in enumerate((name, BASELINE)):
        config = recipe_of(method, args.arch, args.image_size, args.batch_size)
        # The steps repeat one batch: with a recipe's own learning rate the loss might diverge.
        step = Step(config, replace(VARIANTS[variant], dtype=dtype), device, SMALL_LR)
        views = step.views(config, 0)
        seconds = samples.setdefault(f"{number} {method}", [])

        def timed(_: int, step=step, views=views, seconds=seconds) -> None:  # type: ignore[no-untyped-def]
            started = time.perf_counter()
            step(views)
            wait_for(device)
            seconds.append(time.perf_counter() - started)

        functions.append(timed)
        parts.append((step, views))
    for _ in range(_WARM_UP):
        for function in functions:
            function(0)
    for seconds in samples.values():
        seconds.clear()
    candidate, baseline = functions
    ratio = cost_ratio(candidate, baseline, items=1, rounds=steps)
    step, views = parts[0]
    own, others = samples.values()
    return {
        "ratio": ratio,
        "dtype": str(dtype).removeprefix("torch."),
        "step_seconds": own,
        "baseline_seconds": others,
        "part_seconds": [step.seconds_of_parts(views) for _ in range(max(2, steps // 4))],
    }


def analyze(
    names: Sequence[str], args: argparse.Namespace, samples: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    """Work, rates and ratios of every method that was measured.

    Args:
        names: methods, in the order of the table.
        args: the network, the image size and the batch size.
        samples: method -> what `measure` returned for each run.
    """
    baseline = count_passes(recipe_of(BASELINE, args.arch, args.image_size, args.batch_size)).work
    methods = {}
    for name in names:
        if name not in samples:
            continue
        config = recipe_of(name, args.arch, args.image_size, args.batch_size)
        passes = count_passes(config)
        runs = samples[name]
        share = passes.work / baseline
        ratio = summary([run["ratio"] for run in runs])
        seconds = statistics.median(second for run in runs for second in run["step_seconds"])
        methods[name] = {
            "recipe": config.recipe,
            "optimizer": config.optimizer.name,
            "views": len(config.views),
            "passes": asdict(passes),
            "work": passes.work,
            "baseline_work": baseline,
            "share": share,
            "ratio": ratio["median"],
            "spread": ratio["spread"],
            "over_share": ratio["median"] / share - 1,
            "step_ms": seconds * 1e3,
            "part_ms": {
                part: 1e3
                * statistics.median(step[part] for run in runs for step in run["part_seconds"])
                for part in runs[0]["part_seconds"][0]
            },
            "images_per_second": args.batch_size / seconds,
        }
    return methods


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    rows = [
        f"{result['arch']}, {result['image_size']} pixels, batch {result['batch_size']}, "
        f"{result['dtype']}, {result['variant']}:",
        "",
        "| method | recipe | optimizer | network work | ms/step | images/s | times SimSiam's step | "
        "share of its work | over the share |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, method in result["methods"].items():
        rows.append(
            f"| {name} | {method['recipe']} | {method['optimizer']} | "
            f"{method['work']:.3g}/{method['baseline_work']:.3g} | {method['step_ms']:,.1f} | "
            f"{method['images_per_second']:,.0f} | {method['ratio']:.3f} | {method['share']:.3f} | "
            f"{method['over_share']:+.1%} |"
        )
    return "\n".join(rows)


def run(args: argparse.Namespace, variant: str) -> None:
    """Measures the methods of `--method`, each in fresh processes, and writes the result."""
    names = method_names() if "all" in args.method else list(dict.fromkeys(args.method))
    for name in names:
        config = recipe_of(name, args.arch, args.image_size, args.batch_size)
        if not accepts_batch(config, args.batch_size):
            raise SystemExit(
                f"--batch-size {args.batch_size} is none that {name} can use: give a larger power of "
                f"two, or a --method without {name}"
            )
    argv = to_argv(args, ("arch", "image_size", "batch_size", "steps"))
    argv += ["--only", variant, "--method", *args.method]
    samples, failed = run_all("benchmarks.step", names, args.repeats, argv)
    result = {
        "regime": "step-methods",
        "arch": args.arch,
        "image_size": args.image_size,
        "batch_size": args.batch_size,
        "variant": variant,
        "dtype": samples[next(iter(samples))][0]["dtype"],
        "methods": analyze(names, args, samples),
        "samples": samples,
        "failed": failed,
    }
    conclude(args, result, table)
