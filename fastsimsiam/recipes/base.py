"""What a recipe is: a function that returns a config, and what its data set is like."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastsimsiam.config.optimizer import OptimizerConfig
from fastsimsiam.config.run import Config
from fastsimsiam.config.views import ViewSpec


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """What a data set is like, for forecasts on a machine that does not have it.

    Attributes:
        name: as its authors write it.
        train_images, val_images: number of images.
        height, width: usual size of an image in pixels.
    """

    name: str
    train_images: int
    val_images: int
    height: int
    width: int


IMAGENET = DataSet(
    name="ImageNet", train_images=1_281_167, val_images=50_000, height=375, width=500
)
IMAGENETTE = DataSet(name="Imagenette", train_images=9_469, val_images=3_925, height=375, width=500)
IMAGEWOOF = DataSet(name="ImageWoof", train_images=9_025, val_images=3_929, height=375, width=500)
CIFAR10 = DataSet(name="CIFAR-10", train_images=50_000, val_images=10_000, height=32, width=32)
DIGITS = DataSet(name="digits", train_images=1_438, val_images=359, height=32, width=32)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """An experiment that can be repeated.

    Attributes:
        make: returns the config. Its docstring says what the recipe is (first line), the command, the
            source, the expected score and time, and whether it was measured with this code.
        data_set: what the recipe's data set is like.
    """

    make: Callable[[], Config]
    data_set: DataSet

    @property
    def description(self) -> str:
        """The docstring of `make`."""
        return inspect.getdoc(self.make) or ""


_LARGE_AREA = ViewSpec(area=(0.08, 1.0))


def lightly_imagenette(name: str, data: str, **changes: Any) -> Config:
    """A run in the setting that lightly's Imagenette benchmark has for all methods.

    ResNet-18, 128 pixels, batch 256, 800 epochs, SGD; two views that show 0.08 to 1 of an image's area.

    Args:
        name: of the recipe.
        data: folder of the data set below `data`, `imagenette` or `imagewoof`.
        changes: fields of `Config`: the method, and what it does otherwise.
    """
    setting: dict[str, Any] = {
        "data": Path("data") / data,
        "out": Path("runs") / name,
        "epochs": 800,
        "batch_size": 256,
        "image_size": 128,
        "arch": "resnet18",
        "zero_init_residual": False,
        "views": (_LARGE_AREA, _LARGE_AREA),
        "optimizer": OptimizerConfig(lr=0.06, weight_decay=5e-4),
    }
    return Config(recipe=name, **(setting | changes))
