"""VI-SimSiam's recipes: SimSiam's settings, as those of the paper (arXiv 2203.11437) were not found.

No gain in accuracy is promised. What a run gives beyond SimSiam's features is kappa, how certain the
network is of each image; `fastsimsiam uncertainty` measures what it is worth.
"""

from dataclasses import replace
from pathlib import Path

from fastsimsiam.config.methods import VISimSiamConfig
from fastsimsiam.config.run import Config
from fastsimsiam.recipes import simsiam
from fastsimsiam.recipes.base import IMAGENET, IMAGENETTE, IMAGEWOOF, Recipe


def _like(config: Config, name: str) -> Config:
    """SimSiam's run with the other method."""
    return replace(config, recipe=name, out=Path("runs") / name, method=VISimSiamConfig())


def imagenet_100ep() -> Config:
    """VI-SimSiam on ImageNet, ResNet-50, 100 epochs.

    Command: fastsimsiam pretrain vi-simsiam-imagenet-100ep --data IMAGENET --out DIR
    Source: SimSiam's setting (imagenet-100ep).
    Expected: not published for ImageNet. Not measured here.
    Time: that of imagenet-100ep; not measured yet.
    """
    return _like(simsiam.imagenet_100ep(), "vi-simsiam-imagenet-100ep")


def imagenette() -> Config:
    """VI-SimSiam on Imagenette, ResNet-18, 128 pixels, 800 epochs.

    Command: fastsimsiam pretrain vi-simsiam-imagenette --data IMAGENETTE --out DIR
    Source: SimSiam's setting (imagenette). The paper's first version reports on this data set.
    Expected: no published figure that could be checked. Not measured here.
    Time: that of imagenette; not measured yet.
    """
    return _like(simsiam.imagenette(), "vi-simsiam-imagenette")


def imagewoof() -> Config:
    """VI-SimSiam on ImageWoof (ten breeds of dogs), ResNet-18, 128 pixels, 800 epochs.

    Command: fastsimsiam pretrain vi-simsiam-imagewoof --data IMAGEWOOF --out DIR
    Source: SimSiam's setting (imagewoof). The paper's first version reports on this data set.
    Expected: no published figure that could be checked. Not measured here.
    Time: that of imagewoof; not measured yet.
    """
    return _like(simsiam.imagewoof(), "vi-simsiam-imagewoof")


RECIPES = (
    Recipe(make=imagenet_100ep, data_set=IMAGENET),
    Recipe(make=imagenette, data_set=IMAGENETTE),
    Recipe(make=imagewoof, data_set=IMAGEWOOF),
)
