"""`fastsimsiam linear CHECKPOINT`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fastsimsiam.commands.parse import parse, write_json
from fastsimsiam.config.evaluation import CACHED, EvalOptions, LinearConfig


@dataclass(frozen=True, kw_only=True)
class _Linear:
    """Arguments of `linear`."""

    checkpoint: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CHECKPOINT")]
    """A checkpoint or the folder of a run; or weights of torchvision, timm or official codes."""
    data: Path
    """Data set of any form, with a training and a validation split; see --val for one without."""
    config: Annotated[LinearConfig, tyro.conf.arg(name="")]
    cached: bool = False
    """Train on features of centered crops, computed once, by SGD in batches of 256. Takes minutes
    instead of hours; the score does not compare with published ones."""
    labels: str = "100%"
    """Share of the training images of each class, as of finetune; or a file that lists images."""
    out: Path | None = None
    """Folder to which the layer is saved after each epoch, for --resume."""
    resume: bool = False
    """Continue the evaluation in --out."""
    options: Annotated[EvalOptions, tyro.conf.arg(name="")] = EvalOptions()
    json: Path | None = None
    """JSON file for the scores."""


def run(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    about = "Linear evaluation of a frozen backbone: top-1 and top-5 after the last epoch."
    defaults = _Linear(
        checkpoint=tyro.MISSING,
        data=tyro.MISSING,
        config=CACHED if "--cached" in argv else LinearConfig(),
    )
    arguments = parse(_Linear, argv, "fastsimsiam linear", default=defaults, about=about)
    from fastsimsiam.evaluate.linear_probe import linear

    result = linear(
        arguments.checkpoint,
        arguments.data,
        config=arguments.config,
        cached=arguments.cached,
        labels=arguments.labels,
        out=arguments.out,
        resume=arguments.resume,
        options=arguments.options,
    )
    print(f"linear top-1 {result.top1:.2f} %, top-5 {result.top5:.2f} %   ({result.protocol})")
    if result.bad_images:
        print(f"{len(result.bad_images)} broken images were left out")
    if arguments.json:
        write_json(arguments.json, result.as_dict())
    return 0
