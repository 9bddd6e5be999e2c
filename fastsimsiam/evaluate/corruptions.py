"""Damage of whole images, which a measure of certainty should notice. Shapes: B batch, S side."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

_BLUR = 1 / 16
"""Standard deviation of the blur, over the image's side."""
_HIDDEN = 0.6
"""Side of the square that hides the middle, over the image's side."""
LEAST_SIDE = 8
"""Smallest side of images, in pixels, on which the corruptions are what they are called."""
_NOISE = 0.3
"""Standard deviation of the noise, of pixels in [0, 1]."""


def blur(images: Tensor) -> Tensor:
    """Heavy Gaussian blur of images (B, 3, S, S) in [0, 1]: shapes of large objects are left."""
    sigma = images.shape[-1] * _BLUR
    taps = 2 * math.ceil(3 * sigma) + 1
    # Rows, then columns: torchvision's kernel of both has taps x taps products for each pixel.
    for size in ([taps, 1], [1, taps]):
        images = gaussian_blur(images, size, [sigma, sigma])
    return images


def occlude(images: Tensor) -> Tensor:
    """A gray square over the middle, 0.36 of the area."""
    side = images.shape[-1]
    first = round(side * (1 - _HIDDEN) / 2)
    hidden = images.clone()
    hidden[..., first : side - first, first : side - first] = 0.5
    return hidden


class Noise:
    """Gaussian noise on every value; the same numbers in the same order of images."""

    def __init__(self) -> None:
        """Seeds the noise."""
        self._generator = torch.Generator().manual_seed(0)

    def __call__(self, images: Tensor) -> Tensor:
        """Adds the next numbers."""
        noise = torch.randn(images.shape, generator=self._generator).to(images.device)
        return (images + _NOISE * noise).clamp(0, 1)


CORRUPTIONS: Mapping[str, Callable[[], Callable[[Tensor], Tensor]]] = {
    "blur": lambda: blur,
    "occlusion": lambda: occlude,
    "noise": Noise,
}
"""Name -> what makes a function of images (B, 3, S, S) in [0, 1], a new one for each pass."""
