"""`fastsimsiam doctor`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fastsimsiam.commands.parse import parse, write_json
from fastsimsiam.config.run import Config
from fastsimsiam.recipes import catalogue


@dataclass(frozen=True, kw_only=True)
class _Doctor:
    """Arguments of `doctor`."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    minutes: float = 1.0
    """Minutes of measurement; starting and compiling come on top."""
    json: Path | None = None
    """File that receives all that was found."""


def run(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    name, rest = _take_recipe(argv)
    about = (
        "Measures decoding, loader, color and step on this machine; says what holds it back, what to "
        f"change, and how long --recipe NAME (now {name}) takes. Without --data: on made-up images. "
        "All options of pretrain may be given."
    )
    arguments = parse(
        _Doctor,
        rest,
        "fastsimsiam doctor",
        default=_Doctor(config=catalogue.recipe(name)),
        about=about,
    )
    from fastsimsiam.doctor.doctor import examine, format_report

    report = examine(
        arguments.config,
        minutes=arguments.minutes,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    print(format_report(report))
    if arguments.json:
        write_json(arguments.json, report.as_dict())
    return 0


def _take_recipe(argv: list[str]) -> tuple[str, list[str]]:
    """The value of `--recipe` and the other arguments: the defaults of all options depend on it."""
    for at, word in enumerate(argv):
        if word.startswith("--recipe="):
            return word.removeprefix("--recipe="), argv[:at] + argv[at + 1 :]
        if word == "--recipe" and at + 1 < len(argv):
            return argv[at + 1], argv[:at] + argv[at + 2 :]
    return "imagenet-100ep", argv
