"""What a run leaves at its end: summary.json, the curves, and the last lines of its log."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fastsimsiam.config.stored import to_dict
from fastsimsiam.errors import UserError
from fastsimsiam.loaders.jpeg_warning import warned_line
from fastsimsiam.runs.curves import draw_curves
from fastsimsiam.system.files import written_whole
from fastsimsiam.system.hardware import commit, versions
from fastsimsiam.system.json_text import to_json
from fastsimsiam.system.progress import clock
from fastsimsiam.train.ending import how_it_ended, since_untrained
from fastsimsiam.train.run_loaders import RunLoaders
from fastsimsiam.train.trainer import Trainer
from fastsimsiam.version import __version__


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


def conclude(
    trainer: Trainer, signal: int, loaders: RunLoaders, passed_over: Mapping[str, int]
) -> Summary:
    """Writes summary.json and the curves, and says how the run went."""
    recorder, config = trainer.recorder, trainer.config
    # With several ranks each has decoded a part of the images.
    bad_images = trainer.world.united(loaders.bad_images)
    warned_images = trainer.world.united(loaders.warned_images)
    summary = Summary(
        steps=trainer.step,
        signal=signal,
        checkpoint=trainer.store.newest_path() if trainer.world.is_main else None,
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
        "passed_over_in_val": loaders.passed_over_in_val,
        "data": trainer.data,
        "commit": commit(),
        "versions": {"fastsimsiam": __version__, **versions()},
    }
    # Before the summary, which says that a run is finished: then nothing is left to be done.
    drawn = draw_curves(recorder.history, config.out / "curves.png")
    problem: UserError | None = None
    try:
        with written_whole(config.out / "summary.json", "the summary") as file:
            file.write_text(to_json(stored, indent=2) + "\n")
    except UserError as error:  # the rest of the end comes first
        problem = error
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
    return {name: v for line in lines for name, v in line.items() if math.isfinite(v)}
