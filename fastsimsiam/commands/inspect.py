"""`fastsimsiam inspect CHECKPOINT`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fastsimsiam.commands.parse import parse, write_json
from fastsimsiam.config.evaluation import INSPECT_IMAGES, EvalOptions


@dataclass(frozen=True, kw_only=True)
class _Inspect:
    """Arguments of `inspect`."""

    checkpoint: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CHECKPOINT")]
    """A checkpoint or a run's folder; weights of torchvision, timm or the official SimSiam."""
    data: Path
    """A data set; its val/ is looked at where it has one."""
    images: int = INSPECT_IMAGES
    """Images to look at, at most."""
    options: Annotated[EvalOptions, tyro.conf.arg(name="")] = EvalOptions()
    json: Path | None = None
    """File that receives the figures."""


def run(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    about = "Figures that tell a healthy representation from a collapsed one."
    arguments = parse(_Inspect, argv, "fastsimsiam inspect", about=about)
    from fastsimsiam.evaluate.inspect import format_report, inspect

    result = inspect(
        arguments.checkpoint, arguments.data, images=arguments.images, options=arguments.options
    )
    print(format_report(result))
    if arguments.json:
        write_json(arguments.json, result.as_dict())
    return 0
