"""Recipes of supervised contrastive learning: Khosla et al., arXiv 2004.11362.

Published linear top-1 is of the authors' own probes: RMSProp on ImageNet, SGD on CIFAR-10.
`fastsimsiam linear` is SimSiam's probe, by LARS.
"""

from dataclasses import replace
from pathlib import Path

from fastsimsiam.config.methods import SupConConfig
from fastsimsiam.config.optimizer import OptimizerConfig
from fastsimsiam.config.run import Config, KnnConfig
from fastsimsiam.config.views import CIFAR10_PIXELS, NormalizeConfig, ViewSpec
from fastsimsiam.recipes.base import (
    CIFAR10,
    IMAGENET,
    IMAGENETTE,
    IMAGEWOOF,
    Recipe,
    lightly_imagenette,
)


def imagenet_350ep() -> Config:
    """SupCon on ImageNet, 350 epochs, batch 6144.

    It needs several GPUs: the loss compares the images of a batch, so parts cannot be accumulated.
    Deviations: the views are SimCLR's, in place of AutoAugment, for which there is no published score;
    features are not normalized before the head; the head's layer has a bias; its weights start as
    torch's do, not with a standard deviation of 0.01.
    Command:
        torchrun --nproc-per-node 8 -m fastsimsiam pretrain supcon-imagenet-350ep --data DATA
    Source: the paper's TensorFlow code (google-research, supcon/scripts): LARS, learning rate
        0.4 * batch / 256, warm-up 12 epochs, weight decay 1e-3, head of one layer, loss times the
        temperature, pixels from -1 to 1.
    Expected: linear top-1 78.7 % with AutoAugment; for these views not published. Not measured here.
        (79.1 % at batch 256 with a momentum encoder and a memory, which is another method.)
    Time: not measured yet.
    """
    view = ViewSpec(
        area=(0.08, 1.0),
        interpolation="bicubic",
        brightness=0.8,
        contrast=0.8,
        saturation=0.8,
        hue=0.2,
    )
    return Config(
        recipe="supcon-imagenet-350ep",
        data=Path("data/imagenet"),
        out=Path("runs/supcon-imagenet-350ep"),
        epochs=350,
        batch_size=6144,
        views=(view, view),
        normalize=NormalizeConfig(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        method=SupConConfig(projector_layers=1, loss_scale=0.1),
        optimizer=OptimizerConfig(
            name="lars",
            lr=0.4,
            weight_decay=1e-3,
            exclude_bias_and_norm=True,
            schedule="step",
            warmup_epochs=12,
        ),
    )


def _cifar10(name: str) -> Config:
    """The setting of the paper's PyTorch code."""
    view = ViewSpec(blur=0.0)
    return Config(
        recipe=name,
        data=Path("data/cifar10"),
        out=Path("runs") / name,
        epochs=1000,
        batch_size=1024,
        image_size=32,
        arch="resnet50",
        stem="cifar",
        zero_init_residual=False,
        views=(view, view),
        normalize=CIFAR10_PIXELS,
        method=SupConConfig(loss_scale=0.1 / 0.07),
        optimizer=OptimizerConfig(
            lr=0.5,
            lr_scaling="none",
            weight_decay=1e-4,
            warmup_epochs=10,
            warmup_start_factor=0.02,
            final_lr_factor=1e-3,
        ),
        knn=KnnConfig(crop_fraction=1.0),
    )


def cifar10_1000ep() -> Config:
    """SupCon on CIFAR-10, ResNet-50 with the CIFAR stem, 1000 epochs, batch 1024, SGD.

    Pixels are normalized by CIFAR-10's own constants, as in the paper's code, which also multiplies the
    loss by temperature / 0.07. The learning rate differs from that code's by up to 0.0053: there the
    cosine runs over all 1000 epochs, here over the 990 after the warm-up (in epoch 506, counted from 1,
    0.2455 there, 0.2503 here); step i of the n warm-up steps is at i / n of the rise there, at
    i / (n - 1) here. There the last, incomplete batch of an epoch is used, here it is left out.
    Command: fastsimsiam pretrain supcon-cifar10-1000ep --data CIFAR10 --out DIR
    Source: the paper's PyTorch code (HobbitLong/SupContrast), README and main_supcon.py.
    Expected: linear 96.0 %. Published, not measured here.
    Time: not measured yet.
    """
    return _cifar10("supcon-cifar10-1000ep")


def cifar10_1000ep_r18() -> Config:
    """SupCon on CIFAR-10, ResNet-18 with the CIFAR stem, 1000 epochs, batch 1024, SGD.

    Command: fastsimsiam pretrain supcon-cifar10-1000ep-r18 --data CIFAR10 --out DIR
    Source: the ResNet-50's setting.
    Expected: no published figure for this loss; solo-learn reports 93.8 % (online linear, batch 256)
        for another, with the sum over positives inside of the logarithm. Not measured here.
    Time: not measured yet.
    """
    return replace(_cifar10("supcon-cifar10-1000ep-r18"), arch="resnet18")


def imagenette() -> Config:
    """SupCon on Imagenette, ResNet-18, 128 pixels, 200 epochs, SGD.

    Command: fastsimsiam pretrain supcon-imagenette --data IMAGENETTE --out DIR
    Source: SimCLR's setting in lightly's Imagenette benchmark, with SupCon's temperature.
    Expected: no published figure for this setting. Not measured here.
    Time: not measured yet.
    """
    return lightly_imagenette("supcon-imagenette", "imagenette", epochs=200, method=SupConConfig())


def imagewoof() -> Config:
    """SupCon on ImageWoof (ten breeds of dogs), ResNet-18, 128 pixels, 200 epochs, SGD.

    Command: fastsimsiam pretrain supcon-imagewoof --data IMAGEWOOF --out DIR
    Source: Imagenette's setting.
    Expected: no published figure for this setting. Not measured here.
    Time: about that of Imagenette; not measured yet.
    """
    return lightly_imagenette("supcon-imagewoof", "imagewoof", epochs=200, method=SupConConfig())


RECIPES = (
    Recipe(make=imagenet_350ep, data_set=IMAGENET),
    Recipe(make=cifar10_1000ep, data_set=CIFAR10),
    Recipe(make=cifar10_1000ep_r18, data_set=CIFAR10),
    Recipe(make=imagenette, data_set=IMAGENETTE),
    Recipe(make=imagewoof, data_set=IMAGEWOOF),
)
