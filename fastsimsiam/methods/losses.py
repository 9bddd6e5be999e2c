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


def queue_info_nce(
    query: Tensor, key: Tensor, queue: Tensor, *, temperature: float
) -> tuple[Tensor, Tensor]:
    """Mean over the batch of the cross-entropy of each query's key among the K of a queue, in float32.

    Args:
        query: unit vectors (B, D).
        key: unit vectors (B, D), one for each query; the caller stops their gradient.
        queue: unit vectors (K, D), the negatives.
        temperature: divides the cosine similarities.

    Returns:
        The loss, a scalar, ln(K + 1) where all similarities are equal; arXiv 1911.05722, equation 1.
        And the share of queries that are nearer to their key than to any in the queue.
    """
    with torch.autocast(query.device.type, enabled=False):
        query = query.float() / temperature
        positive = (query * key.float()).sum(dim=1)
        negatives = query @ queue.float().T
        # The softmax over K + 1 without a copy of (B, K) logits beside those of the keys.
        loss = F.softplus(negatives.logsumexp(dim=1) - positive).mean()
        nearer = positive.detach() > negatives.detach().amax(dim=1)
    return loss, nearer.float().mean()
