"""How near a network is to giving all images the same output. Shapes: B batch, D dimensions."""

import math

import torch.nn.functional as F
from torch import Tensor

_COLLAPSED_STD = 0.1


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


def collapsed_std(batch_size: int) -> float:
    """Below which the collapse figure of a batch in training means collapse.

    Behind a BatchNorm not all outputs of a batch can be equal: one is left opposite to all others, and
    the figure is about 2 / sqrt(batch size).

    Args:
        batch_size: of which the figure was taken, on one device.
    """
    return max(_COLLAPSED_STD, 3.0 / math.sqrt(batch_size))
