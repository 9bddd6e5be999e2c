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
    """Minutes of measurement; start-up and compilation come on top."""
    json: Path | None = None
    """JSON file for all measurements and the diagnosis."""


def run(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    name, rest = _take_recipe(argv)
    about = (
        "Measures decoding, loader, color and training step on this machine; names the bottleneck, "
        f"what to change, and how long --recipe NAME (here {name}) takes. Without --data: on synthetic "
        "photographs. Takes all options of pretrain."
    )
    arguments = parse(
        _Doctor,
        rest,
        "fastsimsiam doctor",
        default=_Doctor(config=catalogue.recipe(name)),
        about=about,
    )
    from fastsimsiam.doctor.doctor import diagnose
    from fastsimsiam.doctor.report import format_report

    report = diagnose(
        arguments.config,
        minutes=arguments.minutes,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )
    print(format_report(report))
    if arguments.json:
        write_json(arguments.json, report.as_dict())
    return 0


def _take_recipe(argv: list[str]) -> tuple[str, list[str]]:
    """Splits off the value of `--recipe`, on which the defaults of all other options depend."""
    for position, argument in enumerate(argv):
        if argument.startswith("--recipe="):
            return argument.removeprefix("--recipe="), argv[:position] + argv[position + 1 :]
        if argument == "--recipe" and position + 1 < len(argv):
            return argv[position + 1], argv[:position] + argv[position + 2 :]
    return "imagenet-100ep", argv
