"""MoCo's recipes, v1 and v2: He et al., arXiv 1911.05722, and Chen et al., arXiv 2003.04297.

Published runs on ImageNet took the statistics of BatchNorm on 8 GPUs, of 32 images each; here one GPU
does so in groups of 32. No score of this has been published for ImageNet.

Published linear top-1 is of MoCo's own probe: SGD, learning rate 30, 100 epochs. `fastsimsiam linear`
is SimSiam's probe, by LARS.
"""

from pathlib import Path
from typing import Literal

from fastsimsiam.config.methods import MoCoConfig
from fastsimsiam.config.optimizer import OptimizerConfig
from fastsimsiam.config.run import Config, KnnConfig
from fastsimsiam.config.views import CIFAR10_PIXELS, ViewSpec
from fastsimsiam.recipes.base import (
    CIFAR10,
    IMAGENET,
    IMAGENETTE,
    IMAGEWOOF,
    Recipe,
    lightly_imagenette,
)

_V1_VIEW = ViewSpec(jitter=1.0, hue=0.4, grayscale_first=True, blur=0.0)
"""Grayscale comes first, always followed by a strong jitter; no blur. v2's views are SimSiam's."""


def v1_imagenet_200ep() -> Config:
    """MoCo v1 on ImageNet, 200 epochs, batch 256.

    Command: fastsimsiam pretrain moco-v1-imagenet-200ep --data IMAGENET --out DIR
    Source: arXiv 1911.05722, section 3.3, and the authors' code.
    Expected: linear top-1 60.8 +- 0.2 % (5 runs of the authors' code). Published, not measured here.
    Time: not measured yet.
    """
    return Config(
        recipe="moco-v1-imagenet-200ep",
        data=Path("data/imagenet"),
        out=Path("runs/moco-v1-imagenet-200ep"),
        epochs=200,
        batch_size=256,
        zero_init_residual=False,
        views=(_V1_VIEW, _V1_VIEW),
        method=MoCoConfig(projector_layers=1, temperature=0.07),
        optimizer=OptimizerConfig(lr=0.03, decay="milestones", milestones=(120, 160)),
    )


def _v2_imagenet(epochs: int, *, symmetric: Literal["off", "sum"] = "off") -> Config:
    name = f"moco-v2-imagenet-{epochs}ep{'-symmetric' if symmetric != 'off' else ''}"
    return Config(
        recipe=name,
        data=Path("data/imagenet"),
        out=Path("runs") / name,
        epochs=epochs,
        batch_size=256,
        zero_init_residual=False,
        method=MoCoConfig(symmetric=symmetric),
        optimizer=OptimizerConfig(lr=0.03),
    )


def v2_imagenet_200ep() -> Config:
    """MoCo v2 on ImageNet, 200 epochs, batch 256.

    Command: fastsimsiam pretrain moco-v2-imagenet-200ep --data IMAGENET --out DIR
    Source: arXiv 2003.04297, and the authors' code.
    Expected: linear top-1 67.5 +- 0.1 % (the authors' code); kNN (k 20) 55.7 % (mmselfsup's model).
        Published, not measured here.
    Time: not measured yet.
    """
    return _v2_imagenet(200)


def v2_imagenet_800ep() -> Config:
    """MoCo v2 on ImageNet, 800 epochs, batch 256.

    Command: fastsimsiam pretrain moco-v2-imagenet-800ep --data IMAGENET --out DIR
    Source: arXiv 2003.04297, and the authors' code.
    Expected: linear top-1 71.1 % (the authors' code). Published, not measured here.
    Time: not measured yet.
    """
    return _v2_imagenet(800)


def v2_imagenet_100ep_symmetric() -> Config:
    """MoCo v2 with a symmetric loss on ImageNet, 100 epochs, batch 256: SimSiam's comparison.

    Both directions are added, as in the authors' code for CIFAR-10; SimSiam's paper does not say
    whether its loss is a sum or a mean.

    Command: fastsimsiam pretrain moco-v2-imagenet-100ep-symmetric --data IMAGENET --out DIR
    Source: arXiv 2011.10566, table 4.
    Expected: linear top-1 67.4 %; 69.9 % after 200 epochs, 71.0 % after 400, 72.2 % after 800.
        Published, not measured here.
    Time: not measured yet.
    """
    return _v2_imagenet(100, symmetric="sum")


def _cifar10(epochs: int, *, symmetric: Literal["off", "sum"]) -> Config:
    name = f"moco-cifar10-{epochs}ep{'-symmetric' if symmetric != 'off' else ''}"
    view = ViewSpec(area=(0.08, 1.0), blur=0.0)
    return Config(
        recipe=name,
        data=Path("data/cifar10"),
        out=Path("runs") / name,
        epochs=epochs,
        batch_size=512,
        image_size=32,
        arch="resnet18",
        stem="cifar",
        zero_init_residual=False,
        views=(view, view),
        normalize=CIFAR10_PIXELS,
        method=MoCoConfig(
            projector_layers=1,
            temperature=0.1,
            momentum=0.99,
            queue_size=4096,
            symmetric=symmetric,
            bn_group_size=64,
        ),
        optimizer=OptimizerConfig(lr=0.03, weight_decay=5e-4),
        knn=KnnConfig(crop_fraction=1.0),
    )


def cifar10_200ep() -> Config:
    """MoCo on CIFAR-10, ResNet-18 with the CIFAR stem, 200 epochs: the authors' demonstration.

    One linear layer as in v1, views and schedule nearly as in v2.

    Command: fastsimsiam pretrain moco-cifar10-200ep --data CIFAR10 --out DIR
    Source: the authors' notebook for CIFAR-10 (moco_cifar10_demo).
    Expected: kNN (k 200) of the 128 outputs 82.6 %, 86.3 % with --epochs 400, 88.7 % with 800; kNN
        here is of the backbone's features. Published, not measured here.
    Time: not measured yet.
    """
    return _cifar10(200, symmetric="off")


def cifar10_200ep_symmetric() -> Config:
    """MoCo with a symmetric loss on CIFAR-10, ResNet-18 with the CIFAR stem, 200 epochs.

    Command: fastsimsiam pretrain moco-cifar10-200ep-symmetric --data CIFAR10 --out DIR
    Source: the authors' notebook for CIFAR-10 (moco_cifar10_demo).
    Expected: kNN (k 200) of the 128 outputs 85.3 %, 88.5 % with --epochs 400, 89.7 % with 800 (linear
        90.7 %); kNN here is of the backbone's features. Published, not measured here.
    Time: not measured yet.
    """
    return _cifar10(200, symmetric="sum")


def v1_imagenette() -> Config:
    """MoCo v1 on Imagenette, ResNet-18, 128 pixels, 800 epochs.

    Command: fastsimsiam pretrain moco-v1-imagenette --data IMAGENETTE --out DIR
    Source: MoCo v1's head, loss, views and milestones (at the same shares of the run), with queue,
        momentum and batch of lightly's Imagenette benchmark.
    Expected: no published figure for this setting. Not measured here.
    Time: not measured yet.
    """
    return lightly_imagenette(
        "moco-v1-imagenette",
        "imagenette",
        views=(_V1_VIEW, _V1_VIEW),
        method=MoCoConfig(projector_layers=1, temperature=0.07, momentum=0.99, queue_size=4096),
        optimizer=OptimizerConfig(
            lr=0.06, weight_decay=5e-4, decay="milestones", milestones=(480, 640)
        ),
    )


def _v2_small(name: str, data: str) -> Config:
    method = MoCoConfig(
        hidden_dim=2048, temperature=0.1, momentum=0.99, queue_size=4096, symmetric="mean"
    )
    return lightly_imagenette(name, data, method=method)


def v2_imagenette() -> Config:
    """MoCo v2 on Imagenette, ResNet-18, 128 pixels, 800 epochs.

    Command: fastsimsiam pretrain moco-v2-imagenette --data IMAGENETTE --out DIR
    Source: lightly's Imagenette benchmark: a symmetric loss, 4,096 keys, momentum 0.99, temperature
        0.1. Unlike there BatchNorm is split into groups (lightly shuffles keys within one group, which
        changes nothing), and both directions see the same queue.
    Expected: kNN 87.4 % at 800 epochs, 78.6 % at 200 (lightly, on the whole square, maximum over
        epochs; here on the central 0.875 of its sides). Published, not measured here.
    Time: 232 minutes for lightly on an RTX A6000; not measured yet.
    """
    return _v2_small("moco-v2-imagenette", "imagenette")


def v2_imagewoof() -> Config:
    """MoCo v2 on ImageWoof (ten breeds of dogs), ResNet-18, 128 pixels, 800 epochs.

    Command: fastsimsiam pretrain moco-v2-imagewoof --data IMAGEWOOF --out DIR
    Source: Imagenette's setting.
    Expected: no published figure for this setting. Not measured here.
    Time: about that of Imagenette; not measured yet.
    """
    return _v2_small("moco-v2-imagewoof", "imagewoof")


RECIPES = (
    Recipe(make=v1_imagenet_200ep, data_set=IMAGENET),
    Recipe(make=v2_imagenet_200ep, data_set=IMAGENET),
    Recipe(make=v2_imagenet_800ep, data_set=IMAGENET),
    Recipe(make=v2_imagenet_100ep_symmetric, data_set=IMAGENET),
    Recipe(make=cifar10_200ep, data_set=CIFAR10),
    Recipe(make=cifar10_200ep_symmetric, data_set=CIFAR10),
    Recipe(make=v1_imagenette, data_set=IMAGENETTE),
    Recipe(make=v2_imagenette, data_set=IMAGENETTE),
    Recipe(make=v2_imagewoof, data_set=IMAGEWOOF),
)
