"""Short measurements of a run's parts, each by itself and together, with the run's own objects.

All rates are images per second on this device; an image has all its views.
"""

import os
import statistics
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from fastsimsiam.config.run import Config
from fastsimsiam.errors import BadImageError
from fastsimsiam.evaluate.features import center_plan, extract
from fastsimsiam.loaders.base import Batch, LoaderOptions
from fastsimsiam.loaders.decode import read_rgb
from fastsimsiam.loaders.registry import build_loader
from fastsimsiam.plan.batches import CenterPlan
from fastsimsiam.runs.checkpoint import CheckpointStore
from fastsimsiam.runs.recorder import Recorder
from fastsimsiam.storage.base import Report, Storage
from fastsimsiam.system.device import choose_dtype
from fastsimsiam.system.resources import num_workers
from fastsimsiam.train.auto import choose_all
from fastsimsiam.train.build import build_trainer
from fastsimsiam.train.distributed import World
from fastsimsiam.train.step import TrainStep
from fastsimsiam.train.trainer import Trainer

_WARM_UP_STEPS = 4
_FEWEST_STEPS = 8
_STORAGE_SECONDS = 5.0
_FILES = 4096
_WINDOWS = 12


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How fast something goes.

    Attributes:
        images_per_second: all images over all seconds.
        samples: the rates of parts of the measurement, where it has parts.
    """

    images_per_second: float
    samples: Sequence[float] = field(default_factory=tuple)


@contextmanager
def trainer_of(
    config: Config, storage: Storage, *, report: Report | None = None
) -> Iterator[Trainer]:
    """A trainer as `pretrain` builds it, but for evaluation; it leaves nothing behind.

    Args:
        config: the run.
        storage: its training split.
        report: told of the progress of decoding a data set that stays on the device.
    """
    chosen = choose_all(config, storage)
    with TemporaryDirectory() as folder:
        out = Path(folder)
        recorder = Recorder(out, active=False)
        loader = build_loader(
            chosen.loader,
            storage,
            LoaderOptions(
                device=chosen.device, workers=config.workers, on_bad_image=config.on_bad_image
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
    """Waits until the device has done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def batches_of(trainer: Trainer) -> Generator[Batch]:
    """Batches without end."""
    epoch = 0
    while True:
        yield from trainer.loader.iterate(trainer.plan, epoch)
        epoch += 1


def _timed(
    work: Callable[[], int], device: torch.device, seconds: float, warm_up: int = _WARM_UP_STEPS
) -> Rate:
    """Calls `work`, which returns how many images it did, for a while."""
    for _ in range(warm_up):
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


def measure_storage(storage: Storage, workers: int | None, seconds: float) -> tuple[Rate, float]:
    """Reads files that the page cache has been asked to forget.

    Returns:
        The rate, and bytes per second.
    """
    # Synthetic photographs repeat; read again, a file would come from the cache.
    different = list(dict(zip(storage.paths, range(len(storage)), strict=True)).values())
    chosen = different[:: -(-len(different) // _FILES)]
    for path in {
        storage.root if storage.is_one_file else storage.root / storage.paths[n] for n in chosen
    }:
        _forget(path)
    end = time.perf_counter() + min(seconds, _STORAGE_SECONDS)

    def read(number: int) -> int:
        # What is broken is for the loader to say.
        with suppress(BadImageError):
            return len(storage.read(number)) if time.perf_counter() < end else 0
        return 0

    started = time.perf_counter()
    with ThreadPoolExecutor(num_workers(workers)) as pool:
        sizes = [size for size in pool.map(read, chosen, chunksize=4) if size]
    took = time.perf_counter() - started
    return Rate(images_per_second=len(sizes) / took), sum(sizes) / took


def _forget(path: Path) -> None:
    """Asks the system to drop a file from its cache; what it has not written yet stays."""
    if not hasattr(os, "posix_fadvise"):
        return
    with suppress(OSError):  # not every file system can
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def measure_decode(storage: Storage, workers: int | None, seconds: float) -> Rate:
    """Decodes images on all threads, with nothing behind it."""
    threads = num_workers(workers)
    end = time.perf_counter() + seconds

    def decode(first: int) -> int:
        done = 0
        while time.perf_counter() < end:
            with suppress(BadImageError):
                read_rgb(storage, (first + done * threads) % len(storage))
            done += 1
        return done

    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        images = sum(pool.map(decode, range(threads)))
    return Rate(images_per_second=images / (time.perf_counter() - started))


def measure_loader(trainer: Trainer, seconds: float) -> Rate:
    """Takes batches and throws them away."""
    batches = batches_of(trainer)
    try:
        return _timed(lambda: len(next(batches).index), trainer.device, seconds)
    finally:
        batches.close()


def measure_augment(trainer: Trainer, batch: Batch, seconds: float, *, compile_it: bool) -> Rate:
    """The color of one batch, again and again; `compile_it` where the step is compiled as a whole."""
    assert isinstance(trainer.compute, TrainStep)  # one process, so there is no DDP around it
    photometric: Callable[..., object] = trainer.compute.photometric
    if compile_it:
        photometric = torch.compile(trainer.compute.photometric, fullgraph=True, dynamic=False)

    def work() -> int:
        with torch.inference_mode():
            photometric(batch.crops, batch.photometric)
        return len(batch.index)

    return _timed(work, trainer.device, seconds)


def measure_step(trainer: Trainer, batch: Batch, seconds: float) -> tuple[Rate, float]:
    """Steps on one batch, color and optimizer included.

    Returns:
        The rate, and how long the first step took: compilation.
    """
    trainer.method.train()
    started = time.perf_counter()
    trainer.train_on([batch])
    wait_for(trainer.device)
    first = time.perf_counter() - started

    def work() -> int:
        trainer.train_on([batch])
        return len(batch.index)

    rate = _timed(work, trainer.device, seconds)
    return rate, max(0.0, first - len(batch.index) / rate.images_per_second)


def logged(
    history: Sequence[dict[str, float]], warm_up: int, batch_size: int
) -> tuple[Rate, float, float]:
    """What the trainer's log says of the steps behind `warm_up`, windows weighted by their time.

    Returns:
        The rate, the share of the time that was spent waiting for data, and seconds.
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
    """The trainer itself, from its step 0 for so many steps behind a warm-up, from its own log.

    Returns:
        The rate, and the share of the time that was spent waiting for data.

    Raises:
        KeyboardInterrupt: a signal ended it, which the trainer by itself would survive.
    """
    every = max(1, steps // _WINDOWS)
    warm_up = max(_WARM_UP_STEPS, every)
    trainer.config = replace(trainer.config, log_every=every)
    # The run may have fewer steps than it takes to measure one.
    trainer.schedule_steps = replace(
        trainer.schedule_steps, stop=warm_up + steps, checkpoint_every=warm_up + steps + 1
    )
    if trainer.fit():
        raise KeyboardInterrupt
    return logged(trainer.recorder.history, warm_up, trainer.config.batch_size)[:2]


def measure_features(trainer: Trainer, storage: Storage, seconds: float) -> Rate:
    """Features of centered images, as the kNN evaluation takes them."""
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
            device=trainer.device,
            dtype=choose_dtype(config.precision, trainer.device)[0],
        )
        wait_for(trainer.device)
        rates.append(images / (time.perf_counter() - started))
        if time.perf_counter() >= end and len(rates) > 1:
            rates = rates[1:]  # the first one warms up
            return Rate(images_per_second=statistics.harmonic_mean(rates), samples=rates)
