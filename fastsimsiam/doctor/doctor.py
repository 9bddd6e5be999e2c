"""`fastsimsiam doctor`: measures the parts of a run for a minute and forecasts its duration."""

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from fastsimsiam.config.fields import require_within
from fastsimsiam.config.run import Config
from fastsimsiam.doctor import measure, measure_data
from fastsimsiam.doctor.diagnosis import Measurements, forecast, parts_allow
from fastsimsiam.doctor.report import Report
from fastsimsiam.doctor.synthetic import repeated, synthetic_photographs
from fastsimsiam.errors import UserError
from fastsimsiam.loaders.resident_loader import decoded_bytes
from fastsimsiam.optim.schedule import schedule_steps
from fastsimsiam.plan.batches import require_a_batch
from fastsimsiam.recipes import catalogue
from fastsimsiam.storage import class_folder
from fastsimsiam.storage.base import Storage
from fastsimsiam.storage.beton import as_beton
from fastsimsiam.storage.open import has_val, open_split, open_val
from fastsimsiam.storage.passed_over import notes
from fastsimsiam.system.compiler import why_compile_fails
from fastsimsiam.system.device import choose_device
from fastsimsiam.system.hardware import describe
from fastsimsiam.system.optional import has_dali
from fastsimsiam.system.resources import available_memory, host_memory, num_cores, num_workers
from fastsimsiam.system.shared_cores import SharedCores
from fastsimsiam.train.auto import Chosen, choose_all
from fastsimsiam.train.checks import accepts_batch, require_labels, require_possible

_SHARES = {
    "storage": 0.1,
    "decode": 0.1,
    "loader": 0.15,
    "augment": 0.1,
    "step": 0.25,
    "features": 0.1,
    "train": 0.3,
}
"""Shares of the given time; reading from the storage takes five seconds at most and is not counted."""
_SYNTHETIC_FILES = 256
_PROBE_BATCH = 8
_LONGEST_STEP = 0.02
"""Share of the given time that a step may take; a CPU measures smaller batches beyond it."""
_FEWEST_STEPS = 12
Say = Callable[[str], None]


def diagnose(config: Config, *, minutes: float = 1.0, say: Say = lambda text: None) -> Report:
    """Measures the parts of a run on this machine and forecasts its duration.

    Args:
        config: the run's configuration, see `recipes`; synthetic photographs replace the recipe's
            `data` where that folder does not exist.
        minutes: duration of the measurement; start-up, compilation and decoding a resident data set
            come on top.
        say: receives a line for each choice and each part that is measured.

    Raises:
        UserError: the config or the data cannot be used; the recipe is unknown.
    """
    require_within("--minutes", minutes, 0, 10_000, above=True)
    require_possible(config, choose_device(config.device)[0])
    seconds = 60 * minutes
    cores = SharedCores()
    # A missing folder that the user named is an error, as in `pretrain`.
    usual = catalogue.recipe(config.recipe).data
    synthetic = config.data == usual and not usual.exists()
    train, val_images = _open_synthetic(config) if synthetic else _open(config)
    require_labels(config, train)
    # The whole batch has to fit the data set, though a part of it is measured.
    require_a_batch(len(train), config.batch_size)
    chosen = choose_all(config, train)
    for line in (*notes(train), chosen.why):
        say(line)
    part_of_step = config.batch_size // config.accumulate  # this much has to fit in memory at once
    batch_size = part_of_step
    if chosen.device.type != "cuda":
        batch_size = _measured_batch(config, part_of_step, train, seconds)
    if batch_size != part_of_step:
        say(f"measuring batches of {batch_size}: a batch of {part_of_step} takes too long here")
    measurements, storage_bytes = _measure(config, chosen, train, batch_size, seconds, say)
    planned = schedule_steps(config, len(train) // config.batch_size)
    evaluations = 0
    if planned.knn_every and val_images:
        # Before the first step, then at each interval, then at the end.
        evaluations = 1 + -(-planned.stop // planned.knn_every)
    return Report(
        machine=describe(),
        config=config,
        images=len(train),
        synthetic=synthetic,
        measured_batch=batch_size,
        storage_bytes_per_second=storage_bytes,
        choices=chosen.why,
        passed_over=dict(train.passed_over),
        shared_cores=cores.line(),
        measurements=measurements,
        forecast=forecast(
            measurements,
            steps=planned.stop,
            evaluations=evaluations,
            images_per_evaluation=len(train) + val_images,
        ),
    )


def _open(config: Config) -> tuple[Storage, int]:
    """Opens the data set; returns the training split and the number of validation images."""
    train = open_split(config.data, "train")
    if not has_val(config.data, config.val):
        return train, 0
    return train, len(open_val(config.data, config.val, classes=train.classes))


def _open_synthetic(config: Config) -> tuple[Storage, int]:
    """As `_open`, with synthetic photographs of the recipe's data set's size and number."""
    like = catalogue.find(config.recipe).data_set
    folder = synthetic_photographs(_SYNTHETIC_FILES, like.height, like.width)
    return repeated(class_folder.open_split(folder, "train"), like.train_images), like.val_images


def _measured_batch(config: Config, size: int, train: Storage, seconds: float) -> int:
    """Halves the batch size until the given time has room for many steps.

    Tries the smallest size first: the rate of a small batch says little of that of a large one. The
    method has to accept it.
    """
    sizes = [size]
    while sizes[0] > 2 * _PROBE_BATCH and sizes[0] % 2 == 0:
        half = sizes[0] // 2
        if not accepts_batch(config, half):
            break
        sizes.insert(0, half)
    for smaller, larger in itertools.pairwise(sizes):
        if larger / smaller * _step_seconds(config, smaller, train) > _LONGEST_STEP * seconds:
            return smaller
    return size


def _step_seconds(config: Config, size: int, train: Storage) -> float:
    """Returns the duration of the second step on a CPU; the first one warms up."""
    quick = replace(config, batch_size=size, accumulate=1, compile="off", loader="cpu", workers=1)
    with measure.trainer_of(quick, train) as trainer:
        batch = next(measure.batches_of(trainer))
        trainer.method.train()
        trainer.train_on([batch], lr=measure.SMALL_LR)
        started = time.perf_counter()
        trainer.train_on([batch], lr=measure.SMALL_LR)
        return time.perf_counter() - started


def _measure(
    config: Config, chosen: Chosen, train: Storage, batch_size: int, seconds: float, say: Say
) -> tuple[Measurements, float]:
    """Measures all parts of a run with batches of `batch_size`.

    Returns:
        The measurements, and the storage's rate in bytes per second.
    """
    device = chosen.device
    gpu = device.type == "cuda"
    host_free = available_memory()
    measured_config = replace(config, batch_size=batch_size, accumulate=1)

    @contextmanager
    def part(name: str) -> Iterator[float]:
        started = time.perf_counter()
        say(f"measuring {name} ...")
        yield seconds * _SHARES[name]
        say(f"measuring {name}: {time.perf_counter() - started:.0f} s")

    with part("storage") as given:
        storage, storage_bytes = measure_data.measure_storage(train, config.workers, given)
        one_file = measure_data.measure_one_file(train, config.workers, given)
    with part("decode") as given:
        decode = measure_data.measure_decode(train, config.workers, given)
    with measure.trainer_of(measured_config, train) as trainer:
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
                f"batches of {batch_size} do not fit in GPU memory: lower --batch-size"
            ) from error
        del batch
        free = torch.cuda.mem_get_info(device)[0] if gpu else 0
        with part("features") as given:
            features = measure.measure_features(trainer, train, given)
        with part("train") as given:
            rate, _ = parts_allow(loader.images_per_second, step.images_per_second, gpu=gpu)
            steps = max(_FEWEST_STEPS, round(given * rate / batch_size))
            together, data_wait = measure.measure_train(trainer, steps)
    memory = torch.cuda.get_device_properties(device).total_memory if gpu else host_memory()
    measurements = Measurements(
        gpu=gpu,
        storage=storage.images_per_second,
        one_file=one_file,
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
        device_memory=memory,
        device_free=free,
        host_free=host_free,
        mean_pixels=float(np.prod(train.sizes.astype(np.float64), axis=1).mean()),
        crop_pixels=float(config.image_size**2),
        packed=as_beton(train) is not None,
        has_dali=has_dali(),
        why_compile_fails=why_compile_fails(device.type),
        precision=str(chosen.dtype).removeprefix("torch."),
        compiled=chosen.compiled,
        batch_size=config.batch_size,
    )
    return measurements, storage_bytes
