"""How a view of an image is drawn."""

from collections.abc import Sequence
from dataclasses import dataclass

from fastsimsiam.config.fields import MOST_PIXELS, require, require_probability, require_within


@dataclass(frozen=True, kw_only=True)
class ViewSpec:
    """How one view of an image is drawn. Defaults are SimSiam's, see recipes/simsiam.py."""

    size: int | None = None
    """Side of the square crop in pixels; None takes image_size."""
    area: tuple[float, float] = (0.2, 1.0)
    """Smallest and largest share of the image's area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width / height of the box."""
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
    blur: float = 0.5
    """Probability of Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest standard deviation of the blur, in pixels of the crop."""
    solarize: float = 0.0
    """Probability of inverting the levels from 128 up."""

    def __post_init__(self) -> None:
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
