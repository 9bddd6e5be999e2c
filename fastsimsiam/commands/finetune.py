"""`fastsimsiam finetune CHECKPOINT`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fastsimsiam.commands.parse import parse, write_json
from fastsimsiam.config.evaluation import EvalOptions
from fastsimsiam.config.supervised import FinetuneConfig


@dataclass(frozen=True, kw_only=True)
class _Finetune:
    """Arguments of `finetune`."""

    checkpoint: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CHECKPOINT")]
    """A checkpoint or the folder of a run; or weights of torchvision, timm or official codes."""
    data: Path
    """Data set of any form, with a training and a validation split; see --val for one without."""
    out: Path
    """Folder for the classifier (finetune.pt), written after each epoch, and for labels.txt."""
    config: Annotated[FinetuneConfig, tyro.conf.arg(name="")]
    resume: bool = False
    """Continue the training in --out."""
    options: Annotated[EvalOptions, tyro.conf.arg(name="")] = EvalOptions()
    json: Path | None = None
    """JSON file for the scores."""


def run(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    about = (
        "Trains a pretrained network and a classifier on labeled images, from a layer of its "
        "projector (SimCLRv2): top-1 and top-5 after the last epoch."
    )
    defaults = _Finetune(
        checkpoint=tyro.MISSING, data=tyro.MISSING, out=tyro.MISSING, config=FinetuneConfig()
    )
    arguments = parse(_Finetune, argv, "fastsimsiam finetune", default=defaults, about=about)
    from fastsimsiam.evaluate.finetune import finetune

    result = finetune(
        arguments.checkpoint,
        arguments.data,
        arguments.out,
        config=arguments.config,
        resume=arguments.resume,
        options=arguments.options,
    )
    print(
        f"fine-tuned on {result.labeled} labels, {result.head_layers} projector layers kept: top-1 "
        f"{result.top1:.2f} %, top-5 {result.top5:.2f} %   ({result.file})"
    )
    if result.bad_images:
        print(f"{len(result.bad_images)} broken images were left out")
    if arguments.json:
        write_json(arguments.json, result.as_dict())
    return 0
