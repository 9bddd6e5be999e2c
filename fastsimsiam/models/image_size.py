"""Whether a network can take images of a size, found out without its weights and before any work."""

import torch
from torch import nn

from fastsimsiam.errors import UserError
from fastsimsiam.models.backbones import shape_extractor

_SIZES = (32, 64, 96, 128, 160, 192, 224, 256, 299, 384, 512)
"""Sizes that are tried for the advice."""
_BATCH = 2
"""BatchNorm needs more than one value per channel, which small maps have of two images."""
# What torch and torchvision raise on shapes that do not fit.
_REFUSALS = (RuntimeError, ValueError, AssertionError, IndexError)


def require_image_size(
    arch: str, size: int, *, stem: str = "imagenet", option: str = "--image-size"
) -> None:
    """Checks that a backbone turns square images into one feature vector each.

    Args:
        arch, stem: the backbone, see `backbones.feature_extractor`.
        size: side of the images in pixels.
        option: what sets the size, for the message.

    Raises:
        UserError: it does not; names a size that it takes. Or there is no such network.
    """
    backbone, dim = shape_extractor(arch, stem)
    reason = _why_refused(backbone, dim, size)
    if reason is None:
        return
    fitting = [other for other in _SIZES if _why_refused(backbone, dim, other) is None]
    nearest = min(fitting, key=lambda other: abs(other - size), default=None)
    fix = f"pass {option} {nearest}, or another --arch" if nearest else "choose another --arch"
    raise UserError(f"--arch {arch} cannot take images of {size} x {size} pixels ({reason}): {fix}")


def _why_refused(backbone: nn.Module, dim: int, size: int) -> str | None:
    """The reason why a backbone on the meta device cannot take a size; None where it can."""
    images = torch.empty(_BATCH, 3, size, size, device="meta")
    try:
        with torch.no_grad():
            shape = tuple(backbone.train()(images).flatten(1).shape)
    except NotImplementedError:
        return None  # an operation without shape rules: only real images can tell
    except _REFUSALS as error:
        return " ".join(str(error).partition("\n")[0].split())[:160] or type(error).__name__
    return None if shape == (_BATCH, dim) else f"its features are {shape[1:]}, not ({dim},)"
