"""What a recipe is: a function that returns a config, and what its data set is like."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

from fastsimsiam.config.run import Config


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
