"""The main job: pretrain a method as a config says, from the data on the disk to a summary.

In this order: open the data, choose what `auto` leaves open, build, fit, conclude.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from fastsimsiam.config.run import Config
from fastsimsiam.config.stored import to_dict
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.knn import KnnEvaluator, build_knn
from fastsimsiam.loaders.base import Loader, LoaderOptions
from fastsimsiam.loaders.jpeg_warning import warned_line
from fastsimsiam.loaders.registry import build_loader
from fastsimsiam.methods.registry import check_method
from fastsimsiam.runs.checkpoint import Checkpoint, CheckpointStore, require_same_run
from fastsimsiam.runs.curves import draw_curves
from fastsimsiam.runs.recorder import Recorder
from fastsimsiam.storage.base import Report, Storage, fingerprint
from fastsimsiam.storage.open import has_split, open_split
from fastsimsiam.system.device import choose_device
from fastsimsiam.system.files import written_whole
from fastsimsiam.system.hardware import commit, versions
from fastsimsiam.system.progress import clock
from fastsimsiam.train.auto import Chosen, choose_all
from fastsimsiam.train.build import build_trainer
from fastsimsiam.train.distributed import World, join
from fastsimsiam.train.profiler import profiled
from fastsimsiam.train.trainer import Trainer
from fastsimsiam.version import __version__

_REPORT_SECONDS = 5.0
_WARNED_SHOWN = 20
"""Images with a warning that the log names; summary.json names all."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """How a run ended.

    Attributes:
        steps: optimizer steps of the whole run.
        signal: number of the signal that ended it early, or 0.
        checkpoint: the newest checkpoint.
        first, last: the first and the last value of every metric.
        bad_images: path -> what is wrong with it, for images that were skipped.
        warned_images: path -> the decoder's warning, for images that were used nevertheless.
    """

    steps: int
    signal: int
    checkpoint: Path | None
    first: Mapping[str, float]
    last: Mapping[str, float]
    bad_images: Mapping[str, str]
    warned_images: Mapping[str, str]


def pretrain(config: Config, *, resume: bool = False, profile: int = 0) -> Summary:
    """Pretrains and writes checkpoints, metrics and logs to `config.out`.

    Args:
        config: the run's configuration, see `recipe`.
        resume: continue from the newest checkpoint in `config.out`.
        profile: number of steps to record with torch's profiler, into `config.out`.

    Raises:
        UserError: the config, the data or the checkpoint has to be fixed.
    """
    check_method(config)  # refuses what it cannot run before anything is opened
    with join(choose_device(config.device)[0].type) as world:
        _require_equal_shares(config, world)
        store = CheckpointStore(config.out, config.checkpoint.keep)
        warnings: list[str] = []
        checkpoint = _checkpoint_to_resume(store, config, resume, warnings.append)
        resumed_step = checkpoint.step if checkpoint else None
        with closing(Recorder(config, active=world.is_main, resumed_step=resumed_step)) as recorder:
            train = open_split(config.data, "train", report=_reporter(recorder, "reading headers"))
            chosen = choose_all(config, train, world.local_rank, world.size)
            for line in (chosen.why, *warnings):
                recorder.say(line)
            if checkpoint:
                require_same_run(checkpoint, config, fingerprint(train))
            with closing(_Loaders(config, chosen, recorder)) as loaders:
                trainer = build_trainer(
                    config,
                    train,
                    loaders.open(train),
                    evaluators=_evaluators(config, train, loaders, chosen, recorder, world),
                    store=store,
                    recorder=recorder,
                    device=chosen.device,
                    dtype=chosen.dtype,
                    compiled=chosen.compiled,
                    world=world,
                )
                if checkpoint:
                    trainer.restore(checkpoint)
                _announce(trainer, train)
                signal = _fit(trainer, loaders, profile)
            return _conclude(trainer, signal, loaders)


class _Loaders:
    """The loaders of a run."""

    def __init__(self, config: Config, chosen: Chosen, recorder: Recorder) -> None:
        self._config, self._chosen, self._recorder = config, chosen, recorder
        self._opened: dict[int, Loader] = {}

    def open(self, storage: Storage) -> Loader:
        """The loader of a split, the same at each call."""
        if id(storage) not in self._opened:
            config = self._config
            self._opened[id(storage)] = build_loader(
                self._chosen.loader,
                storage,
                LoaderOptions(
                    device=self._chosen.device,
                    workers=config.workers,
                    on_bad_image=config.on_bad_image,
                    gray16_max=config.gray16_max,
                    check_images=config.check_images,
                ),
                cpu=config.cpu,
                dali=config.dali,
                report=_reporter(self._recorder, "decoding"),
            )
        return self._opened[id(storage)]

    @property
    def bad_images(self) -> dict[str, str]:
        """Path -> what is wrong with it, of images that were skipped so far."""
        return {
            path: reason
            for loader in self._opened.values()
            for path, reason in loader.bad_images.items()
        }

    @property
    def warned_images(self) -> dict[str, str]:
        """Path -> the decoder's warning, of images that were used so far."""
        return {
            path: text
            for loader in self._opened.values()
            for path, text in loader.warned_images.items()
        }

    def close(self) -> None:
        for loader in self._opened.values():
            loader.close()


def _require_equal_shares(config: Config, world: World) -> None:
    parts = world.size * config.accumulate
    if config.batch_size % parts:
        raise UserError(
            f"--batch-size {config.batch_size} cannot be shared by {world.size} processes with "
            f"--accumulate {config.accumulate}: give a multiple of {parts}"
        )


def _checkpoint_to_resume(
    store: CheckpointStore, config: Config, resume: bool, warn: Callable[[str], None]
) -> Checkpoint | None:
    existing = store.paths()
    if resume:
        if not existing:
            raise UserError(
                f"--resume: there is no checkpoint in {config.out}: drop --resume to start"
            )
        return store.newest(warn)
    if existing:
        raise UserError(
            f"--out {config.out} already holds a run ({existing[-1].name}): pass --resume to go on "
            f"with it, or another --out"
        )
    return None


def _evaluators(
    config: Config,
    train: Storage,
    loaders: _Loaders,
    chosen: Chosen,
    recorder: Recorder,
    world: World,
) -> list[KnnEvaluator]:
    """KNN on the validation split, on the main rank."""
    if not config.knn.every_epochs:
        return []
    if not has_split(config.data, "val"):
        recorder.say(f"no kNN during training: {config.data} has no val/ folder")
        return []
    if not world.is_main:
        return []
    report = _reporter(recorder, "reading headers")
    val = open_split(config.data, "val", classes=train.classes, report=report)
    knn = build_knn(
        (loaders.open(train), train),
        (loaders.open(val), val),
        knn=config.knn,
        image_size=config.image_size,
        device=chosen.device,
        dtype=chosen.dtype,
        report=_reporter(recorder, "evaluating"),
    )
    return [knn]


def _announce(trainer: Trainer, train: Storage) -> None:
    config = trainer.config
    origin = f"resumed at step {trainer.step}" if trainer.step else "from the start"
    trainer.recorder.say(
        f"{config.recipe}: {config.arch}, {len(train)} images of {len(train.classes)} classes, "
        f"{config.epochs} epochs, batch {config.batch_size}, {config.image_size} px, to step "
        f"{trainer.schedule_steps.stop} ({origin})"
    )


def _reporter(recorder: Recorder, what: str) -> Report:
    """Prints the progress of something long every few seconds, and nothing of something short."""
    started = printed = time.perf_counter()
    before = 0

    def report(done: int, total: int) -> None:
        nonlocal started, printed, before
        now = time.perf_counter()
        if done <= before:  # the next one of its kind
            started = printed = now
        before = done
        if now - printed < _REPORT_SECONDS:
            return
        printed = now
        remaining = (now - started) / max(done - 1, 1) * (total - done)
        recorder.note(f"{what}: {done}/{total}, ETA {clock(remaining)}")

    return report


def _fit(trainer: Trainer, loaders: _Loaders, profile: int) -> int:
    """Trains; whatever happens, the log names the images that were skipped."""
    recorder = trainer.recorder
    try:
        with profiled(profile, trainer.config.out, trainer.device, recorder.say) as after_step:
            trainer.after_step = after_step
            return trainer.fit()
    except torch.OutOfMemoryError as error:
        raise UserError(
            "the GPU's memory is too small for this batch: lower --batch-size, or raise --accumulate"
        ) from error
    finally:
        for reason in loaders.bad_images.values():
            recorder.say(f"skipped: {reason}")
        for path, text in islice(loaders.warned_images.items(), _WARNED_SHOWN):
            recorder.say(f"warned: {path} ({text})")


def _conclude(trainer: Trainer, signal: int, loaders: _Loaders) -> Summary:
    """Writes summary.json and the curves, and says how the run went."""
    recorder, config = trainer.recorder, trainer.config
    paths = trainer.store.paths()
    bad_images, warned_images = loaders.bad_images, loaders.warned_images
    summary = Summary(
        steps=trainer.step,
        signal=signal,
        checkpoint=paths[-1] if paths else None,
        first=_last_values(reversed(recorder.history)),
        last=_last_values(recorder.history),
        bad_images=bad_images,
        warned_images=warned_images,
    )
    if not trainer.world.is_main:
        return summary
    for name, value in summary.last.items():
        # A run that was interrupted may have scored the untrained network alone.
        evaluated = sum(name in line for line in recorder.history)
        if name.startswith("knn_") and evaluated > 1:
            recorder.say(f"{name}: {summary.first[name]:.2f} untrained -> {value:.2f}")
    if bad_images:
        recorder.say(f"{len(bad_images)} broken images were replaced, see summary.json")
    if warned_images:
        recorder.say(f"{warned_line(warned_images)}, see summary.json")
    seconds = trainer.elapsed()
    stored = {
        "config": to_dict(config),
        "steps": summary.steps,
        "seconds": seconds,
        "first": dict(summary.first),
        "last": dict(summary.last),
        "bad_images": bad_images,
        "warned_images": warned_images,
        "data": trainer.data,
        "commit": commit(),
        "versions": {"fastsimsiam": __version__, **versions()},
    }
    with written_whole(config.out / "summary.json", "the summary") as file:
        file.write_text(json.dumps(stored, indent=2) + "\n")
    drawn = draw_curves(recorder.history, config.out / "curves.png")
    ended = f"stopped at step {trainer.step} of {trainer.schedule_steps.stop}" if signal else "done"
    recorder.say(f"{ended} in {clock(seconds)}: {summary.checkpoint}")
    recorder.say(drawn)
    return summary


def _last_values(lines: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The value of every metric that comes last in `lines`."""
    return {name: value for line in lines for name, value in line.items()}
