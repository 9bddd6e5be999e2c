"""How near a network is to giving all images the same output. Shapes: B batch, D dimensions."""

import math
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

COLLAPSED_STD = 0.1
"""Features of different images below it are as good as equal."""


def collapse_std(z: Tensor) -> Tensor:
    """How far z is from collapse: mean over dimensions of std(z / |z|), times sqrt(D).

    Args:
        z: projections (B, D).

    Returns:
        A scalar: about 1 for directions spread over the sphere, 0 where all outputs are equal;
        arXiv 2011.10566, section 4.1.
    """
    direction = F.normalize(z.detach().float(), dim=1)
    mean_std: Tensor = direction.std(dim=0, correction=0).mean()
    return mean_std * math.sqrt(z.shape[1])


def collapse_threshold(batch_size: int) -> float:
    """The `collapse_std` of a batch in training below which the network has collapsed.

    Behind a BatchNorm not all outputs of a batch can be equal: one is left opposite to all others, and
    `collapse_std` is about 2 / sqrt(batch size).

    Args:
        batch_size: images that it was taken of, on one device.
    """
    return max(COLLAPSED_STD, 3.0 / math.sqrt(batch_size))


def collapse_warning(metrics: Mapping[str, float], batch_size: int) -> str | None:
    """A sentence if `collapse_std` is among the metrics and below the threshold, else None."""
    std = metrics.get("collapse_std", math.inf)
    if std >= collapse_threshold(batch_size):
        return None
    return (
        "the network has collapsed: all images get the same output (std*sqrt(D) "
        f"{std:.3f}, healthy is about 1; loss {metrics['loss']:.3f})"
    )
