"""Regime "train": JPEG to weights, end to end, beside the loader and the step each by itself.

    python -m benchmarks.train --data IMAGENETTE --json benchmarks/results/train.json

On a GPU the two run side by side, and training can be as fast as the slower of them. On a CPU they
share the cores and take turns: 1 / (1 / loader + 1 / step) images/s. Each runs in a fresh process:
  loader    batches of the plan, made and thrown away
  step      the trainer's step, color and optimizer included, on one batch that lies on the device
  train     the trainer itself, from the log of its run

"cores" is how many CPU cores this process kept busy, worker processes of `reference` apart.
"""

import argparse
import json
import time
from dataclasses import replace
from typing import Any

import torch

from benchmarks.harness import add_data, conclude, parser, photographs, run_all, summary, words_of
from fastsimsiam.config.run import CheckpointConfig, Config, CpuConfig, KnnConfig
from fastsimsiam.doctor.diagnosis import parts_allow
from fastsimsiam.doctor.measure import batches_of, logged, trainer_of, wait_for
from fastsimsiam.doctor.synthetic import repeated
from fastsimsiam.recipes import catalogue
from fastsimsiam.storage.class_folder import ClassFolder
from fastsimsiam.storage.open import open_split

NAMES = ("loader", "step", "train")
_WARM_UP = 4
_IMAGENET = 1_281_167
_IMAGENET_SIZE = 224
_EPOCHS = 100


def config_of(args: argparse.Namespace) -> Config:
    """The ImageNet recipe on the scale that was asked for, without evaluation and checkpoints."""
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
    """Times one of the three in this process."""
    storage = open_split(config.data, "train")
    if isinstance(storage, ClassFolder) and config.loader != "resident":
        # One epoch holds all steps: where few images make short ones, their ends would be measured.
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
        synthetic = next(batches) if name == "step" else None
        trainer.method.train()
        started, busy = 0.0, 0.0
        for number in range(_WARM_UP + steps):
            if number == _WARM_UP:
                wait_for(trainer.device)
                started, busy = time.perf_counter(), time.process_time()
            batch = synthetic or next(batches)
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
    for name, figure in result["summary"].items():
        cores = max(run["cores"] for run in result["samples"][name])
        rows.append(f"| {name} | {figure['median']:,.0f} | {figure['spread']:.0%} | {cores:.1f} |")
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
    options = parser(__doc__)
    add_data(options)
    options.add_argument("--arch", default="resnet50" if gpu else "resnet18")
    options.add_argument("--image-size", type=int, default=224 if gpu else 64, help="pixels")
    options.add_argument("--batch-size", type=int, default=256 if gpu else 64, help="images")
    options.add_argument("--loader", default="cpu", help="as of pretrain (cpu)")
    options.add_argument("--crops", default="host", help="as --cpu.crops of pretrain (host)")
    options.add_argument("--workers", type=int, help="loader threads (one per core)")
    options.add_argument("--compile", default="auto", help="as of pretrain (auto)")
    options.add_argument(
        "--steps", type=int, default=100 if gpu else 30, help="timed steps of a run"
    )
    return options


def main() -> None:
    """Runs the command line."""
    args = command_line().parse_args()
    photographs(args)
    if args.measure:
        print(json.dumps(measure(args.measure, config_of(args), args.steps)))
        return
    keys = ("data", "arch", "image_size", "batch_size", "loader", "crops", "workers")
    keys += ("compile", "steps")
    samples, failed = run_all("benchmarks.train", NAMES, args.repeats, words_of(args, keys))
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
