"""Regime "train": training end to end, beside the loader alone and the step alone.

    python -m benchmarks.train --data IMAGENETTE --json benchmarks/results/train.json

On a GPU loader and step run concurrently, and training can be as fast as the slower of them. On a CPU
they share the cores and alternate: 1 / (1 / loader + 1 / step) images/s. Each runs in a fresh process:
  loader    the plan's batches, dropped as soon as they are there
  step      the trainer's step, color and optimizer included, on one batch that is on the device
  train     the trainer, by the metrics that it logs

"cores" is the number of CPU cores this process kept busy, without the worker processes of `reference`.
"""

import argparse
import json
import time
from dataclasses import replace
from typing import Any, get_args

import torch

from benchmarks.harness import (
    add_data,
    conclude,
    photographs,
    regime_parser,
    run_all,
    summary,
    to_argv,
)
from fastsimsiam.config.run import (
    CheckpointConfig,
    CompileName,
    Config,
    CpuConfig,
    KnnConfig,
    LoaderName,
)
from fastsimsiam.doctor.diagnosis import parts_allow
from fastsimsiam.doctor.measure import batches_of, logged, trainer_of, wait_for
from fastsimsiam.doctor.synthetic import repeated
from fastsimsiam.recipes import catalogue
from fastsimsiam.storage.image_files import ImageFiles
from fastsimsiam.storage.open import open_split

NAMES = ("loader", "step", "train")
_WARM_UP = 4
_IMAGENET = 1_281_167
_IMAGENET_SIZE = 224
_EPOCHS = 100


def config_of(args: argparse.Namespace) -> Config:
    """The ImageNet recipe with the options of the command line, without evaluation and checkpoints."""
    return replace(
        catalogue.recipe("imagenet-100ep"),
        data=args.data,
        arch=args.arch,
        image_size=args.image_size,
        batch_size=args.batch_size,
        loader=args.loader,
        cpu=CpuConfig(crops=args.crops),
        workers=args.workers,
        compile=args.compile,
        knn=KnnConfig(every_epochs=0),
        checkpoint=CheckpointConfig(every_epochs=1e6),
        max_steps=2 * args.steps,  # the first half warms up
        log_every=args.steps,
    )


def measure(name: str, config: Config, steps: int) -> dict[str, Any]:
    """Times one of NAMES in this process."""
    storage = open_split(config.data, "train")
    if isinstance(storage, ImageFiles) and config.loader != "resident":
        # One epoch holds all steps: short epochs of a small data set would measure their ends.
        storage = repeated(storage, (2 * steps + _WARM_UP) * config.batch_size)
    with trainer_of(config, storage) as trainer:
        if name == "train":
            started, busy = time.perf_counter(), time.process_time()
            trainer.fit()
            cores = (time.process_time() - busy) / (time.perf_counter() - started)
            rate, data_wait, seconds = logged(trainer.recorder.history, steps, config.batch_size)
            return {
                "images_per_second": rate.images_per_second,
                "seconds": seconds,
                "data_wait": data_wait,
                "cores": cores,
            }
        batches = batches_of(trainer)
        held = next(batches) if name == "step" else None
        trainer.method.train()
        started, busy = 0.0, 0.0
        for number in range(_WARM_UP + steps):
            if number == _WARM_UP:
                wait_for(trainer.device)
                started, busy = time.perf_counter(), time.process_time()
            batch = held or next(batches)
            if name == "step":
                trainer.train_on([batch])
        wait_for(trainer.device)
        seconds, busy = time.perf_counter() - started, time.process_time() - busy
        batches.close()
    return {
        "images_per_second": steps * config.batch_size / seconds,
        "seconds": seconds,
        "cores": busy / seconds,
    }


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    rows = [
        f"{result['arch']}, {result['image_size']} pixels, batch {result['batch_size']}, loader "
        f"`{result['loader']}`:",
        "",
        "| regime | images/s | spread | cores |",
        "|---|---:|---:|---:|",
    ]
    for name, rate in result["summary"].items():
        cores = max(run["cores"] for run in result["samples"][name])
        rows.append(f"| {name} | {rate['median']:,.0f} | {rate['spread']:.0%} | {cores:.1f} |")
    if "share_of_parts" not in result:
        return "\n".join(rows)
    rows += [
        "",
        f"Training reaches {result['share_of_parts']:.2f} of what its parts allow "
        f"({result['parts_allow']:,.0f} images/s: {result['rule']}).",
    ]
    if result["image_size"] == _IMAGENET_SIZE:
        hours = _EPOCHS * _IMAGENET / result["summary"]["train"]["median"] / 3600
        rows.append(f"At this rate ImageNet's {_EPOCHS} epochs take {hours:,.1f} hours.")
    return "\n".join(rows)


def command_line() -> argparse.ArgumentParser:
    """The command line."""
    gpu = torch.cuda.is_available()
    parser = regime_parser(__doc__)
    add_data(parser)
    parser.add_argument("--arch", default="resnet50" if gpu else "resnet18", help="backbone")
    parser.add_argument("--image-size", type=int, default=224 if gpu else 64, help="pixels")
    parser.add_argument(
        "--batch-size", type=int, default=256 if gpu else 64, help="images per step"
    )
    parser.add_argument(
        "--loader", choices=get_args(LoaderName), default="cpu", help="as in pretrain (cpu)"
    )
    parser.add_argument(
        "--crops", choices=("host", "device"), default="host", help="--cpu.crops of pretrain (host)"
    )
    parser.add_argument("--workers", type=int, help="loader threads (one per core)")
    parser.add_argument(
        "--compile", choices=get_args(CompileName), default="auto", help="as in pretrain (auto)"
    )
    parser.add_argument("--steps", type=int, default=100 if gpu else 30, help="timed steps per run")
    return parser


def main() -> None:
    """Runs the command line."""
    args = command_line().parse_args()
    photographs(args)
    if args.measure:
        print(json.dumps(measure(args.measure, config_of(args), args.steps)))
        return
    keys = ("data", "arch", "image_size", "batch_size", "loader", "crops", "workers")
    keys += ("compile", "steps")
    samples, failed = run_all("benchmarks.train", NAMES, args.repeats, to_argv(args, keys))
    rates = {
        name: summary([run["images_per_second"] for run in runs]) for name, runs in samples.items()
    }
    result = {
        "regime": "train",
        **{key: getattr(args, key) for key in keys if key not in ("data", "workers")},
        "samples": samples,
        "failed": failed,
        "summary": rates,
    }
    if not failed:
        gpu = torch.cuda.is_available()
        allowed, rule = parts_allow(rates["loader"]["median"], rates["step"]["median"], gpu=gpu)
        result |= {
            "parts_allow": allowed,
            "share_of_parts": rates["train"]["median"] / allowed,
            "rule": rule,
        }
    conclude(args, result, table)


if __name__ == "__main__":
    main()
