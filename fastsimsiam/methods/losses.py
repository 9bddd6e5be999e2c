"""Losses as pure functions, in float32 also under autocast. Shapes: B batch, D dimensions.

Losses that compare the images of a batch take those of all ranks, R of them; each rank returns the mean
over its own images.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastsimsiam.methods.gather import gather, gather_with_gradient, rank


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


def batch_info_nce(
    query: Tensor, keys: Tensor, *, temperature: float, first: int = 0
) -> tuple[Tensor, Tensor]:
    """Mean over the batch of the cross-entropy of each query's key among all keys, in float32.

    Args:
        query: predictions (B, D).
        keys: projections (N, D) of the same images, and of others; the caller stops their gradient.
        temperature: divides the cosine similarities.
        first: row of the first query's key; those of the other queries follow.

    Returns:
        The loss, a scalar, ln N where all similarities are equal; arXiv 2104.02057, equation 1. And the
        share of queries whose most similar key is their own.
    """
    with torch.autocast(query.device.type, enabled=False):
        similarity = F.normalize(query.float(), dim=1) @ F.normalize(keys.float(), dim=1).T
        own = torch.arange(first, first + len(query), device=query.device)
        hits = similarity.detach().argmax(dim=1) == own
        return F.cross_entropy(similarity / temperature, own), hits.float().mean()


def _unit(x: Tensor) -> Tensor:
    """Rows of length 1; BYOL's limit of 1e-12 is one of the square."""
    return x * x.square().sum(dim=1, keepdim=True).clamp(min=1e-12).rsqrt()


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Finds the other view of an image among all views of the batch, by cosine similarity.

    Args:
        first: projections (B, D) of the images' first views.
        second: of their second views.
        temperature: divides the similarities.

    Returns:
        The loss, mean over the 2B views of this rank: ln(2RB - 1) where all projections are equal; and
        the share of views whose most similar one is the other view of their image.
        arXiv 2002.05709, algorithm 1. The official code adds the means over first and over second views
        instead, and so has twice this loss.
    """
    with torch.autocast(first.device.type, enabled=False):
        log_probability, own = _log_probability(first, second, temperature)
        views = len(own)
        other = own[0] + (own - own[0] + views // 2) % views
        hits = log_probability.argmax(dim=1) == other
        return F.nll_loss(log_probability, other), hits.float().mean()


def sup_con(
    first: Tensor, second: Tensor, labels: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Finds the views of images of the same class among all views of the batch.

    Args:
        first: projections (B, D) of the images' first views.
        second: of their second views.
        labels: (B,) int64 classes of the images.
        temperature: divides the similarities.

    Returns:
        The loss, mean over the 2B views of this rank: that of `nt_xent` where each image has a class of
        its own; and the share of views whose most similar one is of their class.
        arXiv 2004.11362, equation 2 (L_out), without a factor of the temperature.
    """
    with torch.autocast(first.device.type, enabled=False):
        log_probability, own = _log_probability(first, second, temperature)
        classes = torch.cat([labels, labels])
        columns = torch.arange(log_probability.shape[1], device=own.device)
        # The other view of its image makes every row have one.
        positive = (classes[:, None] == gather(classes)) & (own[:, None] != columns)
        # A choice, not a product: the view's own column is minus infinity.
        total = torch.where(positive, log_probability, 0.0).sum(dim=1)
        hits = positive.gather(1, log_probability.argmax(dim=1, keepdim=True))
        return -(total / positive.sum(dim=1)).mean(), hits.float().mean()


def _log_probability(first: Tensor, second: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-softmax of each view's similarities to all views but itself; call it without autocast.

    Args:
        first, second: projections (B, D).
        temperature: divides the similarities.

    Returns:
        (2B, 2RB) float32, with minus infinity in a view's own column: the first views of this rank,
        then its second, by those of all ranks. And (2B,) int64, the own column of each row.
    """
    # In bfloat16 an error of a similarity would be 0.004 / temperature.
    z = F.normalize(torch.cat([first, second]).float(), dim=1)
    everyone = gather_with_gradient(z)
    rows = torch.arange(len(z), device=z.device) + rank() * len(z)
    columns = torch.arange(len(everyone), device=z.device)
    similarity = z @ everyone.T / temperature
    masked = similarity.masked_fill(rows[:, None] == columns, float("-inf"))
    return F.log_softmax(masked, dim=1), rows


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


def swapped_prediction(similarity: Tensor, codes: Tensor, temperature: float) -> Tensor:
    """Predicts the code of each of the first C views from every other view.

    Args:
        similarity: cosine similarities to the prototypes (V, B, K) of all views.
        codes: (C, B, K), those of the first C views; the caller stops their gradient.
        temperature: divides the similarities.

    Returns:
        The loss, a scalar, the mean over C (V - 1) pairs of views and over the images, ln K where all
        predictions are uniform; arXiv 2006.09882, equations 1, 2 and 6.
    """
    with torch.autocast(similarity.device.type, enabled=False):
        log_probability = F.log_softmax(similarity.float() / temperature, dim=2)
        # A view does not predict its own code.
        others = log_probability.sum(dim=0) - log_probability[: len(codes)]
        return -(codes * others).sum(dim=2).mean() / (len(similarity) - 1)
