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
    """A checkpoint or the folder of a run; or weights of torchvision, timm or official codes."""
    data: Path
    """The data set; its val/ is used where there is one."""
    images: int = INSPECT_IMAGES
    """Largest number of images to use."""
    options: Annotated[EvalOptions, tyro.conf.arg(name="")] = EvalOptions()
    json: Path | None = None
    """JSON file for the metrics."""


def run(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    about = "Measures whether the representation is healthy or has collapsed."
    arguments = parse(_Inspect, argv, "fastsimsiam inspect", about=about)
    from fastsimsiam.evaluate.inspect import format_report, inspect

    result = inspect(
        arguments.checkpoint, arguments.data, images=arguments.images, options=arguments.options
    )
    print(format_report(result))
    if result.bad_images:
        print(f"{len(result.bad_images)} broken images were left out")
    if arguments.json:
        write_json(arguments.json, result.as_dict())
    return 0
