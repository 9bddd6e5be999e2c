"""`fastsimsiam index PATH`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fastsimsiam.commands.parse import parse, write_json


@dataclass(frozen=True, kw_only=True)
class _Index:
    """Arguments of `index`."""

    data: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="PATH")]
    """A data set of any form: docs/formats.md has all."""
    val: Path | None = None
    """Validation images of their own; None: those of the data set, if it has any."""
    again: bool = False
    """Read all headers again, whatever an index says."""
    json: Path | None = None
    """JSON file for all counts and names."""


def run(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    about = "Reads the headers of all images, keeps them in an index, and tells what is there."
    arguments = parse(_Index, argv, "fastsimsiam index", about=about)
    from fastsimsiam.system.progress import ImageProgress
    from fastsimsiam.tools.index import format_index, index

    with ImageProgress("opening the data", unit=None) as progress:
        splits = index(arguments.data, val=arguments.val, again=arguments.again, report=progress)
    print(format_index(splits))
    if arguments.json:
        write_json(arguments.json, {split.split: split.as_dict() for split in splits})
    return 0
