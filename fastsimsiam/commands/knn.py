"""`fastsimsiam knn CHECKPOINT`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fastsimsiam.commands.parse import parse, write_json
from fastsimsiam.config.evaluation import EvalOptions
from fastsimsiam.config.run import KnnConfig


@dataclass(frozen=True, kw_only=True)
class _Knn:
    """Arguments of `knn`."""

    checkpoint: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CHECKPOINT")]
    """A checkpoint or the folder of a run; or weights of torchvision, timm or official codes."""
    data: Path
    """Data set of any form: its training split is the bank, its validation split (or --val) the
    queries."""
    k: tuple[int, ...] | None = None
    """Numbers of neighbors; None: those of 10, 20, 100 and 200 that do not exceed the bank."""
    temperature: float = KnnConfig.temperature
    """Neighbors are weighted by exp(cosine similarity / temperature)."""
    options: Annotated[EvalOptions, tyro.conf.arg(name="")] = EvalOptions()
    json: Path | None = None
    """JSON file for the scores."""


def run(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    about = "Weighted kNN top-1 of frozen features, compared with the untrained network."
    arguments = parse(_Knn, argv, "fastsimsiam knn", about=about)
    from fastsimsiam.evaluate.knn import knn

    result = knn(
        arguments.checkpoint,
        arguments.data,
        k=arguments.k,
        temperature=arguments.temperature,
        options=arguments.options,
    )
    print(f"{'k':>6}  {'untrained':>9}  {'trained':>9}   (kNN top-1, %)")
    for k, top1 in result.trained.items():
        print(f"{k:>6}  {result.untrained[k]:>9.2f}  {top1:>9.2f}")
    if result.bad_images:
        print(f"{len(result.bad_images)} broken images were left out")
    if arguments.json:
        write_json(arguments.json, result.as_dict())
    return 0
