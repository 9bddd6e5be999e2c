"""Recipes of SimCLR (Chen et al., arXiv 2002.05709) and of SimCLRv2's pretraining (arXiv 2006.10029).

The recipes of the official code double the loss (`loss_scale=2`), as it does. LARS takes steps along
gradient plus weight decay, of a length that depends on neither: with half the loss weight decay would
have twice its share. BatchNorm's parameters, which LARS does not adapt, would take half the steps.

What differs from that code, without a published effect:
- Color jitter is torchvision's. There brightness is an offset (a factor since SimCLRv2), contrast keeps
  the mean of each channel.
- Bicubic crops are antialiased, and there are 10 tries to place one; there 100, for one that covers at
  least 0.1 of the image. Blur repeats the edges of an image, which is padded by zeros there.
- The weights of convolutions start as torchvision's.
- The learning rate is applied after the momentum, not inside of it, and the first of n steps of the
  warm-up has 1 / n of its peak, not 0.

Published linear top-1 on ImageNet is of SimCLR's own probe: SGD, 0.1 per 256 images, 90 epochs.
`fastsimsiam linear` is SimSiam's probe, by LARS.
"""

from dataclasses import replace
from pathlib import Path

from fastsimsiam.config.methods import SimCLRConfig
from fastsimsiam.config.optimizer import OptimizerConfig
from fastsimsiam.config.run import Config, KnnConfig
from fastsimsiam.config.views import NormalizeConfig, ViewSpec
from fastsimsiam.recipes.base import (
    CIFAR10,
    IMAGENET,
    IMAGENETTE,
    IMAGEWOOF,
    Recipe,
    lightly_imagenette,
)

_VIEW = ViewSpec(
    area=(0.08, 1.0), interpolation="bicubic", brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2
)
_HALF_STRENGTH = replace(_VIEW, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
"""Color distortion of strength 0.5."""
_CIFAR_VIEW = replace(_HALF_STRENGTH, blur=0.0)
_CODE = SimCLRConfig(loss_scale=2.0)
"""The paper's setting as the official code computes it."""
_PIXELS_AS_THEY_ARE = NormalizeConfig(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
_LARS = OptimizerConfig(
    name="lars",
    lr=1.2,  # 0.075 * sqrt(256)
    lr_scaling="sqrt",
    weight_decay=1e-6,
    exclude_bias_and_norm=True,
    schedule="step",
    warmup_epochs=10,
)


def _imagenet(name: str) -> Config:
    """The paper's setting with the square-root rule, 100 epochs, batch 512."""
    return Config(
        recipe=name,
        data=Path("data/imagenet"),
        out=Path("runs") / name,
        epochs=100,
        batch_size=512,
        views=(_VIEW, _VIEW),
        normalize=_PIXELS_AS_THEY_ARE,
        method=_CODE,
        optimizer=_LARS,
    )


def imagenet_100ep() -> Config:
    """SimCLR on ImageNet, 100 epochs, batch 512: for one GPU.

    Pixels are not normalized, as in the official code.
    Command: fastsimsiam pretrain simclr-imagenet-100ep --data IMAGENET --out DIR
    Source: arXiv 2002.05709, table B.1, learning rate 0.075 * sqrt(batch).
    Expected: linear top-1 63.8 %. Published, not measured here.
    Time: not measured yet.
    """
    return _imagenet("simclr-imagenet-100ep")


def imagenet_200ep() -> Config:
    """SimCLR on ImageNet, 200 epochs, batch 512: for one GPU.

    Pixels are not normalized, as in the official code.
    Command: fastsimsiam pretrain simclr-imagenet-200ep --data IMAGENET --out DIR
    Source: arXiv 2002.05709, table B.1, learning rate 0.075 * sqrt(batch).
    Expected: linear top-1 65.6 %. Published, not measured here. (mmselfsup reports a kNN (k 20) of
        48.4 % at batch 256, and linear 62.7 %.)
    Time: not measured yet.
    """
    return replace(_imagenet("simclr-imagenet-200ep"), epochs=200)


def imagenet_100ep_bs4096() -> Config:
    """SimCLR on ImageNet, 100 epochs, batch 4096: the command of the official README.

    It needs several GPUs: the loss compares the images of a batch, so parts cannot be accumulated.
    Pixels are not normalized, as in the official code.
    Command:
        torchrun --nproc-per-node 8 -m fastsimsiam pretrain simclr-imagenet-100ep-bs4096 --data DATA
    Source: README of google-research/simclr before SimCLRv2 (commit 0075cc0): as in the paper 2 layers
        and weight decay 1e-6. Since then it has 3 layers and 1e-4, and reports the same figure.
    Expected: linear top-1 about 64.5 %; 64.6 % in the paper's table B.1. Published, not measured here.
    Time: not measured yet.
    """
    return replace(
        _imagenet("simclr-imagenet-100ep-bs4096"),
        batch_size=4096,
        optimizer=replace(_LARS, lr=0.3, lr_scaling="linear"),
    )


def imagenet_100ep_3layers() -> Config:
    """SimCLR with a projector of 3 layers on ImageNet, 100 epochs, batch 4096: SimSiam's comparison.

    It needs several GPUs: the loss compares the images of a batch, so parts cannot be accumulated. All
    but the head is as in the SimCLR paper; the loss is its mean, as that code is not published.
    Command:
        torchrun --nproc-per-node 8 -m fastsimsiam pretrain simclr-imagenet-100ep-3layers --data DATA
    Source: arXiv 2011.10566, table 4 and appendix C ("SimCLR+").
    Expected: linear top-1 66.5 %; 68.3 % at 200 epochs, 69.8 % at 400, 70.4 % at 800. Published, not
        measured here.
    Time: not measured yet.
    """
    return replace(
        _imagenet("simclr-imagenet-100ep-3layers"),
        batch_size=4096,
        method=SimCLRConfig(projector_layers=3),
    )


def v2_imagenet_800ep() -> Config:
    """SimCLRv2's pretraining on ImageNet, ResNet-50, 800 epochs, batch 4096.

    It needs several GPUs: the loss compares the images of a batch, so parts cannot be accumulated. The
    optional memory of the paper, which was not released, is left out: its authors put its gain at 1 %.
    Pixels are not normalized, as in the official code.
    Command:
        torchrun --nproc-per-node 8 -m fastsimsiam pretrain simclr-v2-imagenet-800ep --data DATA
    Source: arXiv 2006.10029, section 3: learning rate 0.1 * sqrt(batch), warm-up of 5 % of the epochs,
        weight decay 1e-4, 3 layers; README of google-research/simclr.
    Expected: linear top-1 71.7 %. Published, not measured here.
    Time: not measured yet.
    """
    return replace(
        _imagenet("simclr-v2-imagenet-800ep"),
        epochs=800,
        batch_size=4096,
        method=replace(_CODE, projector_layers=3),
        optimizer=replace(_LARS, lr=1.6, weight_decay=1e-4, warmup_epochs=40),
    )


def _cifar10(name: str) -> Config:
    """The setting of the official README: ResNet-18, 1000 epochs, batch 512."""
    return Config(
        recipe=name,
        data=Path("data/cifar10"),
        out=Path("runs") / name,
        epochs=1000,
        batch_size=512,
        image_size=32,
        arch="resnet18",
        stem="cifar",
        views=(_CIFAR_VIEW, _CIFAR_VIEW),
        normalize=_PIXELS_AS_THEY_ARE,
        method=replace(_CODE, temperature=0.5),
        optimizer=replace(_LARS, lr=1.0, lr_scaling="linear"),
        knn=KnnConfig(crop_fraction=1.0),
    )


def cifar10_1000ep() -> Config:
    """SimCLR on CIFAR-10, ResNet-18 with the CIFAR stem, 1000 epochs, batch 512, LARS.

    Pixels are not normalized, as in the official code.
    Command: fastsimsiam pretrain simclr-cifar10-1000ep --data CIFAR10 --out DIR
    Source: README of google-research/simclr before SimCLRv2 (commit 0075cc0): as in the paper 2 layers
        and weight decay 1e-6. Since then it has 3 layers and 1e-4, and reports the same figure.
    Expected: linear about 91 %; 91.1 % in SimSiam's appendix D. Published, not measured here.
    Time: not measured yet.
    """
    return _cifar10("simclr-cifar10-1000ep")


def cifar10_1000ep_r50() -> Config:
    """SimCLR on CIFAR-10, ResNet-50 with the CIFAR stem, 1000 epochs, batch 1024, LARS.

    Pixels are not normalized, as in the official code. The paper searched learning rates of 0.5, 1.0
    and 1.5 and does not name the best: 1.0 is taken. The rest is as for ImageNet there.
    Command: fastsimsiam pretrain simclr-cifar10-1000ep-r50 --data CIFAR10 --out DIR
    Source: arXiv 2002.05709, appendix B.9.
    Expected: linear 94.0 %. Published, not measured here.
    Time: not measured yet.
    """
    return replace(_cifar10("simclr-cifar10-1000ep-r50"), arch="resnet50", batch_size=1024)


def cifar10_800ep() -> Config:
    """SimCLR on CIFAR-10, ResNet-18 with the CIFAR stem, 800 epochs, batch 512, SGD.

    Unlike lightly's code, both views go through the network together, the head's last BatchNorm has no
    offset, and the head's weights start with a standard deviation of 0.01, not torch's 0.026; all three
    are SimCLR's. The loss is the mean and pixels are normalized by ImageNet's constants, as there.
    Command: fastsimsiam pretrain simclr-cifar10-800ep --data CIFAR10 --out DIR
    Source: the setting of lightly's CIFAR-10 benchmark (its docs).
    Expected: kNN (k 200) 87.9 % at 800 epochs, 84.8 % at 200 (lightly, maximum over epochs). Published,
        not measured here.
    Time: 331 minutes for lightly; not measured yet.
    """
    view = replace(_CIFAR_VIEW, interpolation="bilinear")
    return replace(
        _cifar10("simclr-cifar10-800ep"),
        epochs=800,
        views=(view, view),
        normalize=NormalizeConfig(),
        method=SimCLRConfig(temperature=0.5),
        zero_init_residual=False,
        optimizer=OptimizerConfig(lr=0.12, weight_decay=5e-4),
    )


def imagenette() -> Config:
    """SimCLR on Imagenette, ResNet-18, 128 pixels, 800 epochs, SGD.

    Unlike lightly's code, both views go through the network together, the head's last BatchNorm has no
    offset, and the head's weights start with a standard deviation of 0.01, not torch's 0.026; all three
    are SimCLR's. The loss is the mean and pixels are normalized by ImageNet's constants, as there.
    Command: fastsimsiam pretrain simclr-imagenette --data IMAGENETTE --out DIR
    Source: the setting of lightly's Imagenette benchmark (its docs, 2023).
    Expected: kNN 88.9 % at 800 epochs, 83.5 % at 200 (lightly, on the whole square, maximum over
        epochs; here on the central 0.875 of its sides). Published, not measured here.
    Time: 194 minutes for lightly on an RTX A6000; not measured yet.
    """
    method = SimCLRConfig(temperature=0.5)
    return lightly_imagenette("simclr-imagenette", "imagenette", method=method)


def imagewoof() -> Config:
    """SimCLR on ImageWoof (ten breeds of dogs), ResNet-18, 128 pixels, 800 epochs, SGD.

    Command: fastsimsiam pretrain simclr-imagewoof --data IMAGEWOOF --out DIR
    Source: Imagenette's setting.
    Expected: no published figure for this setting. Not measured here.
    Time: about that of Imagenette; not measured yet.
    """
    method = SimCLRConfig(temperature=0.5)
    return lightly_imagenette("simclr-imagewoof", "imagewoof", method=method)


RECIPES = (
    Recipe(make=imagenet_100ep, data_set=IMAGENET),
    Recipe(make=imagenet_200ep, data_set=IMAGENET),
    Recipe(make=imagenet_100ep_bs4096, data_set=IMAGENET),
    Recipe(make=imagenet_100ep_3layers, data_set=IMAGENET),
    Recipe(make=v2_imagenet_800ep, data_set=IMAGENET),
    Recipe(make=cifar10_1000ep, data_set=CIFAR10),
    Recipe(make=cifar10_1000ep_r50, data_set=CIFAR10),
    Recipe(make=cifar10_800ep, data_set=CIFAR10),
    Recipe(make=imagenette, data_set=IMAGENETTE),
    Recipe(make=imagewoof, data_set=IMAGEWOOF),
)
