"""Losses as pure functions. Shapes: B batch, D dimensions."""

import math

import torch.nn.functional as F
from torch import Tensor


def negative_cosine_similarity(p: Tensor, z: Tensor) -> Tensor:
    """Mean over the batch of -cos(p, z), in float32; a stop-gradient is the caller's.

    Args:
        p: predictions (B, D).
        z: targets (B, D).

    Returns:
        A scalar in [-1, 1]; arXiv 2011.10566, equation 1.
    """
    return -(F.normalize(p.float(), dim=1) * F.normalize(z.float(), dim=1)).sum(dim=1).mean()


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
