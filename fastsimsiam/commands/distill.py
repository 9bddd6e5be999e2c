"""`fastsimsiam distill TEACHER`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fastsimsiam.commands.parse import parse, write_json
from fastsimsiam.config.evaluation import EvalOptions
from fastsimsiam.config.supervised import DistillConfig


@dataclass(frozen=True, kw_only=True)
class _Distill:
    """Arguments of `distill`."""

    teacher: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="TEACHER")]
    """What finetune has written: its folder, or the file finetune.pt."""
    data: Path
    """Data set of finetune."""
    out: Path
    """Folder for the student (distill.pt), written after each epoch."""
    config: Annotated[DistillConfig, tyro.conf.arg(name="")]
    student: Path | None = None
    """Weights that the student begins with: the pretrained checkpoint, say. None: random ones."""
    resume: bool = False
    """Continue the training in --out."""
    options: Annotated[EvalOptions, tyro.conf.arg(name="")] = EvalOptions()
    json: Path | None = None
    """JSON file for the scores."""


def run(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    about = (
        "Trains a student on the answers of a fine-tuned teacher, on all images (SimCLRv2): top-1 and "
        "top-5 after the last epoch, beside the teacher's."
    )
    defaults = _Distill(
        teacher=tyro.MISSING, data=tyro.MISSING, out=tyro.MISSING, config=DistillConfig()
    )
    arguments = parse(_Distill, argv, "fastsimsiam distill", default=defaults, about=about)
    from fastsimsiam.evaluate.distill import distill

    result = distill(
        arguments.teacher,
        arguments.data,
        arguments.out,
        student=arguments.student,
        config=arguments.config,
        resume=arguments.resume,
        options=arguments.options,
    )
    print(
        f"distilled: top-1 {result.top1:.2f} %, top-5 {result.top5:.2f} %; teacher "
        f"{result.teacher_top1:.2f} %, {result.teacher_top5:.2f} %   ({result.file})"
    )
    if result.bad_images:
        print(f"{len(result.bad_images)} broken images were left out")
    if arguments.json:
        write_json(arguments.json, result.as_dict())
    return 0
