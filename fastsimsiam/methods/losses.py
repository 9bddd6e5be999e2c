"""Losses as pure functions. Shapes: B batch, D dimensions."""

import torch
import torch.nn.functional as F
from torch import Tensor


def negative_cosine_similarity(p: Tensor, z: Tensor) -> Tensor:
    """Mean over the batch of -cos(p, z), in float32; the caller stops gradients.

    Args:
        p: predictions (B, D).
        z: targets (B, D).

    Returns:
        A scalar in [-1, 1]; arXiv 2011.10566, equation 1.
    """
    return -(F.normalize(p.float(), dim=1) * F.normalize(z.float(), dim=1)).sum(dim=1).mean()


def normalized_distance(p: Tensor, z: Tensor) -> Tensor:
    """Mean over the batch of |p/|p| - z/|z||^2 = 2 - 2 cos(p, z), in float32.

    Args:
        p: predictions (B, D).
        z: targets (B, D); the caller stops their gradient.

    Returns:
        A scalar in [0, 4]; arXiv 2006.07733, equation 2.
    """
    with torch.autocast(p.device.type, enabled=False):
        return (_unit(p.float()) - _unit(z.float())).square().sum(dim=1).mean()


def batch_info_nce(query: Tensor, keys: Tensor, *, temperature: float, first: int = 0) -> Tensor:
    """Mean over the batch of the cross-entropy of each query's key among all keys, in float32.

    Args:
        query: predictions (B, D).
        keys: projections (N, D) of the same images, and of others; the caller stops their gradient.
        temperature: divides the cosine similarities.
        first: row of the first query's key; those of the other queries follow.

    Returns:
        A scalar, ln N where all similarities are equal; arXiv 2104.02057, equation 1.
    """
    with torch.autocast(query.device.type, enabled=False):
        similarity = F.normalize(query.float(), dim=1) @ F.normalize(keys.float(), dim=1).T
        own = torch.arange(first, first + len(query), device=query.device)
        return F.cross_entropy(similarity / temperature, own)


def _unit(x: Tensor) -> Tensor:
    """Rows of length 1; BYOL's limit of 1e-12 is one of the square."""
    return x * x.square().sum(dim=1, keepdim=True).clamp(min=1e-12).rsqrt()
