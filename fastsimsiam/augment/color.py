"""Color operations with a parameter per image, as torchvision applies them to PIL images.

Shapes: N images, H W. Images are three planes (N, H, W) in [0, 1]: with separate channels, a fused
kernel computes each pixel once instead of once per channel. Differences from PIL: values are not
rounded to 8 bits between operations, and hue is not quantized to 256 steps; tests/test_augment.py has
the resulting errors.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastsimsiam.plan.views import BRIGHTNESS, CONTRAST, HUE, SATURATION

Planes = tuple[Tensor, Tensor, Tensor]


def luma(rgb: Planes) -> Tensor:
    """Gray level (N, H, W) with the weights of ITU-R 601, as PIL's mode L."""
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
        # (by floor: a vectorized remainder costs more than the rest of this function)
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
    """Brightness, contrast, saturation and hue, in each image's own order.

    Brightness, contrast and saturation are affine, `a x + b luma(x) + c mean`; hue is not. Any of the
    24 orders is three affine slots, hue, three affine slots; unused slots are identities. Contrast
    needs the mean gray level of its input: a first pass computes it from the operations before
    contrast, and a second pass applies all operations. Compiled, neither stores images in between.

    Args:
        rgb: planes in [0, 1].
        brightness, contrast, saturation: (N,) factors.
        hue: (N,) rotations in turns.
        order: (N, 4) int64 order of the operations, as in `plan.views.ViewTable`.
    """
    position = torch.arange(4, device=order.device)
    hue_position = ((order == HUE) * position).sum(dim=1, keepdim=True)
    # The order of the three affine operations, and which of them come before hue.
    before_hue = position[:3] < hue_position
    affine = torch.where(before_hue, order[:, :3], order[:, 1:])
    slots = _AffineSlots(
        direct=torch.where(
            affine == BRIGHTNESS,
            brightness[:, None],
            torch.where(affine == CONTRAST, contrast[:, None], saturation[:, None]),
        ),
        gray=torch.where(affine == SATURATION, 1.0 - saturation[:, None], 0.0),
        level=torch.where(affine == CONTRAST, 1.0 - contrast[:, None], 0.0),
    )
    before_contrast = (affine == CONTRAST).int().cumsum(dim=1) == 0
    hue_is_before_contrast = (before_hue | (affine != CONTRAST)).all(dim=1).logical_not()

    first = _apply(rgb, slots.where(before_hue & before_contrast), None)
    first = _rotate(first, torch.where(hue_is_before_contrast, hue, 0.0))
    first = _apply(first, slots.where(~before_hue & before_contrast), None)
    # PIL rounds the mean to a whole gray level.
    mean = torch.round(luma(first).mean(dim=(1, 2)) * 255.0) / 255.0

    rgb = _apply(rgb, slots.where(before_hue), mean)
    rgb = _rotate(rgb, hue)
    return _apply(rgb, slots.where(~before_hue), mean)


@dataclass(frozen=True, kw_only=True)
class _AffineSlots:
    """Three affine operations, `direct x + gray luma(x) + level mean`; each coefficient is (N, 3)."""

    direct: Tensor
    gray: Tensor
    level: Tensor

    def where(self, used: Tensor) -> "_AffineSlots":
        """The same operations where `used` (N, 3), identities elsewhere."""
        return _AffineSlots(
            direct=torch.where(used, self.direct, 1.0),
            gray=torch.where(used, self.gray, 0.0),
            level=torch.where(used, self.level, 0.0),
        )


def _apply(rgb: Planes, slots: _AffineSlots, mean: Tensor | None) -> Planes:
    """Applies three affine operations; clamps after each, as 8-bit images do."""
    for slot in range(3):
        offset = luma(rgb) * slots.gray[:, slot, None, None]
        if mean is not None:
            offset = offset + (slots.level[:, slot] * mean)[:, None, None]
        direct = slots.direct[:, slot, None, None]
        rgb = (
            (direct * rgb[0] + offset).clamp(0.0, 1.0),
            (direct * rgb[1] + offset).clamp(0.0, 1.0),
            (direct * rgb[2] + offset).clamp(0.0, 1.0),
        )
    return rgb


def _rotate(rgb: Planes, turn: Tensor) -> Planes:
    """`rotate_hue` by (N,) turns; images with 0 turns stay bit for bit as they are."""
    angle = turn[:, None, None]
    rotated = rotate_hue(rgb, angle)
    return (
        torch.where(angle != 0, rotated[0], rgb[0]),
        torch.where(angle != 0, rotated[1], rgb[1]),
        torch.where(angle != 0, rotated[2], rgb[2]),
    )
