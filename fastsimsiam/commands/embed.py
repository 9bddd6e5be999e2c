"""`fastsimsiam embed CHECKPOINT`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fastsimsiam.commands.parse import parse
from fastsimsiam.config.evaluation import EvalOptions
from fastsimsiam.system.text import printable


@dataclass(frozen=True, kw_only=True)
class _Embed:
    """Arguments of `embed`."""

    checkpoint: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CHECKPOINT")]
    """A checkpoint or the folder of a run; or weights of torchvision, timm or official codes."""
    data: Path
    """The data set."""
    out: Path
    """File to write: .npz or .parquet."""
    split: Literal["train", "val"] = "train"
    """The split; a data set without train/ and val/ is all train."""
    options: Annotated[EvalOptions, tyro.conf.arg(name="")] = EvalOptions()


def run(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    about = "Writes features, label, class and path of every image of a data set."
    arguments = parse(_Embed, argv, "fastsimsiam embed", about=about)
    from fastsimsiam.tools.embed import embed

    count = embed(
        arguments.checkpoint,
        arguments.data,
        arguments.out,
        split=arguments.split,
        options=arguments.options,
    )
    print(f"{printable(arguments.out)}: features of {count} images")
    return 0
