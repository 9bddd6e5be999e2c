"""`fastsimsiam report RUN [RUN ...]`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fastsimsiam.commands.parse import parse
from fastsimsiam.config.evaluation import EvalOptions
from fastsimsiam.errors import UserError
from fastsimsiam.system.text import printable


@dataclass(frozen=True, kw_only=True)
class _Report:
    """Arguments of `report`."""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Folders of runs. Curves show all of them, images the first one."""
    data: Path | None = None
    """Data set for the images; None: that of the first run, if it exists."""
    out: Path | None = None
    """HTML file to write; None: report.html in the first folder."""
    options: Annotated[EvalOptions, tyro.conf.arg(name="")] = EvalOptions()


def run(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    about = (
        "Writes an HTML report on runs: curves, views, neighbors, a map, commands to repeat them."
    )
    arguments = parse(_Report, argv, "fastsimsiam report", about=about)
    if not arguments.runs:
        raise UserError("report needs RUN, the folder of a run; see fastsimsiam report --help")
    from fastsimsiam.report.report import report

    target = report(
        arguments.runs, data=arguments.data, out=arguments.out, options=arguments.options
    )
    print(f"{printable(target)}: {target.stat().st_size / 1e6:.1f} MB")
    return 0
