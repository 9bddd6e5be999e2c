"""`fastsimsiam doctor`: measures the parts of a run for a minute, and says what follows."""

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from fastsimsiam.config.run import Config
from fastsimsiam.doctor import measure
from fastsimsiam.doctor.diagnosis import (
    Figures,
    Forecast,
    advice,
    forecast,
    holds_back,
    parts_allow,
)
from fastsimsiam.doctor.synthetic import made_up_photographs, repeated
from fastsimsiam.errors import UserError
from fastsimsiam.loaders.resident_loader import decoded_bytes
from fastsimsiam.methods.registry import method_class
from fastsimsiam.optim.schedule import schedule_steps
from fastsimsiam.plan.batches import require_a_batch
from fastsimsiam.recipes import catalogue
from fastsimsiam.storage.base import Storage
from fastsimsiam.storage.open import has_split, open_split
from fastsimsiam.system.compiler import why_compile_fails
from fastsimsiam.system.hardware import describe
from fastsimsiam.system.resources import host_memory, num_cores, num_workers
from fastsimsiam.train.auto import choose_all

_SHARES = {
    "decode": 0.1,
    "loader": 0.15,
    "augment": 0.1,
    "step": 0.25,
    "features": 0.1,
    "train": 0.3,
}
"""Of the time that is given; reading from the storage takes five seconds at most."""
_PROBE_BATCH = 8
_LONGEST_STEP = 0.02
"""Of the time that is given: a CPU measures smaller batches than would take longer."""
_FEWEST_STEPS = 12
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the doctor has found.

    Attributes:
        machine: see `machine.describe`.
        config: of the run that was examined.
        images: of the training split.
        made_up: there was no data set, and made-up photographs stood in.
        measured_batch: images per step of the measurement.
        storage_bytes_per_second: of reading.
        why: what `auto` chose.
        figures: what was measured.
        forecast: of the whole run.
    """

    machine: dict[str, Any]
    config: Config
    images: int
    made_up: bool
    measured_batch: int
    storage_bytes_per_second: float
    why: str
    figures: Figures
    forecast: Forecast

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        what, sentence = holds_back(self.figures)
        return {
            "machine": self.machine,
            "recipe": self.config.recipe,
            "arch": self.config.arch,
            "image_size": self.config.image_size,
            "batch_size": self.config.batch_size,
            "measured_batch": self.measured_batch,
            "images": self.images,
            "made_up_images": self.made_up,
            "chosen": self.why,
            "figures": asdict(self.figures),
            "storage_bytes_per_second": self.storage_bytes_per_second,
            "holds_back": what,
            "holds_back_by": sentence,
            "advice": advice(self.figures),
            "forecast": asdict(self.forecast),
        }


def examine(config: Config, *, minutes: float = 1.0, say: Say = lambda text: None) -> Report:
    """Measures a recipe's parts on this machine.

    Args:
        config: the run, see `recipes`; where its `data` is not there, made-up photographs stand in.
        minutes: of measurement; starting, compiling and decoding a resident data set come on top.
        say: told what goes on.

    Raises:
        UserError: something in the config or the data has to be mended.
    """
    if minutes <= 0:
        raise UserError(f"--minutes is {minutes:g}: give more than 0")
    method_class(config)
    seconds = 60 * minutes
    # A folder that was asked for and is not there is an error, as in `pretrain`.
    usual = catalogue.recipe(config.recipe).data
    made_up = config.data == usual and not usual.exists()
    train, val_images = _open(config, made_up)
    require_a_batch(len(train), config.batch_size)  # of large batches a part is measured
    chosen = choose_all(config, train)
    device = chosen.device
    say(chosen.why)
    part_of_step = config.batch_size // config.accumulate  # what has to fit the memory at once
    batch_size = part_of_step
    if device.type != "cuda":
        batch_size = _batch(config, part_of_step, train, seconds)
    if batch_size != part_of_step:
        say(f"measured with batches of {batch_size}: one of {part_of_step} takes too long here")
    smaller = replace(config, batch_size=batch_size, accumulate=1)

    @contextmanager
    def part(name: str) -> Iterator[float]:
        started = time.perf_counter()
        say(f"measuring {name} ...")
        yield seconds * _SHARES.get(name, 0.1)
        say(f"measuring {name}: {time.perf_counter() - started:.0f} s")

    with part("storage") as given:
        storage, storage_bytes = measure.measure_storage(train, config.workers, given)
    with part("decode") as given:
        decode = measure.measure_decode(train, config.workers, given)
    with measure.trainer_of(smaller, train) as trainer:
        with part("loader") as given:
            loader = measure.measure_loader(trainer, given)
        batches = measure.batches_of(trainer)
        batch = next(batches)
        batches.close()
        try:
            with part("augment") as given:
                augment = measure.measure_augment(
                    trainer, batch, given, compile_it=chosen.compiled == "step"
                )
            with part("step") as given:
                step, compile_seconds = measure.measure_step(trainer, batch, given)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"the GPU's memory is too small for batches of {batch_size}: lower --batch-size"
            ) from error
        del batch
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
        with part("features") as given:
            features = measure.measure_features(trainer, train, given)
        with part("train") as given:
            gpu = device.type == "cuda"
            rate, _ = parts_allow(loader.images_per_second, step.images_per_second, gpu=gpu)
            steps = max(_FEWEST_STEPS, round(given * rate / batch_size))
            together, data_wait = measure.measure_train(trainer, steps)
    machine = describe()
    figures = Figures(
        gpu=gpu,
        storage=storage.images_per_second,
        decode=decode.images_per_second,
        loader=loader.images_per_second,
        augment=augment.images_per_second,
        step=step.images_per_second,
        train=together.images_per_second,
        features=features.images_per_second,
        samples=together.samples,
        data_wait=data_wait,
        compile_seconds=compile_seconds,
        loader_name=chosen.loader,
        workers=num_workers(config.workers),
        cores=num_cores(),
        decoded_bytes=decoded_bytes(train),
        device_memory=torch.cuda.get_device_properties(device).total_memory
        if gpu
        else host_memory(),
        device_free=free,
        mean_pixels=float(np.prod(train.sizes.astype(np.float64), axis=1).mean()),
        crop_pixels=float(config.image_size**2),
        packed=train.is_one_file,
        has_dali=machine["optional"]["dali"],
        mend_for_compiling=why_compile_fails(device.type),
        precision=str(chosen.dtype).removeprefix("torch."),
        compiled=chosen.compiled,
        batch_size=config.batch_size,
    )
    planned = schedule_steps(config, len(train) // config.batch_size)
    evaluations = 0
    if planned.knn_every and val_images:
        # Before the first step, every so often, and at the end.
        evaluations = 1 + -(-planned.stop // planned.knn_every)
    return Report(
        machine=machine,
        config=config,
        images=len(train),
        made_up=made_up,
        measured_batch=batch_size,
        storage_bytes_per_second=storage_bytes,
        why=chosen.why,
        figures=figures,
        forecast=forecast(
            figures,
            steps=planned.stop,
            evaluations=evaluations,
            images_per_evaluation=len(train) + val_images,
        ),
    )


def _open(config: Config, made_up: bool) -> tuple[Storage, int]:
    """The training split, and the number of validation images."""
    if not made_up:
        train = open_split(config.data, "train")
        if not has_split(config.data, "val"):
            return train, 0
        return train, len(open_split(config.data, "val", classes=train.classes))
    like = catalogue.find(config.recipe).data_set
    from fastsimsiam.storage.class_folder import open_split as open_folders

    folder = made_up_photographs(256, like.height, like.width)
    return repeated(open_folders(folder, "train"), like.train_images), like.val_images


def _batch(config: Config, size: int, train: Storage, seconds: float) -> int:
    """The batch size, or that halved until a step fits the time many times.

    From the smallest upwards: the rate of a small batch says too little of that of a large one.
    """
    sizes = [size]
    while sizes[0] > 2 * _PROBE_BATCH and sizes[0] % 2 == 0:
        sizes.insert(0, sizes[0] // 2)
    for smaller, larger in itertools.pairwise(sizes):
        if larger / smaller * _step_seconds(config, smaller, train) > _LONGEST_STEP * seconds:
            return smaller
    return size


def _step_seconds(config: Config, size: int, train: Storage) -> float:
    """Duration of a step on a CPU, the first one apart."""
    quick = replace(config, batch_size=size, accumulate=1, compile="off", loader="cpu", workers=1)
    with measure.trainer_of(quick, train) as trainer:
        batch = next(measure.batches_of(trainer))
        trainer.method.train()
        trainer.train_on([batch])
        started = time.perf_counter()
        trainer.train_on([batch])
        return time.perf_counter() - started


def in_words(report: Report) -> str:
    """The report as text."""
    machine, figures, ahead = report.machine, report.figures, report.forecast
    parts = ", ".join(
        f"{name} {'yes' if there else 'no'}" for name, there in machine["optional"].items()
    )
    gpus = ", ".join(
        f"{gpu['name']}, {gpu['memory'] / 1e9:.0f} GB ({gpu['free'] / 1e9:.0f} free)"
        for gpu in machine["gpus"]
    )
    cuda = f", CUDA {machine['cuda']}, driver {machine['driver']}" if machine["gpus"] else ""
    what = "made-up photographs, as many as it has" if report.made_up else str(report.config.data)
    config = report.config
    lines = [
        f"fastsimsiam {machine['fastsimsiam']}, torch {machine['versions']['torch']}, Python "
        f"{machine['python']}{cuda}; {parts}",
        f"CPU: {machine['cpu']}, {machine['cores']} cores, {machine['memory'] / 1e9:.0f} GB",
        f"GPU: {gpus or 'none'}",
        f"{config.recipe}: {config.arch}, {config.image_size} px, batch {config.batch_size}, "
        f"{report.images:,} images ({what})",
        "",
        f"{'':10}{'images/s':>10}",
    ]
    storage = f"{report.storage_bytes_per_second / 1e6:,.0f} MB/s"
    notes = {
        "storage": f"reading alone, {storage}",
        "decode": f"{figures.workers} threads, nothing else",
        "loader": f"{figures.loader_name}: decoded, cropped, on the device",
        "augment": "color of all views",
        "step": "on a batch that is there, color included",
        "train": f"all together; data-wait {figures.data_wait:.0%}",
        "features": "of the kNN evaluation",
    }
    for name, note in notes.items():
        lines.append(f"{name:10}{getattr(figures, name):>10,.0f}   {note}")
    lines += ["", f"Held back by {holds_back(figures)[1]}."]
    lines += [f"  - {line}" for line in advice(figures)]
    lines += [
        "",
        f"{config.epochs} epochs will take {_duration(ahead.seconds)} ({_duration(ahead.low)} to "
        f"{_duration(ahead.high)}): training {_duration(ahead.train)}, kNN evaluations "
        f"{_duration(ahead.evaluate)}, compiling {_duration(ahead.compile)}"
        if config.max_steps is None
        else f"{config.max_steps} steps will take {_duration(ahead.seconds)} ({_duration(ahead.low)} "
        f"to {_duration(ahead.high)}).",
    ]
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    if seconds >= 2 * 86400:
        return f"{seconds / 86400:.1f} days"
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"
