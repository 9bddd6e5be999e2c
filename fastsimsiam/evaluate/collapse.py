"""Metrics that tell a healthy representation from a collapsed one. Shapes: N images, D features."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastsimsiam.methods.collapse import collapse_std

_CHUNK = 1024
_DEAD = 1e-3
"""A dimension with less than a thousandth of an even share of the variance carries nothing."""


@dataclass(frozen=True, kw_only=True)
class CollapseMetrics:
    """Collapse metrics of the features of different images.

    Attributes:
        images, dim: N and D.
        std: mean over dimensions of the standard deviation of features of length 1, times sqrt(D);
            1 for directions spread over the sphere, 0 for equal ones (arXiv 2011.10566, 4.1).
        mean_cosine: mean cosine similarity of different images; 0 spread, 1 collapsed.
        effective_rank: exp of the entropy of the singular values of the centered features: the
            number of directions in use, at most D (Roy and Vetterli, EUSIPCO 2007).
        uniformity: log of the mean of exp(-2 |u - v|^2) over pairs of different images; -4 at best,
            0 collapsed (Wang and Isola, arXiv 2005.10242).
        variance_low, variance_median, variance_high: tenth, fiftieth and ninetieth percentile over
            dimensions of the variance of features of length 1, times D; 1 is an even share.
        dead: share of dimensions with hardly any variance, 0 to 1.
        alignment: see `alignment`; None if there is only one view of each image.
    """

    images: int
    dim: int
    std: float
    mean_cosine: float
    effective_rank: float
    uniformity: float
    variance_low: float
    variance_median: float
    variance_high: float
    dead: float
    alignment: float | None = None


def collapse_metrics(features: Tensor, other_view: Tensor | None = None) -> CollapseMetrics:
    """Computes the collapse metrics of the features of different images.

    Args:
        features: (N, D), two images or more.
        other_view: (N, D), another view of the same images; only `alignment` uses it.
    """
    unit = F.normalize(features.float(), dim=1)
    images, dim = unit.shape
    assert images >= 2
    total = unit.sum(dim=0)
    share = unit.var(dim=0, correction=0) * dim
    low, median, high = share.quantile(share.new_tensor([0.1, 0.5, 0.9])).tolist()
    return CollapseMetrics(
        images=images,
        dim=dim,
        std=collapse_std(unit).item(),
        mean_cosine=((total @ total - images) / (images * (images - 1))).item(),
        effective_rank=effective_rank(unit),
        uniformity=uniformity(unit),
        variance_low=low,
        variance_median=median,
        variance_high=high,
        dead=(share < _DEAD).float().mean().item(),
        alignment=None if other_view is None else alignment(features, other_view),
    )


def effective_rank(features: Tensor) -> float:
    """Effective rank of features (N, D), see `CollapseMetrics`."""
    centered = (features - features.mean(dim=0)).double()
    # Both products have the same nonzero eigenvalues; the smaller one is cheaper.
    gram = centered.T @ centered if len(centered) > centered.shape[1] else centered @ centered.T
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    total = singular.sum()
    if total < 1e-9 * math.sqrt(features.numel()):
        return 1.0  # all features are equal
    share = singular / total
    rank: float = torch.special.entr(share).sum().exp().item()
    return rank


def uniformity(unit: Tensor) -> float:
    """Wang and Isola's uniformity over all pairs of different images, features (N, D) of length 1."""
    total = torch.zeros((), dtype=torch.float64, device=unit.device)
    for first in range(0, len(unit), _CHUNK):
        cosine = unit[first : first + _CHUNK] @ unit.T
        # |u - v|^2 = 2 - 2 cos
        total += torch.exp(-2 * (2 - 2 * cosine)).double().sum()
    pairs = len(unit) * (len(unit) - 1)
    return math.log((total.item() - len(unit)) / pairs)


def alignment(one: Tensor, other: Tensor) -> float:
    """Mean of |u - v|^2 between two views of an image, at length 1; 0 if they have equal features.

    Args:
        one, other: (N, D), a row per image; Wang and Isola, arXiv 2005.10242.
    """
    u, v = F.normalize(one.float(), dim=1), F.normalize(other.float(), dim=1)
    return (u - v).square().sum(dim=1).mean().item()
