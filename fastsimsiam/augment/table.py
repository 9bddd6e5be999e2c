"""The table of coefficients that the photometric kernels read, and their tiles.

Shapes: N images, which are the B x V crops of one size.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastsimsiam.augment.blur import gaussian_weights
from fastsimsiam.config.views import NormalizeConfig
from fastsimsiam.plan.views import CONTRAST, HUE, SATURATION

# Columns of the table. An operation of the jitter is `direct x + gray luma(x) + level mean`, or a turn
# of the hue, where the turn is not 0. There are four, in the image's order.
PER_STEP = 4
_STEPS = 4 * PER_STEP
BEFORE_CONTRAST = _STEPS
"""How many operations come before contrast; -1: contrast is unchanged, and no mean is needed."""
GRAY_FIRST, GRAY_LAST, FLIP = range(_STEPS + 1, _STEPS + 4)
INVERTED_FROM = _STEPS + 4
"""Solarize: the least color that is inverted."""
EXPONENT = _STEPS + 5
"""The blur's weight at a distance d is `weight exp(exponent d d)`."""
WEIGHT = _STEPS + 6
"""0: no blur."""
SCALE, SHIFT = _STEPS + 7, _STEPS + 10
"""Three each: a color x in [0, 1] is normalized as `scale x + shift`."""
COLUMNS = _STEPS + 13

_BRIGHT = 128 / 255 - 1e-6
"""A pixel of 128 lies above it, whichever way its product with 1 / 255 is rounded."""


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """How the kernels distribute pixels over programs; sizes of blocks and tiles are powers of 2.

    Attributes:
        part: largest number of pixels of an image that a program sums, a multiple of `sums_block`.
        sums_block, sums_warps: pixels at a time, and warps, of the sums.
        block, warps: pixels and warps of a program, for images without blur.
        rows, cols, blur_warps: tile with its halo, and warps, for images with blur.
        blur_registers: most registers per thread, for images with blur: with 128, two programs of 256
            threads fit a processor, for a few spilled words in some cases.
    """

    part: int = 16384
    sums_block: int = 1024
    sums_warps: int = 4
    block: int = 1024
    warps: int = 4
    rows: int = 64
    cols: int = 64
    blur_warps: int = 8
    blur_registers: int = 128

    def part_of(self, pixels: int) -> int:
        """Pixels that a program sums, so that the parts of an image are about equal."""
        blocks = -(-pixels // self.sums_block)
        parts = -(-pixels // self.part)
        return self.sums_block * -(-blocks // parts)


TILES = Tiles()


def fits(radius: int) -> bool:
    """Whether the blur's tiles are large enough for a kernel of this radius."""
    return 4 * radius <= min(TILES.rows, TILES.cols)


def coefficients(
    parameters: dict[str, Tensor],
    gray_first: Tensor | None,
    gray_last: Tensor | None,
    normalize: NormalizeConfig,
    *,
    flip: bool,
    radius: int,
) -> Tensor:
    """The table (N, COLUMNS) of all images, float32.

    Args:
        parameters: `brightness` etc. as in `plan.views.ViewTable`, each (N, ...).
        gray_first, gray_last: (N,) bool: which images lose their color before and after the jitter;
            None: no image does.
        normalize: constants of the normalization.
        flip: whether there is such an operation.
        radius: of the blur's kernel in pixels; 0: there is no blur.
    """
    order = parameters["order"]
    names = ("brightness", "contrast", "saturation", "hue")
    value = torch.stack([parameters[name] for name in names], dim=1).gather(1, order)
    is_hue, is_contrast = order == HUE, order == CONTRAST
    steps = torch.stack(
        [
            torch.where(is_hue, 1.0, value),
            torch.where(order == SATURATION, 1.0 - value, 0.0),
            torch.where(is_contrast, 1.0 - value, 0.0),
            torch.where(is_hue, value, 0.0),
        ],
        dim=2,
    )
    before = (is_contrast * torch.arange(4, device=order.device)).sum(dim=1)
    none = torch.zeros_like(parameters["brightness"])
    sigma = parameters["blur_sigma"] if radius > 0 else none
    middle = gaussian_weights(sigma, radius)[:, radius]
    columns = [
        torch.where(parameters["contrast"] != 1, before, -1),
        none if gray_first is None else gray_first,
        none if gray_last is None else gray_last,
        parameters["flip"] if flip else none,
        torch.where(parameters["solarize"], _BRIGHT, 2.0),
        -0.5 / sigma.clamp(min=1e-3).square(),  # as in `gaussian_weights`
        torch.where(sigma > 0, middle, 0.0),
        # Filled with numbers, not copied from the host.
        *(torch.full_like(none, 1.0 / std) for std in normalize.std),
        *(
            torch.full_like(none, -mean / std)
            for mean, std in zip(normalize.mean, normalize.std, strict=True)
        ),
    ]
    return torch.cat(
        [steps.flatten(1), torch.stack([column.float() for column in columns], dim=1)], dim=1
    )


def radius_of(largest_sigma: float) -> int:
    """Radius in pixels at which the Gaussian is cut off, as in `blur.gaussian_blur`."""
    return math.ceil(3.0 * largest_sigma)
