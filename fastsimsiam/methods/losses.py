"""Losses as pure functions. Shapes: B batch, D dimensions."""

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
