"""`fastsimsiam knn CHECKPOINT`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fastsimsiam.commands.parse import parse, write_json
from fastsimsiam.config import DeviceName, LoaderName, OnBadImage


@dataclass(frozen=True, kw_only=True)
class _Knn:
    """Arguments of `knn`."""

    checkpoint: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CHECKPOINT")]
    """A checkpoint, or the folder of a run (its newest checkpoint)."""
    data: Path
    """Folder with train/ (the bank) and val/ (the queries)."""
    k: tuple[int, ...] = (10, 20, 100, 200)
    """Numbers of neighbours."""
    temperature: float = 0.1
    """Neighbours are weighted by exp(cosine similarity / temperature)."""
    image_size: int | None = None
    """Side of the crops in pixels; None: as in training."""
    loader: LoaderName = "auto"
    """Where images come from, see pretrain --help."""
    on_bad_image: OnBadImage = "error"
    """error: a broken image stops the command. skip: another image stands in."""
    device: DeviceName = "auto"
    """auto: cuda where there is one."""
    workers: int | None = None
    """Loader threads; None: one per CPU core of this process."""
    json: Path | None = None
    """File that receives the scores."""


def run(words: list[str]) -> int:
    """Runs the command; returns the exit code."""
    about = "Weighted kNN top-1 of frozen features, beside the untrained network's."
    arguments = parse(_Knn, words, "fastsimsiam knn", about=about)
    from fastsimsiam.score import knn_table

    scores = knn_table(
        arguments.checkpoint,
        arguments.data,
        k=arguments.k,
        temperature=arguments.temperature,
        image_size=arguments.image_size,
        loader=arguments.loader,
        on_bad_image=arguments.on_bad_image,
        device=arguments.device,
        workers=arguments.workers,
    )
    print(f"{'k':>6}  {'untrained':>9}  {'trained':>9}   (kNN top-1, %)")
    for k in scores["trained"]:
        print(f"{k:>6}  {scores['untrained'][k]:>9.2f}  {scores['trained'][k]:>9.2f}")
    if scores["bad_images"]:
        print(f"{len(scores['bad_images'])} broken images were replaced by others")
    if arguments.json:
        write_json(arguments.json, scores)
    return 0
