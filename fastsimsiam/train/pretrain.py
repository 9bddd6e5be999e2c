"""The main job: pretrain a method as a config says, from the data on the disk to a summary."""

import json
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastsimsiam.config.run import Config
from fastsimsiam.config.stored import to_dict
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.knn import KnnEvaluator, build_knn
from fastsimsiam.loaders.base import Loader, LoaderOptions
from fastsimsiam.loaders.registry import build_loader
from fastsimsiam.methods.registry import method_class
from fastsimsiam.runs.checkpoint import Checkpoint, CheckpointStore, require_same_run
from fastsimsiam.runs.curves import draw_curves
from fastsimsiam.runs.recorder import Recorder
from fastsimsiam.storage.base import Report, Storage, fingerprint
from fastsimsiam.storage.open import has_split, open_split
from fastsimsiam.system.device import choose_device
from fastsimsiam.system.files import written_whole
from fastsimsiam.system.hardware import commit, versions
from fastsimsiam.system.progress import clock
from fastsimsiam.train.auto import choose_all
from fastsimsiam.train.build import build_trainer
from fastsimsiam.train.distributed import World, join
from fastsimsiam.train.profiler import profiled
from fastsimsiam.version import __version__

_REPORT_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Summary:
    """How a run ended.

    Attributes:
        steps: optimizer steps done in all.
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
        config: the run, see `recipes`.
        resume: continue from the newest checkpoint in `config.out`.
        profile: steps to record with torch's profiler, into `config.out`.

    Raises:
        UserError: something in the config, the data or the checkpoint has to be mended.
    """
    method_class(config)  # refuses what it cannot run before anything is opened
    device_type = choose_device(config.device)[0].type
    with join(device_type) as world:
        if config.batch_size % (world.size * config.accumulate):
            raise UserError(
                f"--batch-size {config.batch_size} cannot be shared by {world.size} processes with "
                f"--accumulate {config.accumulate}: give a multiple of {world.size * config.accumulate}"
            )
        store = CheckpointStore(config.out, config.checkpoint.keep)
        warnings: list[str] = []
        checkpoint = _find_checkpoint(store, config, resume, warnings)
        with closing(
            Recorder(
                config.out,
                active=world.is_main,
                resumed_step=checkpoint.step if checkpoint else None,
            )
        ) as recorder:
            train = open_split(config.data, "train", report=_reporter(recorder, "reading headers"))
            chosen = choose_all(config, train, world.local_rank, world.size)
            device, dtype = chosen.device, chosen.dtype
            recorder.say(chosen.why)
            for warning in warnings:
                recorder.say(warning)
            if checkpoint:
                require_same_run(checkpoint, config, fingerprint(train))

            def loader_of(storage: Storage) -> Loader:
                return build_loader(
                    chosen.loader,
                    storage,
                    LoaderOptions(
                        device=chosen.device,
                        workers=config.workers,
                        on_bad_image=config.on_bad_image,
                    ),
                    cpu=config.cpu,
                    dali=config.dali,
                    report=_reporter(recorder, "decoding"),
                )

            with closing(loader_of(train)) as loader:
                evaluators, val_loader = _evaluators(
                    config, train, loader, loader_of, recorder, device, dtype, world
                )
                trainer = build_trainer(
                    config,
                    train,
                    loader,
                    evaluators=evaluators,
                    store=store,
                    recorder=recorder,
                    device=device,
                    dtype=dtype,
                    compiled=chosen.compiled,
                    world=world,
                )
                if checkpoint:
                    trainer.restore(checkpoint)
                _announce(recorder, config, train, trainer.schedule_steps.stop, trainer.step)
                try:
                    with profiled(profile, config.out, device, recorder.say) as after_step:
                        trainer.after_step = after_step
                        signal = trainer.fit()
                except torch.OutOfMemoryError as error:
                    raise UserError(
                        "the GPU's memory is too small for this batch: lower --batch-size, or raise "
                        "--accumulate"
                    ) from error
                finally:
                    bad_images = dict(loader.bad_images)
                    if val_loader:
                        bad_images |= val_loader.bad_images
                        val_loader.close()
                    for reason in bad_images.values():
                        recorder.say(f"skipped: {reason}")
            paths = store.paths()
            summary = Summary(
                steps=trainer.step,
                signal=signal,
                checkpoint=paths[-1] if paths else None,
                first=_values(reversed(recorder.history)),
                last=_values(recorder.history),
                bad_images=bad_images,
            )
            if world.is_main:
                _conclude(recorder, config, summary, trainer.data, trainer.elapsed())
            return summary


def _find_checkpoint(
    store: CheckpointStore, config: Config, resume: bool, warnings: list[str]
) -> Checkpoint | None:
    existing = store.paths()
    if resume:
        if not existing:
            raise UserError(
                f"--resume: there is no checkpoint in {config.out}: drop --resume to start"
            )
        return store.newest(warnings.append)
    if existing:
        raise UserError(
            f"--out {config.out} already holds a run ({existing[-1].name}): pass --resume to go on "
            f"with it, or another --out"
        )
    return None


def _evaluators(
    config: Config,
    train: Storage,
    loader: Loader,
    loader_of: Any,
    recorder: Recorder,
    device: torch.device,
    dtype: torch.dtype,
    world: World,
) -> tuple[list[KnnEvaluator], Loader | None]:
    """The evaluators, and the loader of the validation split that they use."""
    if not config.knn.every_epochs:
        return [], None
    if not has_split(config.data, "val"):
        recorder.say(f"no kNN during training: {config.data} has no val/ folder")
        return [], None
    if not world.is_main:
        return [], None
    report = _reporter(recorder, "reading headers")
    val = open_split(config.data, "val", classes=train.classes, report=report)
    val_loader: Loader = loader_of(val)
    knn = build_knn(
        (loader, train),
        (val_loader, val),
        knn=config.knn,
        image_size=config.image_size,
        device=device,
        dtype=dtype,
        report=_reporter(recorder, "evaluating"),
    )
    return [knn], val_loader


def _announce(recorder: Recorder, config: Config, train: Storage, steps: int, done: int) -> None:
    origin = f"resumed at step {done}" if done else "from the start"
    recorder.say(
        f"{config.recipe}: {config.arch}, {len(train)} images of {len(train.classes)} classes, "
        f"{config.epochs} epochs, batch {config.batch_size}, {config.image_size} px, to step {steps} "
        f"({origin})"
    )


def _reporter(recorder: Recorder, what: str) -> Report:
    """Prints progress of something long every few seconds, and nothing of something short."""
    started = last = time.perf_counter()
    before = 0

    def report(done: int, total: int) -> None:
        nonlocal started, last, before
        now = time.perf_counter()
        if done <= before:  # the next one of its kind
            started = last = now
        before = done
        if now - last < _REPORT_SECONDS:
            return
        last = now
        remaining = (now - started) / max(done - 1, 1) * (total - done)
        recorder.note(f"{what}: {done}/{total}, ETA {clock(remaining)}")

    return report


def _values(lines: Any) -> dict[str, float]:
    """Of every metric the value that comes last in `lines`."""
    return {name: value for line in lines for name, value in line.items()}


def _conclude(
    recorder: Recorder, config: Config, summary: Summary, data: str, seconds: float
) -> None:
    """Writes summary.json and the picture of the curves; says how the run went."""
    scores = {name: value for name, value in summary.last.items() if name.startswith("knn_")}
    for name, value in scores.items():
        recorder.say(f"{name}: {summary.first[name]:.2f} untrained -> {value:.2f}")
    if summary.bad_images:
        recorder.say(f"{len(summary.bad_images)} broken images were replaced, see summary.json")
    stored = {
        "config": to_dict(config),
        "steps": summary.steps,
        "seconds": seconds,
        "first": dict(summary.first),
        "last": dict(summary.last),
        "bad_images": dict(summary.bad_images),
        "data": data,
        "commit": commit(),
        "versions": {"fastsimsiam": __version__, **versions()},
    }
    with written_whole(config.out / "summary.json", "the summary") as file:
        file.write_text(json.dumps(stored, indent=2) + "\n")
    drawn = draw_curves(recorder.history, config.out / "curves.png")
    recorder.say(f"done in {clock(seconds)}: {summary.checkpoint}")
    recorder.say(drawn)
