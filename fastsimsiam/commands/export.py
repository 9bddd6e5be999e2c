"""`fastsimsiam export CHECKPOINT DST`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fastsimsiam.commands.parse import parse
from fastsimsiam.system.text import printable


@dataclass(frozen=True, kw_only=True)
class _Export:
    """Arguments of `export`."""

    checkpoint: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CHECKPOINT")]
    """A checkpoint or the folder of a run; or weights of torchvision, timm or official codes."""
    out: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DST")]
    """File to write, NAME.safetensors or NAME.onnx; its model card is written to DST.md."""
    format: Literal["torchvision", "timm", "onnx"] = "torchvision"
    """torchvision, timm: weights with the keys of that library. onnx: a graph for onnxruntime."""
    arch: str | None = None
    """torchvision's name of the network, for weights of other packages; None: detected, for ResNets."""
    stem: Literal["imagenet", "cifar"] | None = None
    """Stem of such a network, see pretrain --help; None: detected."""
    image_size: int | None = None
    """Side of the images in pixels; None: that of the training, else 224."""
    crop_fraction: float | None = None
    """Side of the centered square to evaluate on, over the image's shorter side; None: as in training,
    else 0.875."""
    mean: tuple[float, float, float] | None = None
    """Subtracted from red, green and blue in [0, 1]; None: as recorded with the weights, or ImageNet's.
    Given together with std."""
    std: tuple[float, float, float] | None = None
    """Divides red, green and blue after that; None: as mean."""


def run(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    about = "Writes a backbone for torchvision, timm or onnxruntime, with a model card."
    arguments = parse(_Export, argv, "fastsimsiam export", about=about)
    from fastsimsiam.tools.export import export

    for file in export(
        arguments.checkpoint,
        arguments.out,
        format=arguments.format,
        arch=arguments.arch,
        stem=arguments.stem,
        image_size=arguments.image_size,
        crop_fraction=arguments.crop_fraction,
        mean=arguments.mean,
        std=arguments.std,
    ):
        print(printable(file))
    return 0
