"""The options of the commands that evaluate a checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fastsimsiam.config.fields import (
    MOST_EPOCHS,
    MOST_PIXELS,
    MOST_WORKERS,
    Switch,
    require,
    require_checked,
    require_choices,
    require_gray16_max,
    require_within,
)
from fastsimsiam.config.run import DeviceName, KnnConfig, LoaderName, OnBadImage, PrecisionName
from fastsimsiam.config.views import Channels, NormalizeConfig
from fastsimsiam.errors import UserError

Stem = Literal["imagenet", "cifar"]
Split = Literal["train", "val"]
KNN_K = tuple(sorted(KnnConfig.k))
"""Numbers of neighbors of `knn` by default: those of the evaluation in training."""
INSPECT_IMAGES = 5000
"""Largest number of images of `inspect` by default."""


def normalization(mean: Channels | None, std: Channels | None) -> NormalizeConfig | None:
    """The normalization that `--mean` and `--std` give; None without them.

    Raises:
        UserError: one is missing, or a value is out of range.
    """
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        given, missing = ("--mean", "--std") if std is None else ("--std", "--mean")
        raise UserError(f"{given} is given without {missing}: give both")
    for value in mean:
        require_within("--mean", value, -100, 100)
    for value in std:
        require_within("--std", value, 1e-3, 1e3)
    return NormalizeConfig(mean=mean, std=std)


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Options of all commands that take a checkpoint and a data set."""

    val: Path | None = None
    """Validation images, of any format of --data; None: those that it has."""
    image_size: int | None = None
    """Side of the crops in pixels; None: as in training, or 224."""
    crop_fraction: float | None = None
    """Side of the centered square over the image's shorter side; None: as in training, or 0.875."""
    mean: Channels | None = None
    """Subtracted from red, green and blue in [0, 1]; None: as recorded with the weights, or ImageNet's.
    With std 1 1 1, 0 0 0 leaves pixels as they are. Given together with std."""
    std: Channels | None = None
    """Divides red, green and blue after that; None: as mean."""
    arch: str | None = None
    """torchvision's name of the network, for weights of other packages; None: detected, for ResNets."""
    stem: Stem | None = None
    """Stem of such a network, see pretrain --help; None: detected."""
    loader: LoaderName = "auto"
    """Loader of the images, see pretrain --help."""
    on_bad_image: OnBadImage = "error"
    """error: a broken image stops the command. skip: it is left out. error-strict, skip-strict: a JPEG
    is broken, too, if the decoder warns of the image's data."""
    gray16_max: int | None = None
    """Largest gray level of 16-bit grayscale images; None: as in training, or 65535."""
    check_images: Switch = True
    """Loaders dali, nvjpeg and reference find damage inside JPEGs, see pretrain --help."""
    device: DeviceName = "auto"
    """auto: cuda where there is one."""
    precision: PrecisionName = "auto"
    """Precision of the backbone's arithmetic, see pretrain --help."""
    workers: int | None = None
    """Loader threads; None: one per CPU core of this process."""

    def __post_init__(self) -> None:
        require_choices("--", self)
        if self.image_size is not None:
            require_within("--image-size", self.image_size, 1, MOST_PIXELS)
        if self.crop_fraction is not None:
            require_within("--crop-fraction", self.crop_fraction, 0, 1, above=True)
        normalization(self.mean, self.std)
        if self.workers is not None:
            require_within("--workers", self.workers, 1, MOST_WORKERS)
        if self.gray16_max is not None:
            require_gray16_max(self.gray16_max)
        require_checked(self.on_bad_image, self.check_images)


@dataclass(frozen=True, kw_only=True)
class LinearConfig:
    """How the linear layer is trained."""

    epochs: int = 90
    """Passes over the training images."""
    batch_size: int = 4096
    """Images per step."""
    lr: float = 0.1
    """Learning rate per 256 images. The paper prints 0.02; its code release has 0.1, which reaches the
    published accuracy (0.02 stays two points below)."""
    optimizer: Literal["lars", "sgd"] = "lars"
    """lars: pretraining's larc, trust coefficient 0.001, as published. sgd: for small data sets and
    batches."""
    momentum: float = 0.9
    """Momentum of both optimizers."""
    weight_decay: float = 0.0
    """Weight decay; published: none."""
    seed: int = 0
    """Seed of the weights, the order and the crops."""

    def __post_init__(self) -> None:
        require_choices("--", self)
        require_within("--epochs", self.epochs, 1, MOST_EPOCHS)
        require_within("--batch-size", self.batch_size, 1, 10**7)
        require_within("--lr", self.lr, 1e-12, 1e6)
        require(0 <= self.momentum < 1, "--momentum", self.momentum, "give 0 to below 1")
        require_within("--weight-decay", self.weight_decay, 0, 1e6)
        require_within("--seed", self.seed, 0, 2**63 - 1)


CACHED = LinearConfig(batch_size=256, optimizer="sgd")
"""For features that are computed once: data sets for which that is done are small."""
