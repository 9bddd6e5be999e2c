"""How a view of an image is drawn."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fastsimsiam.config.fields import (
    MOST_PIXELS,
    Switch,
    require,
    require_choices,
    require_probability,
    require_within,
)

Interpolation = Literal["bilinear", "bicubic"]
"""Filters by which crops are resampled."""
Channels = tuple[float, float, float]
"""One number for each of red, green and blue."""


@dataclass(frozen=True, kw_only=True)
class NormalizeConfig:
    """What is subtracted from pixels and what they are divided by. Defaults are ImageNet's."""

    mean: Channels = (0.485, 0.456, 0.406)
    """Subtracted from red, green and blue in [0, 1]; 0 0 0 with std 1 1 1: pixels as they are."""
    std: Channels = (0.229, 0.224, 0.225)
    """Divides red, green and blue after that."""

    def __post_init__(self) -> None:
        for value in self.mean:
            require_within("normalize.mean", value, -100, 100)
        for value in self.std:
            require_within("normalize.std", value, 1e-3, 1e3)


IMAGENET_PIXELS = NormalizeConfig()
"""ImageNet's mean and standard deviation."""
CIFAR10_PIXELS = NormalizeConfig(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))
"""Constants that MoCo's and SupContrast's code take for CIFAR-10."""


@dataclass(frozen=True, kw_only=True)
class ViewSpec:
    """How one view of an image is drawn. Defaults are SimSiam's, see recipes/simsiam.py."""

    size: int | None = None
    """Side of the square crop in pixels; None takes image_size."""
    area: tuple[float, float] = (0.2, 1.0)
    """Smallest and largest share of the image's area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width / height of the box."""
    interpolation: Interpolation = "bilinear"
    """Filter by which crops are resampled, antialiased, as in PIL."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    jitter: float = 0.8
    """Probability of color jitter."""
    brightness: float = 0.4
    """Factor drawn from 1 - x to 1 + x."""
    contrast: float = 0.4
    """Factor drawn from 1 - x to 1 + x."""
    saturation: float = 0.4
    """Factor drawn from 1 - x to 1 + x."""
    hue: float = 0.1
    """Rotation drawn from -x to x, in turns; at most 0.5."""
    grayscale: float = 0.2
    """Probability of grayscale."""
    grayscale_first: Switch = False
    """on: grayscale comes before color jitter (MoCo v1) instead of after it."""
    blur: float = 0.5
    """Probability of Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest standard deviation of the blur, in pixels of the crop."""
    solarize: float = 0.0
    """Probability of inverting the levels from 128 up."""

    def __post_init__(self) -> None:
        require_choices("views.", self)
        require_probability("views", self, "flip", "jitter", "grayscale", "blur", "solarize")
        if self.size is not None:
            require_within("views.size", self.size, 1, MOST_PIXELS)
        for name, least, most in (
            ("area", 1e-6, 1.0),
            ("ratio", 0.01, 100.0),
            ("blur_sigma", 1e-6, 100.0),
        ):
            low, high = getattr(self, name)
            fix = f"give two numbers from {least} to {most}, the smaller one first"
            require(least <= low <= high <= most, f"views.{name}", (low, high), fix)
        for name in ("brightness", "contrast", "saturation"):
            require_within(f"views.{name}", getattr(self, name), 0, 100)
        require_within("views.hue", self.hue, 0, 0.5)


def view_sizes(specs: Sequence[ViewSpec], image_size: int) -> tuple[int, ...]:
    """Side of each view's square crop, in pixels.

    Args:
        specs: one per view.
        image_size: side of the views whose spec names none.
    """
    return tuple(spec.size or image_size for spec in specs)
