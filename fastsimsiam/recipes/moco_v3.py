"""MoCo v3's recipes for ResNets: Chen, Xie and He, arXiv 2104.02057.

Published linear top-1 is of MoCo v3's own probe: SGD, 90 epochs. `fastsimsiam linear` is SimSiam's
probe, by LARS.
"""

from pathlib import Path

from fastsimsiam.config.methods import MoCoV3Config
from fastsimsiam.config.optimizer import OptimizerConfig
from fastsimsiam.config.run import Config
from fastsimsiam.recipes.base import IMAGENET, IMAGENETTE, Recipe, lightly_imagenette
from fastsimsiam.recipes.byol import view_pair


def imagenet_100ep() -> Config:
    """MoCo v3 on ImageNet, ResNet-50, 100 epochs, batch 4096: for several GPUs.

    The loss compares all images of a batch, so that parts of it cannot be accumulated. A smaller
    --batch-size fits one GPU; it has no published score.

    Command:
        torchrun --nproc-per-node 8 -m fastsimsiam pretrain moco-v3-imagenet-100ep --data DATA
    Source: arXiv 2104.02057, the ResNet-50 settings of its code for 100 epochs.
    Expected: linear top-1 68.9 % (its code release). Published, not measured here.
    Time: not measured yet.
    """
    return Config(
        recipe="moco-v3-imagenet-100ep",
        data=Path("data/imagenet"),
        out=Path("runs/moco-v3-imagenet-100ep"),
        epochs=100,
        batch_size=4096,
        views=view_pair(smallest_area=0.2),
        method=MoCoV3Config(),
        optimizer=OptimizerConfig(
            name="lars",
            lr=0.6,
            weight_decay=1e-6,
            exclude_bias_and_norm=True,
            schedule="step",
            warmup_epochs=10,
        ),
    )


def imagenette() -> Config:
    """MoCo v3 on Imagenette, ResNet-18, 128 pixels, 800 epochs.

    Command: fastsimsiam pretrain moco-v3-imagenette --data IMAGENETTE --out DIR
    Source: MoCo v3's loss, heads (narrower) and views in byol-imagenette's setting: the loss of a
        positive pair has the same gradient there, 4 times that of a mean of cosines. The target's
        momentum rises from 0.99 to 1; there it is constant.
    Expected: no published figure for this setting. Not measured here.
    Time: about that of byol-imagenette; not measured yet.
    """
    return lightly_imagenette(
        "moco-v3-imagenette",
        "imagenette",
        views=view_pair(smallest_area=0.2),
        method=MoCoV3Config(hidden_dim=1024),
        optimizer=OptimizerConfig(lr=0.06 / 4, weight_decay=4 * 5e-4),
    )


RECIPES = (
    Recipe(make=imagenet_100ep, data_set=IMAGENET),
    Recipe(make=imagenette, data_set=IMAGENETTE),
)
