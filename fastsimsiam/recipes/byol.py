"""BYOL's recipes, with and without a momentum encoder: Grill et al., arXiv 2006.07733.

A batch of 4096 is made of 16 parts of 256, whose gradients are accumulated: BatchNorm sees 256 images,
while the optimizer and the target network take one step per 4096.

What differs from the official code, without a published effect:
- Color jitter is torchvision's. There brightness is an offset, contrast keeps the mean of each channel.
- There are 10 tries to place a crop; there one, whose sides are cut to the image's.
- Bicubic crops are antialiased. Blur repeats the edges of an image, which is padded by zeros there.
- The target network starts as a copy of the online one; there its weights are drawn separately.
- Weights start as torchvision's and torch's do, not Haiku's.
- The first of n steps of the warm-up has 1 / n of the peak learning rate, not 0.

Published linear top-1 is of BYOL's own probe: SGD, the best of 5 learning rates. `fastsimsiam linear`
is SimSiam's probe, by LARS.
"""

from pathlib import Path
from typing import Literal

from fastsimsiam.config.methods import BYOLConfig, BYOLNoMomentumConfig, MethodConfig
from fastsimsiam.config.optimizer import OptimizerConfig
from fastsimsiam.config.run import Config, KnnConfig
from fastsimsiam.config.views import ViewSpec
from fastsimsiam.recipes.base import (
    CIFAR10,
    IMAGENET,
    IMAGENETTE,
    IMAGEWOOF,
    Recipe,
    lightly_imagenette,
)


def view_pair(
    *,
    smallest_area: float = 0.08,
    interpolation: Literal["bilinear", "bicubic"] = "bilinear",
    blurred: bool = True,
) -> tuple[ViewSpec, ViewSpec]:
    """BYOL's two views: the first is always blurred, the second seldom, and sometimes solarized.

    Args:
        smallest_area: smallest share of the image's area.
        interpolation: filter by which crops are resampled.
        blurred: off for images of 32 pixels.
    """
    first, second = (
        ViewSpec(
            area=(smallest_area, 1.0),
            interpolation=interpolation,
            saturation=0.2,
            blur=blur if blurred else 0.0,
            solarize=solarize,
        )
        for blur, solarize in ((1.0, 0.0), (0.1, 0.2))
    )
    return first, second


def _imagenet(name: str, method: MethodConfig, *, epochs: int, lr: float) -> Config:
    return Config(
        recipe=name,
        data=Path("data/imagenet"),
        out=Path("runs") / name,
        epochs=epochs,
        batch_size=4096,
        accumulate=16,
        views=view_pair(interpolation="bicubic"),
        method=method,
        optimizer=OptimizerConfig(
            name="lars",
            lr=lr,
            weight_decay=1e-6,
            exclude_bias_and_norm=True,
            schedule="step",
            warmup_epochs=10,
        ),
    )


def imagenet_100ep() -> Config:
    """BYOL on ImageNet, 100 epochs, batch 4096 in 16 parts of 256.

    Command: fastsimsiam pretrain byol-imagenet-100ep --data IMAGENET --out DIR
    Source: arXiv 2006.07733, the settings of its code for 100 epochs.
    Expected: linear top-1 66.5 % (arXiv 2011.10566, table 4), 68.4 % (solo-learn, batch 2048) to 69.8 %
        (V2AI, batch 2048). Published, not measured here. BatchNorm saw larger batches there.
    Time: not measured yet.
    """
    return _imagenet("byol-imagenet-100ep", BYOLConfig(momentum=0.99), epochs=100, lr=0.45)


def imagenet_200ep() -> Config:
    """BYOL on ImageNet, 200 epochs, batch 4096 in 16 parts of 256.

    Command: fastsimsiam pretrain byol-imagenet-200ep --data IMAGENET --out DIR
    Source: mmselfsup's setting, which accumulates as here; its heads have a bias in both layers, those
        here only in the hidden one, as in the official code.
    Expected: linear top-1 71.8 %, kNN (k 20) 64.2 % (mmselfsup). Published, not measured here.
    Time: not measured yet.
    """
    return _imagenet("byol-imagenet-200ep", BYOLConfig(momentum=0.99), epochs=200, lr=0.3)


def imagenet_300ep() -> Config:
    """BYOL on ImageNet, 300 epochs, batch 4096 in 16 parts of 256.

    Command: fastsimsiam pretrain byol-imagenet-300ep --data IMAGENET --out DIR
    Source: arXiv 2006.07733, the settings of its code for 300 epochs.
    Expected: linear top-1 71.8 % where BatchNorm sees 256 images, as here; 72.5 % where it sees 4096
        (arXiv 2006.07733, table 16). Published, not measured here.
    Time: not measured yet.
    """
    return _imagenet("byol-imagenet-300ep", BYOLConfig(momentum=0.99), epochs=300, lr=0.3)


def no_momentum_imagenet_300ep() -> Config:
    """BYOL without momentum on ImageNet, 300 epochs, batch 4096 in 16 parts of 256.

    Command: fastsimsiam pretrain byol-no-momentum-imagenet-300ep --data IMAGENET --out DIR
    Source: arXiv 2006.07733, appendix I: tau 0, the predictor's learning rate times 10.
    Expected: linear top-1 66.6 to 66.9 %; 5.5 % with --method.predictor-lr-factor 1. Published, not
        measured here. BatchNorm saw 4096 images there.
    Time: not measured yet.
    """
    method = BYOLNoMomentumConfig()
    return _imagenet("byol-no-momentum-imagenet-300ep", method, epochs=300, lr=0.3)


def cifar10_800ep() -> Config:
    """BYOL on CIFAR-10, ResNet-18 with the CIFAR stem, 800 epochs.

    Command: fastsimsiam pretrain byol-cifar10-800ep --data CIFAR10 --out DIR
    Source: the setting of lightly's CIFAR-10 benchmark (its docs, 2023). Its loss is a quarter of
        BYOL's; a quarter of its learning rate and four times its weight decay give the same steps. Its
        heads have a bias in the output layer alone, those here in the hidden layer alone, as in the
        official code.
    Expected: kNN (k 200) 91.0 % at 800 epochs, 86.8 % at 200 (lightly, maximum over epochs). Published,
        not measured here.
    Time: 401 minutes for lightly; not measured yet.
    """
    return Config(
        recipe="byol-cifar10-800ep",
        data=Path("data/cifar10"),
        out=Path("runs/byol-cifar10-800ep"),
        epochs=800,
        batch_size=512,
        image_size=32,
        arch="resnet18",
        stem="cifar",
        zero_init_residual=False,
        views=view_pair(blurred=False),
        method=_SMALL,
        optimizer=OptimizerConfig(lr=0.12 / 4, weight_decay=4 * 5e-4),
        knn=KnnConfig(crop_fraction=1.0),
    )


def imagenette() -> Config:
    """BYOL on Imagenette, ResNet-18, 128 pixels, 800 epochs.

    Command: fastsimsiam pretrain byol-imagenette --data IMAGENETTE --out DIR
    Source: the setting of lightly's Imagenette benchmark (its docs, 2023). Its loss is a quarter of
        BYOL's; a quarter of its learning rate and four times its weight decay give the same steps. Its
        heads have a bias in the output layer alone, those here in the hidden layer alone, as in the
        official code.
    Expected: kNN 88.7 % at 800 epochs, 70.5 % at 200 (lightly, on the whole square, maximum over
        epochs; here on the central 0.875 of its sides). Published, not measured here.
    Time: 215 minutes for lightly on an RTX A6000; not measured yet.
    """
    return _ten_classes("byol-imagenette", "imagenette", _SMALL)


def imagenette_1000ep() -> Config:
    """BYOL on Imagenette, ResNet-18, 128 pixels, 1000 epochs, by LARS.

    Command: fastsimsiam pretrain byol-imagenette-1000ep --data IMAGENETTE --out DIR
    Source: the official code's setting for Imagenette.
    Expected: linear top-1 about 92.3 %, of a probe that is trained along. Published, not measured here.
    Time: about 4 h on a V100 (official code); not measured yet.
    """
    return Config(
        recipe="byol-imagenette-1000ep",
        data=Path("data/imagenette"),
        out=Path("runs/byol-imagenette-1000ep"),
        epochs=1000,
        batch_size=256,
        image_size=128,
        arch="resnet18",
        views=view_pair(interpolation="bicubic"),
        method=BYOLConfig(),
        optimizer=OptimizerConfig(
            name="lars",
            lr=2.0,
            weight_decay=1e-6,
            exclude_bias_and_norm=True,
            schedule="step",
            warmup_epochs=10,
        ),
    )


def imagewoof() -> Config:
    """BYOL on ImageWoof (ten breeds of dogs), ResNet-18, 128 pixels, 800 epochs.

    Command: fastsimsiam pretrain byol-imagewoof --data IMAGEWOOF --out DIR
    Source: byol-imagenette's setting.
    Expected: no published figure for this setting. Not measured here.
    Time: about that of Imagenette; not measured yet.
    """
    return _ten_classes("byol-imagewoof", "imagewoof", _SMALL)


def no_momentum_imagenette() -> Config:
    """BYOL without momentum on Imagenette, ResNet-18, 128 pixels, 800 epochs.

    Command: fastsimsiam pretrain byol-no-momentum-imagenette --data IMAGENETTE --out DIR
    Source: byol-imagenette's setting with tau 0 and the predictor's learning rate times 10, as in
        arXiv 2006.07733, appendix I. The ablation that fails there: --method.predictor-lr-factor 1.
    Expected: no published figure for this setting. Not measured here.
    Time: about three quarters of byol-imagenette's, for want of a second network; not measured yet.
    """
    method = BYOLNoMomentumConfig(hidden_dim=1024)
    return _ten_classes("byol-no-momentum-imagenette", "imagenette", method)


_SMALL = BYOLConfig(momentum=0.99, momentum_schedule="constant", hidden_dim=1024)
"""Heads and momentum of lightly's benchmarks of small networks."""


def _ten_classes(name: str, data: str, method: MethodConfig) -> Config:
    optimizer = OptimizerConfig(lr=0.06 / 4, weight_decay=4 * 5e-4)
    return lightly_imagenette(name, data, views=view_pair(), method=method, optimizer=optimizer)


RECIPES = (
    Recipe(make=imagenet_100ep, data_set=IMAGENET),
    Recipe(make=imagenet_200ep, data_set=IMAGENET),
    Recipe(make=imagenet_300ep, data_set=IMAGENET),
    Recipe(make=cifar10_800ep, data_set=CIFAR10),
    Recipe(make=imagenette, data_set=IMAGENETTE),
    Recipe(make=imagenette_1000ep, data_set=IMAGENETTE),
    Recipe(make=imagewoof, data_set=IMAGEWOOF),
    Recipe(make=no_momentum_imagenet_300ep, data_set=IMAGENET),
    Recipe(make=no_momentum_imagenette, data_set=IMAGENETTE),
)
