"""Weighted k-nearest-neighbor classification of frozen features.

Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", arXiv
1805.01978, section 3.4: neighbors vote with weight exp(cosine similarity / temperature).
Shapes: N bank, Q queries, D features, K neighbors, C classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_QUERY_CHUNK = 1024
_BANK_CHUNK = 131_072


def nearest(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Finds the k nearest bank features of each query by cosine similarity.

    Computes the similarity matrix block by block: all of it would not fit into memory.

    Args:
        queries: (Q, D) of length 1.
        bank: (N, D) of length 1.
        k: number of neighbors, at most N.

    Returns:
        Similarities (Q, k) in float32, descending, and rows of the bank (Q, k).
    """
    similar, position = [], []
    for start in range(0, len(queries), _QUERY_CHUNK):
        query = queries[start : start + _QUERY_CHUNK]
        best = query.new_empty((len(query), 0), dtype=torch.float32)
        where = torch.empty((len(query), 0), dtype=torch.int64, device=query.device)
        for first in range(0, len(bank), _BANK_CHUNK):
            block = (query @ bank[first : first + _BANK_CHUNK].T).float()
            value, index = block.topk(min(k, block.shape[1]), dim=1)
            best, where = torch.cat([best, value], 1), torch.cat([where, index + first], 1)
            best, kept = best.topk(min(k, best.shape[1]), dim=1)
            where = where.gather(1, kept)
        similar.append(best)
        position.append(where)
    return torch.cat(similar), torch.cat(position)


def knn_accuracy(
    bank: Tensor,
    bank_label: Tensor,
    queries: Tensor,
    query_label: Tensor,
    *,
    k: Sequence[int],
    temperature: float,
    num_classes: int,
) -> dict[int, float]:
    """Top-1 accuracy for several numbers of neighbors.

    Args:
        bank: training features (N, D) of length 1.
        bank_label: (N,).
        queries: validation features (Q, D) of length 1.
        query_label: (Q,).
        k: numbers of neighbors, each at most N.
        temperature: temperature of the weights.
        num_classes: C.

    Returns:
        k -> share of correct predictions, 0 to 1.
    """
    similarity, position = nearest(queries, bank, max(k))
    label = bank_label[position]
    result = {}
    for count in k:
        answer = vote(
            similarity[:, :count],
            label[:, :count],
            temperature=temperature,
            num_classes=num_classes,
        )
        result[count] = (answer == query_label).float().mean().item()
    return result


def vote(similarity: Tensor, label: Tensor, *, temperature: float, num_classes: int) -> Tensor:
    """The class that neighbors vote for, weighted by exp(similarity / temperature).

    Args:
        similarity: (Q, K) cosine similarities, descending.
        label: (Q, K) classes of the neighbors.
        temperature: temperature of the weights.
        num_classes: C.

    Returns:
        (Q,) class numbers.
    """
    return votes(similarity, label, temperature=temperature, num_classes=num_classes).argmax(dim=1)


def votes(similarity: Tensor, label: Tensor, *, temperature: float, num_classes: int) -> Tensor:
    """The weight (Q, C) of the neighbors of each class; see `vote` for the arguments."""
    # Relative to the nearest neighbor: the exponential cannot overflow.
    weight = ((similarity - similarity[:, :1]) / temperature).exp()
    weights = torch.zeros(len(label), num_classes, device=label.device)
    return weights.scatter_add_(1, label, weight)
