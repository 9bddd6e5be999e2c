"""Short measurements of a run's trainer: its parts alone, and the whole.

All rates are images per second on one device; an image comes with all its views.
"""

import signal
import statistics
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from fastsimsiam.config.run import Config
from fastsimsiam.evaluate.features import center_plan, extract
from fastsimsiam.loaders.base import Batch, LoaderOptions
from fastsimsiam.loaders.registry import build_loader
from fastsimsiam.plan.batches import CenterPlan
from fastsimsiam.runs.checkpoint import CheckpointStore
from fastsimsiam.runs.recorder import Recorder
from fastsimsiam.storage.base import Report, Storage
from fastsimsiam.system.device import choose_dtype
from fastsimsiam.train.auto import choose_all
from fastsimsiam.train.build import build_trainer
from fastsimsiam.train.distributed import World
from fastsimsiam.train.step import TrainStep
from fastsimsiam.train.trainer import Trainer

_WARM_UP_STEPS = 4
_FEWEST_STEPS = 8
_WINDOWS = 12
SMALL_LR = 1e-4
"""Learning rate of steps that repeat one batch: with a run's own, the loss may diverge."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """A measured rate.

    Attributes:
        images_per_second: all images over all seconds.
        samples: rates of the measurement's parts; empty for a measurement in one piece.
    """

    images_per_second: float
    samples: Sequence[float] = field(default_factory=tuple)


@contextmanager
def trainer_of(
    config: Config, storage: Storage, *, report: Report | None = None
) -> Iterator[Trainer]:
    """Builds a trainer as `pretrain` does, without evaluation, in a temporary folder.

    Args:
        config: the run's configuration.
        storage: the training split.
        report: receives the progress of decoding a data set that stays on the device.
    """
    chosen = choose_all(config, storage)
    with TemporaryDirectory() as folder:
        out = Path(folder)
        recorder = Recorder(config, active=False)
        loader = build_loader(
            chosen.loader,
            storage,
            LoaderOptions(
                device=chosen.device,
                workers=config.workers,
                on_bad_image=config.on_bad_image,
                gray16_max=config.gray16_max,
                check_images=False,  # the rate of all epochs but the first
            ),
            cpu=config.cpu,
            dali=config.dali,
            report=report,
        )
        with closing(recorder), closing(loader):
            yield build_trainer(
                config,
                storage,
                loader,
                evaluators=[],
                store=CheckpointStore(out, 1),
                recorder=recorder,
                device=chosen.device,
                dtype=chosen.dtype,
                compiled=chosen.compiled,
                world=World(),
            )


def wait_for(device: torch.device) -> None:
    """Waits until the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def batches_of(trainer: Trainer) -> Generator[Batch]:
    """Yields batches, epoch after epoch, without end."""
    epoch = 0
    while True:
        yield from trainer.loader.iterate(trainer.plan, epoch)
        epoch += 1


def _timed(work: Callable[[], int], device: torch.device, seconds: float) -> Rate:
    """Times repeated calls of `work`, which returns the number of its images."""
    for _ in range(_WARM_UP_STEPS):
        work()
    wait_for(device)
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(samples) < _FEWEST_STEPS:
        started = time.perf_counter()
        images = work()
        wait_for(device)
        samples.append(images / (time.perf_counter() - started))
    return Rate(images_per_second=statistics.harmonic_mean(samples), samples=samples)


def measure_loader(trainer: Trainer, seconds: float) -> Rate:
    """Measures the loader: takes batches and drops them."""
    batches = batches_of(trainer)
    try:
        return _timed(lambda: len(next(batches).index), trainer.device, seconds)
    finally:
        batches.close()


def measure_augment(trainer: Trainer, batch: Batch, seconds: float, *, compile_it: bool) -> Rate:
    """Measures the color augmentation, repeated on one batch.

    Args:
        trainer: the run's trainer.
        batch: a batch of its loader.
        seconds: duration of the measurement.
        compile_it: compile the augmentation, as a step that is compiled as a whole does.
    """
    assert isinstance(trainer.compute, TrainStep)  # one process: no DDP around it
    photometric: Callable[..., object] = trainer.compute.photometric
    if compile_it:
        photometric = torch.compile(trainer.compute.photometric, fullgraph=True, dynamic=False)

    def work() -> int:
        with torch.inference_mode():
            photometric(batch.crops, batch.photometric)
        return len(batch.index)

    return _timed(work, trainer.device, seconds)


def measure_step(trainer: Trainer, batch: Batch, seconds: float) -> tuple[Rate, float]:
    """Measures the training step, repeated on one batch: color, forward, backward, optimizer.

    Returns:
        The rate, and the first step's seconds beyond those of later ones: compilation.
    """
    trainer.method.train()
    started = time.perf_counter()
    trainer.train_on([batch], lr=SMALL_LR)
    wait_for(trainer.device)
    first = time.perf_counter() - started

    def work() -> int:
        trainer.train_on([batch], lr=SMALL_LR)
        return len(batch.index)

    rate = _timed(work, trainer.device, seconds)
    return rate, max(0.0, first - len(batch.index) / rate.images_per_second)


def logged(
    history: Sequence[dict[str, float]], warm_up: int, batch_size: int
) -> tuple[Rate, float, float]:
    """Sums up the trainer's log after `warm_up` steps; windows are weighted by their duration.

    Args:
        history: the recorder's metric lines.
        warm_up: number of first steps to leave out.
        batch_size: images per step.

    Returns:
        The rate, the share of the time spent waiting for data, and the seconds.
    """
    seconds, waited, step = 0.0, 0.0, warm_up
    samples = []
    for line in history:
        if line["step"] <= warm_up:
            continue
        window = (line["step"] - step) * batch_size / line["images_per_second"]
        seconds += window
        waited += window * line["data_wait"]
        samples.append(line["images_per_second"])
        step = int(line["step"])
    images = (step - warm_up) * batch_size
    return Rate(images_per_second=images / seconds, samples=samples), waited / seconds, seconds


def measure_train(trainer: Trainer, steps: int) -> tuple[Rate, float]:
    """Measures training as a whole: `steps` steps after a warm-up, read from the trainer's log.

    Returns:
        The rate, and the share of the time spent waiting for data.

    Raises:
        KeyboardInterrupt, or what the handler of a signal raises: the signal ended the training; the
            trainer alone would save and return.
    """
    every = max(1, steps // _WINDOWS)
    warm_up = max(_WARM_UP_STEPS, every)
    trainer.config = replace(trainer.config, log_every=every)
    # The run itself may be shorter than its measurement.
    end = warm_up + steps
    trainer.schedule_steps = replace(
        trainer.schedule_steps,
        total=max(trainer.schedule_steps.total, end),
        stop=end,
        checkpoint_every=end + 1,
    )
    if number := trainer.fit():
        signal.raise_signal(number)
        raise KeyboardInterrupt  # where nobody handles it
    return logged(trainer.recorder.history, warm_up, trainer.config.batch_size)[:2]


def measure_features(trainer: Trainer, storage: Storage, seconds: float) -> Rate:
    """Measures the feature extraction of centered images, as in the kNN evaluation."""
    config = trainer.config
    whole = center_plan(storage, config.image_size, config.knn.crop_fraction)
    images = min(len(storage), whole.batch_size)
    rates: list[float] = []
    end = time.perf_counter() + seconds
    while True:
        plan = CenterPlan(
            label=whole.label[:images],
            sizes=whole.sizes[:images],
            image_size=whole.image_size,
            batch_size=whole.batch_size,
            fraction=whole.fraction,
        )
        started = time.perf_counter()
        extract(
            trainer.method.backbone,
            trainer.loader,
            plan,
            constants=config.normalize,
            device=trainer.device,
            dtype=choose_dtype(config.precision, trainer.device)[0],
        )
        wait_for(trainer.device)
        rates.append(images / (time.perf_counter() - started))
        if time.perf_counter() >= end and len(rates) > 1:
            rates = rates[1:]  # the first pass warms up
            return Rate(images_per_second=statistics.harmonic_mean(rates), samples=rates)
