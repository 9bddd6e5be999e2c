"""The main job: pretrain a method as a config says, from the data on the disk to a summary.

In this order: open the data, choose what `auto` leaves open, build, fit, conclude.
"""

import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from signal import Signals

from fastsimsiam.config.run import Config
from fastsimsiam.config.stored import to_dict
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.knn import KnnEvaluator, build_knn
from fastsimsiam.loaders.base import Loader, LoaderOptions
from fastsimsiam.loaders.jpeg_warning import warned_line
from fastsimsiam.loaders.registry import build_loader
from fastsimsiam.runs.checkpoint import CheckpointStore, load
from fastsimsiam.runs.curves import draw_curves
from fastsimsiam.runs.folder import IMAGES_FILE
from fastsimsiam.runs.recorder import Recorder
from fastsimsiam.storage.base import Storage
from fastsimsiam.storage.open import has_split, missing_split, open_split
from fastsimsiam.storage.passed_over import notes
from fastsimsiam.storage.record import as_recorded, read_record, write_record
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
from fastsimsiam.train.resume import Finished, Resume, Start, opened_run
from fastsimsiam.train.trainer import Trainer
from fastsimsiam.version import __version__

_LESS_MEMORY = "lower --batch-size, or raise --accumulate"
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


def pretrain(config: Config, *, resume: Resume = False, profile: int = 0) -> Summary:
    """Pretrains and writes checkpoints, metrics and logs to `config.out`.

    Args:
        config: the run's configuration, see `recipe`.
        resume: continue from the newest good checkpoint in `config.out`; "auto": if there is one,
            else start. A run that is finished is left as it is.
        profile: number of steps to record with torch's profiler, into `config.out`.

    Raises:
        UserError: the config, the data or the checkpoint has to be fixed.
    """
    with told_by_the_first():
        device, _ = choose_device(config.device)
        require_possible(config, device, read_launch().size)
    with join(device.type) as world, catch_signals() as interrupt, ExitStack() as opened:
        try:
            with interrupt.droppable(), memory_told("this run", _LESS_MEMORY):
                store = CheckpointStore(config.out, config.checkpoint.keep)
                start = opened.enter_context(opened_run(config, store, resume, world))
                if start.finished:
                    return _already_finished(config, start.finished, world)
                trainer, loaders, train = _prepare(config, start, store, world, opened)
        except Interrupted:
            return _stopped_early(config, interrupt, world)
        with memory_told("this batch", _LESS_MEMORY):
            signal = _fit(trainer, loaders, profile, interrupt)
        return _conclude(trainer, signal, loaders, train.passed_over)


def _prepare(
    config: Config, start: Start, store: CheckpointStore, world: World, opened: ExitStack
) -> "tuple[Trainer, _Loaders, Storage]":
    """All that comes before the first step; what has to be closed goes to `opened`."""
    checkpoint = load(start.path) if start.path else None
    resumed_step = checkpoint.step if checkpoint else None
    recorder = Recorder(config, active=world.is_main, resumed_step=resumed_step)
    opened.enter_context(closing(recorder))
    store.say = recorder.say
    if world.is_main:
        require_writable(config.out)
    train = open_split(config.data, "train", report=reporter(recorder, "reading headers"))
    record, changed = None, ""
    if checkpoint:
        record = read_record(config.out / IMAGES_FILE, checkpoint.data)
        skip = config.on_bad_image in ("skip", "skip-strict")
        train, changed = as_recorded(train, record, checkpoint.data, skip=skip)
    chosen = choose_all(config, train, world.local_rank, world.size)
    for line in filter(None, (chosen.why, *start.lines, changed)):
        recorder.say(line)
    if world.is_main and not record:
        write_record(config.out / IMAGES_FILE, train)
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
    return trainer, loaders, train


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
        warned_images={},
    )


def _already_finished(config: Config, finished: Finished, world: World) -> Summary:
    """Says so; no file is touched."""
    if world.is_main:
        print(f"{config.out} is finished, at step {finished.step}: {finished.path}")
    return Summary(
        steps=finished.step,
        signal=0,
        checkpoint=finished.path,
        first=finished.summary.get("first", {}),
        last=finished.summary.get("last", {}),
        bad_images=finished.summary.get("bad_images", {}),
        warned_images=finished.summary.get("warned_images", {}),
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
                    gray16_max=config.gray16_max,
                    check_images=config.check_images,
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
        recorder.say(f"no kNN during training: {missing_split(config.data, 'val')}")
        return []
    if not world.is_main:
        return []
    report = reporter(recorder, "reading headers")
    val = open_split(config.data, "val", classes=train.classes, report=report)
    for line in notes(val):
        recorder.say(line)
    knn = build_knn(
        (loaders.open(train), train),
        (loaders.open(val), val),
        knn=config.knn,
        image_size=config.image_size,
        device=chosen.device,
        dtype=chosen.dtype,
        warn=lambda text: recorder.say(f"WARNING: {text}"),
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
    for line in notes(train):
        trainer.recorder.say(line)


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
        for path, text in islice(loaders.warned_images.items(), _WARNED_SHOWN):
            recorder.say(f"warned: {path} ({text})")


def _conclude(
    trainer: Trainer, signal: int, loaders: _Loaders, passed_over: Mapping[str, int]
) -> Summary:
    """Writes summary.json and the curves, and says how the run went."""
    recorder, config = trainer.recorder, trainer.config
    bad_images, warned_images = loaders.bad_images, loaders.warned_images
    summary = Summary(
        steps=trainer.step,
        signal=signal,
        checkpoint=trainer.store.newest_path(),
        first=_last_values(reversed(recorder.history)),
        last=_last_values(recorder.history),
        bad_images=bad_images,
        warned_images=warned_images,
    )
    if not trainer.world.is_main:
        return summary
    for line in since_untrained(recorder.history, trainer.step):
        recorder.say(line)
    if bad_images:
        recorder.say(f"{len(bad_images)} broken images were replaced, see summary.json")
    if warned_images:
        recorder.say(f"{warned_line(warned_images)}, see summary.json")
    seconds = trainer.elapsed()
    stored = {
        "config": to_dict(config),
        "steps": summary.steps,
        "signal": signal,
        "seconds": seconds,
        "first": dict(summary.first),
        "last": dict(summary.last),
        "bad_images": bad_images,
        "warned_images": warned_images,
        "passed_over": dict(passed_over),
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
