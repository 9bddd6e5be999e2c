"""Color operations with per-sample parameters, after torchvision's PIL path.

Shapes: N images, H W. An image is three planes (N, H, W) in [0, 1]: with the channels apart, a fused
kernel computes a pixel once, not once per channel. Differences to PIL: no rounding to 8 bits between
operations, and hue is not quantised to 256 steps; tests/test_augment.py has the figures.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastsimsiam.plan.views import BRIGHTNESS, CONTRAST, HUE, SATURATION

Planes = tuple[Tensor, Tensor, Tensor]


def luma(rgb: Planes) -> Tensor:
    """Gray level (N, H, W) by the weights of ITU-R 601, as PIL's mode L."""
    return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]


def rotate_hue(rgb: Planes, turn: Tensor) -> Planes:
    """Rotates the hue in HSV space.

    Args:
        rgb: planes in [0, 1].
        turn: (N, 1, 1) rotation as a fraction of a turn, in [-0.5, 0.5].
    """
    red, green, blue = rgb
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    safe = torch.where(chroma > 0, chroma, 1.0)
    sextant = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2.0 + (blue - red) / safe, 4.0 + (red - green) / safe),
    )
    sextant = sextant + 6.0 * turn

    def channel(offset: float) -> Tensor:
        # f(n) = V - C * clamp(min(k, 4 - k), 0, 1), k = (n + H / 60 degrees) mod 6
        # (floor, because a vectorized remainder costs more than all the rest)
        k = offset + sextant
        k = k - 6.0 * torch.floor(k / 6.0)
        return value - chroma * torch.minimum(k, 4.0 - k).clamp(0.0, 1.0)

    return channel(5.0), channel(3.0), channel(1.0)


def jitter(
    rgb: Planes,
    *,
    brightness: Tensor,
    contrast: Tensor,
    saturation: Tensor,
    hue: Tensor,
    order: Tensor,
) -> Planes:
    """Brightness, contrast, saturation and hue, in each sample's own order.

    Brightness, contrast and saturation are all `a x + b luma(x) + c mean`, and hue, the dear one,
    stands in the order once. So whatever the 24 orders in the batch, the work is three linear
    places, one rotation, three linear places, with what a sample does not do there set to the
    identity. Contrast needs the mean gray at its place: a first pass over the operations before it
    computes that, a second one applies all. Nothing is stored in between once compiled.

    Args:
        rgb: planes in [0, 1].
        brightness, contrast, saturation: (N,) factors.
        hue: (N,) rotations in turns.
        order: (N, 4) int64 operation at each place, as in `plan.views.ViewTable`.
    """
    place = torch.arange(4, device=order.device)
    hue_place = ((order == HUE) * place).sum(dim=1, keepdim=True)
    # The order without hue, and which of its three places come before hue.
    linear = torch.where(place[:3] < hue_place, order[:, :3], order[:, 1:])
    before_hue = place[:3] < hue_place
    forms = _Forms(
        direct=torch.where(
            linear == BRIGHTNESS,
            brightness[:, None],
            torch.where(linear == CONTRAST, contrast[:, None], saturation[:, None]),
        ),
        gray=torch.where(linear == SATURATION, 1.0 - saturation[:, None], 0.0),
        level=torch.where(linear == CONTRAST, 1.0 - contrast[:, None], 0.0),
    )
    until_contrast = (linear == CONTRAST).int().cumsum(dim=1) == 0
    hue_is_before_contrast = (before_hue | (linear != CONTRAST)).all(dim=1).logical_not()

    first = _linear(rgb, forms.where(before_hue & until_contrast), None)
    first = _rotate(first, torch.where(hue_is_before_contrast, hue, 0.0))
    first = _linear(first, forms.where(~before_hue & until_contrast), None)
    # PIL rounds the mean to a whole gray level.
    mean = torch.round(luma(first).mean(dim=(1, 2)) * 255.0) / 255.0

    rgb = _linear(rgb, forms.where(before_hue), mean)
    rgb = _rotate(rgb, hue)
    return _linear(rgb, forms.where(~before_hue), mean)


@dataclass(frozen=True, kw_only=True)
class _Forms:
    """`direct x + gray luma(x) + level mean` at three places, each (N, 3)."""

    direct: Tensor
    gray: Tensor
    level: Tensor

    def where(self, chosen: Tensor) -> "_Forms":
        """These forms where `chosen` (N, 3), the identity elsewhere."""
        return _Forms(
            direct=torch.where(chosen, self.direct, 1.0),
            gray=torch.where(chosen, self.gray, 0.0),
            level=torch.where(chosen, self.level, 0.0),
        )


def _linear(rgb: Planes, forms: _Forms, mean: Tensor | None) -> Planes:
    """Applies the three places, clamping after each as 8-bit images do."""
    for place in range(3):
        share = luma(rgb) * forms.gray[:, place, None, None]
        if mean is not None:
            share = share + (forms.level[:, place] * mean)[:, None, None]
        direct = forms.direct[:, place, None, None]
        rgb = (
            (direct * rgb[0] + share).clamp(0.0, 1.0),
            (direct * rgb[1] + share).clamp(0.0, 1.0),
            (direct * rgb[2] + share).clamp(0.0, 1.0),
        )
    return rgb


def _rotate(rgb: Planes, turn: Tensor) -> Planes:
    """`rotate_hue` by (N,) turns, exact where there is nothing to rotate."""
    angle = turn[:, None, None]
    rotated = rotate_hue(rgb, angle)
    return (
        torch.where(angle != 0, rotated[0], rgb[0]),
        torch.where(angle != 0, rotated[1], rgb[1]),
        torch.where(angle != 0, rotated[2], rgb[2]),
    )
