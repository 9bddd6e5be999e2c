"""The main job: pretrain a method as a config says, from the data on the disk to a summary.

In this order: open the data, choose what `auto` leaves open, build, fit, conclude.
"""

import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import Signals

from fastsimsiam.config.run import Config
from fastsimsiam.config.stored import to_dict
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.knn import KnnEvaluator, build_knn
from fastsimsiam.loaders.base import Loader, LoaderOptions
from fastsimsiam.loaders.registry import build_loader
from fastsimsiam.runs.checkpoint import Checkpoint, CheckpointStore, require_same_run
from fastsimsiam.runs.curves import draw_curves
from fastsimsiam.runs.recorder import Recorder
from fastsimsiam.storage.base import Storage, fingerprint
from fastsimsiam.storage.open import has_split, open_split
from fastsimsiam.system.device import choose_device
from fastsimsiam.system.files import written_whole
from fastsimsiam.system.hardware import commit, versions
from fastsimsiam.system.launcher import read_launch, told_by_the_first
from fastsimsiam.system.out_of_memory import memory_told
from fastsimsiam.system.progress import clock
from fastsimsiam.train.auto import Chosen, choose_all
from fastsimsiam.train.build import build_trainer
from fastsimsiam.train.checks import inexact_resume, little_room, require_possible, require_writable
from fastsimsiam.train.distributed import OtherRankEnded, World, join
from fastsimsiam.train.ending import how_it_ended, since_untrained
from fastsimsiam.train.interrupt import Interrupt, Interrupted, catch_signals
from fastsimsiam.train.profiler import profiled
from fastsimsiam.train.reporter import reporter
from fastsimsiam.train.trainer import Trainer
from fastsimsiam.version import __version__

_CLOSING_SECONDS = 10.0
_LESS_MEMORY = "lower --batch-size, or raise --accumulate"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """How a run ended.

    Attributes:
        steps: optimizer steps of the whole run.
        signal: number of the signal that ended it early, or 0.
        checkpoint: the newest checkpoint.
        first, last: the first and the last value of every metric.
        bad_images: path -> what is wrong with it, for images that were skipped.
    """

    steps: int
    signal: int
    checkpoint: Path | None
    first: Mapping[str, float]
    last: Mapping[str, float]
    bad_images: Mapping[str, str]


def pretrain(config: Config, *, resume: bool = False, profile: int = 0) -> Summary:
    """Pretrains and writes checkpoints, metrics and logs to `config.out`.

    Args:
        config: the run's configuration, see `recipe`.
        resume: continue from the newest checkpoint in `config.out`.
        profile: number of steps to record with torch's profiler, into `config.out`.

    Raises:
        UserError: the config, the data or the checkpoint has to be fixed.
    """
    with told_by_the_first():
        device, _ = choose_device(config.device)
        require_possible(config, device, read_launch().size)
    with join(device.type) as world, catch_signals() as interrupt, ExitStack() as opened:
        # The first that is entered is the last that is left.
        closing_ends = opened.enter_context(_last_resort(interrupt))
        try:
            with interrupt.droppable(), memory_told("this run", _LESS_MEMORY):
                trainer, loaders = _prepare(config, resume, world, opened)
        except Interrupted:
            return _stopped_early(config, interrupt, world)
        with memory_told("this batch", _LESS_MEMORY):
            signal = _fit(trainer, loaders, profile, interrupt)
        summary = _conclude(trainer, signal, loaders.bad_images)
        if signal:
            closing_ends.start()
        return summary


@contextmanager
def _last_resort(interrupt: Interrupt) -> Iterator[threading.Timer]:
    """A timer that ends the process if a loader that hangs cannot be closed; it is to be started."""
    timer = threading.Timer(_CLOSING_SECONDS, lambda: os._exit(128 + interrupt.number))
    timer.daemon = True
    try:
        yield timer
    finally:
        timer.cancel()


def _prepare(
    config: Config, resume: bool, world: World, opened: ExitStack
) -> "tuple[Trainer, _Loaders]":
    """All that comes before the first step; what has to be closed goes to `opened`."""
    store = CheckpointStore(config.out, config.checkpoint.keep)
    lines: list[str] = []
    checkpoint = _checkpoint_to_resume(store, config, resume, lines.append)
    resumed_step = checkpoint.step if checkpoint else None
    recorder = Recorder(config, active=world.is_main, resumed_step=resumed_step)
    opened.enter_context(closing(recorder))
    if world.is_main:
        require_writable(config.out)
    train = open_split(config.data, "train", report=reporter(recorder, "reading headers"))
    chosen = choose_all(config, train, world.local_rank, world.size)
    for line in (chosen.why, *lines):
        recorder.say(line)
    if checkpoint:
        require_same_run(checkpoint, config, fingerprint(train))
    loaders = opened.enter_context(closing(_Loaders(config, chosen, recorder)))
    loader = loaders.open(train)
    evaluators = _evaluators(config, train, loaders, chosen, recorder, world)
    world.wait()  # building needs all ranks at once, and each opens its data for as long as it takes
    trainer = build_trainer(
        config,
        train,
        loader,
        evaluators=evaluators,
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
    warnings = [inexact_resume(config, checkpoint, chosen.device, world.size)] if checkpoint else []
    if world.is_main:
        warnings.append(little_room(trainer.method, config.out))
    for warning in filter(None, warnings):
        recorder.say(f"WARNING: {warning}")
    return trainer, loaders


def _stopped_early(config: Config, interrupt: Interrupt, world: World) -> Summary:
    """Ends a run that a signal reaches before its first step; the files of the run are as before."""
    if world.another_ended():  # and the launcher ends this process by a signal
        raise OtherRankEnded(2)
    world.end()
    if world.is_main:
        name = Signals(interrupt.number).name
        print(f"{name}: stopped before the first step; the same command starts again", flush=True)
    paths = CheckpointStore(config.out, config.checkpoint.keep).paths()
    return Summary(
        steps=0,
        signal=interrupt.number,
        checkpoint=paths[-1] if paths else None,
        first={},
        last={},
        bad_images={},
    )


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
                ),
                cpu=config.cpu,
                dali=config.dali,
                report=reporter(self._recorder, "decoding"),
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

    def close(self) -> None:
        for loader in self._opened.values():
            loader.close()


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
    report = reporter(recorder, "reading headers")
    val = open_split(config.data, "val", classes=train.classes, report=report)
    knn = build_knn(
        (loaders.open(train), train),
        (loaders.open(val), val),
        knn=config.knn,
        image_size=config.image_size,
        device=chosen.device,
        dtype=chosen.dtype,
        report=reporter(recorder, "evaluating"),
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


def _fit(trainer: Trainer, loaders: _Loaders, profile: int, interrupt: Interrupt) -> int:
    """Trains; whatever happens, the log names the images that were skipped."""
    recorder = trainer.recorder
    try:
        with profiled(profile, trainer.config.out, trainer.device, recorder.say) as after_step:
            trainer.after_step = after_step
            return trainer.fit(interrupt)
    finally:
        for reason in loaders.bad_images.values():
            recorder.say(f"skipped: {reason}")


def _conclude(trainer: Trainer, signal: int, bad_images: Mapping[str, str]) -> Summary:
    """Writes summary.json and the curves, and says how the run went."""
    recorder, config = trainer.recorder, trainer.config
    paths = trainer.store.paths()
    summary = Summary(
        steps=trainer.step,
        signal=signal,
        checkpoint=paths[-1] if paths else None,
        first=_last_values(reversed(recorder.history)),
        last=_last_values(recorder.history),
        bad_images=bad_images,
    )
    if not trainer.world.is_main:
        return summary
    for line in since_untrained(recorder.history, trainer.step):
        recorder.say(line)
    if bad_images:
        recorder.say(f"{len(bad_images)} broken images were replaced, see summary.json")
    seconds = trainer.elapsed()
    stored = {
        "config": to_dict(config),
        "steps": summary.steps,
        "seconds": seconds,
        "first": dict(summary.first),
        "last": dict(summary.last),
        "signal": signal,
        "bad_images": dict(bad_images),
        "data": trainer.data,
        "commit": commit(),
        "versions": {"fastsimsiam": __version__, **versions()},
    }
    problem: UserError | None = None
    try:
        with written_whole(config.out / "summary.json", "the summary") as file:
            file.write_text(json.dumps(stored, indent=2) + "\n")
    except UserError as error:  # the rest of the end comes first
        problem = error
    drawn = draw_curves(recorder.history, config.out / "curves.png")
    ended = how_it_ended(trainer.schedule_steps, trainer.step, signal)
    recorder.say(f"{ended} in {clock(seconds)}: {summary.checkpoint}")
    recorder.say(drawn)
    if recorder.failing:
        names = " and ".join(recorder.failing)
        problem = UserError(f"{config.out} lacks the last lines of {names}: make room in it")
    if problem:
        raise problem
    return summary


def _last_values(lines: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The value of every metric that comes last in `lines`."""
    return {name: value for line in lines for name, value in line.items()}
