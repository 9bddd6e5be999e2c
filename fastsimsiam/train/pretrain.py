"""The main job: pretrain a method as a config says, from the data on the disk to a summary.

In this order: open the data, choose what `auto` leaves open, build, fit, conclude.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import islice
from signal import Signals

from fastsimsiam.config.run import Config, require_schedule_within
from fastsimsiam.evaluate.knn import KnnEvaluator, build_knn
from fastsimsiam.loaders.dark_gray import dark_gray_warning
from fastsimsiam.runs.checkpoint import CheckpointStore, load
from fastsimsiam.runs.folder import IMAGES_FILE
from fastsimsiam.runs.recorder import Recorder
from fastsimsiam.storage.base import Storage
from fastsimsiam.storage.labels import NO_CLASSES
from fastsimsiam.storage.open import has_val, missing_split, open_split, open_val
from fastsimsiam.storage.passed_over import notes
from fastsimsiam.storage.record import MOST_RECORDED, as_recorded, read_record, write_record
from fastsimsiam.system.device import choose_device
from fastsimsiam.system.launcher import read_launch, told_by_the_first
from fastsimsiam.system.out_of_memory import memory_told
from fastsimsiam.system.resources import container_limits
from fastsimsiam.train.auto import Chosen, choose_all
from fastsimsiam.train.build import build_trainer
from fastsimsiam.train.checks import (
    fix_for_memory,
    inexact_resume,
    little_room,
    require_labels,
    require_possible,
    require_writable,
)
from fastsimsiam.train.distributed import OtherRankEnded, World, join
from fastsimsiam.train.ending import how_to_go_on
from fastsimsiam.train.interrupt import Interrupt, Interrupted, catch_signals
from fastsimsiam.train.profiler import profiled
from fastsimsiam.train.reporter import reporter
from fastsimsiam.train.resume import Finished, Resume, Start, opened_run
from fastsimsiam.train.run_loaders import RunLoaders
from fastsimsiam.train.summary import Summary, conclude
from fastsimsiam.train.trainer import Trainer

_CLOSING_SECONDS = 10.0
_MORE_MEMORY = "stop other programs that use it, or pass --loader cpu"
_WARNED_SHOWN = 20
"""Images with a warning that the log names; summary.json names all."""


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
        if not (resume and CheckpointStore(config.out, config.checkpoint.keep).paths()):
            require_schedule_within(config)
    with join(device.type) as world, catch_signals() as interrupt, ExitStack() as opened:
        # The first that is entered is the last that is left.
        closing_ends = opened.enter_context(_last_resort(interrupt))
        try:
            with interrupt.droppable(), memory_told("this data set", _MORE_MEMORY):
                store = CheckpointStore(config.out, config.checkpoint.keep)
                start = opened.enter_context(opened_run(config, store, resume, world))
                if start.finished:
                    return _already_finished(config, start.finished, world)
                trainer, loaders, train = _prepare(config, start, store, world, opened)
        except Interrupted:
            closing_ends.start()
            return _stopped_early(config, interrupt, world)
        with memory_told("this batch", fix_for_memory(config)):
            signal = _fit(trainer, loaders, profile, interrupt)
        try:
            return conclude(trainer, signal, loaders, train.passed_over)
        finally:
            if signal:
                closing_ends.start()


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
    config: Config, start: Start, store: CheckpointStore, world: World, opened: ExitStack
) -> "tuple[Trainer, RunLoaders, Storage]":
    """All that comes before the first step; what has to be closed goes to `opened`."""
    checkpoint = load(start.path) if start.path else None
    resumed_step = checkpoint.step if checkpoint else None
    recorder = Recorder(config, active=world.is_main, resumed_step=resumed_step)
    opened.enter_context(closing(recorder))
    store.say = recorder.say
    if world.is_main:
        require_writable(config.out)
    train = open_split(config.data, "train", report=reporter(recorder, "opening the data"))
    require_labels(config, train)
    record, changed = None, ""
    if checkpoint:
        record = read_record(config.out / IMAGES_FILE, checkpoint.data)
        skip = config.on_bad_image.startswith("skip")
        strict = config.on_bad_image.endswith("-strict")
        train, changed = as_recorded(
            train, record, checkpoint.data, skip=skip, option="skip-strict" if strict else "skip"
        )
    chosen = choose_all(config, train, world.local_rank, world.size)
    for line in filter(None, (chosen.why, *start.lines, changed)):
        recorder.say(line)
    if world.is_main and not record and len(train) <= MOST_RECORDED:
        write_record(config.out / IMAGES_FILE, train)
    loaders = opened.enter_context(closing(RunLoaders(config, chosen, recorder)))
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
        warnings.append(little_room(trainer.method, config.optimizer.name, config.out))
    for warning in filter(None, warnings):
        recorder.say(f"WARNING: {warning}")
    return trainer, loaders, train


def _stopped_early(config: Config, interrupt: Interrupt, world: World) -> Summary:
    """Ends a run that a signal reaches before its first step; the files of the run are as before."""
    if not world.stop():  # an error of another rank; the launcher ends this process by a signal
        raise OtherRankEnded(2)
    if world.is_main:
        print(how_to_go_on(0, Signals(interrupt.number)), flush=True)
    return Summary(
        steps=0,
        signal=interrupt.number,
        checkpoint=CheckpointStore(config.out, config.checkpoint.keep).newest_path(),
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


def _evaluators(
    config: Config,
    train: Storage,
    loaders: RunLoaders,
    chosen: Chosen,
    recorder: Recorder,
    world: World,
) -> list[KnnEvaluator]:
    """KNN on the validation split, on the main rank."""
    if not config.knn.every_epochs:
        return []
    if tuple(train.classes) == NO_CLASSES:
        recorder.say("no kNN during training: the images have no labels")
        return []
    if not has_val(config.data, config.val):
        recorder.say(f"no kNN during training: {missing_split(config.data, 'val')}")
        return []
    if not world.is_main:
        return []
    report = reporter(recorder, "opening the data")
    val = open_val(config.data, config.val, classes=train.classes, report=report)
    for line in notes(val):
        recorder.say(line)
    loaders.passed_over_in_val = dict(val.passed_over)
    knn = build_knn(
        (loaders.open(train), train),
        (loaders.open(val), val),
        knn=config.knn,
        image_size=config.image_size,
        constants=config.normalize,
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
    dark = dark_gray_warning(train, config.gray16_max)
    warnings = [f"WARNING: {dark}"] if dark else []
    for line in filter(None, (*notes(train), *warnings, container_limits(), trainer.cores.news())):
        trainer.recorder.say(line)


def _fit(trainer: Trainer, loaders: RunLoaders, profile: int, interrupt: Interrupt) -> int:
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
