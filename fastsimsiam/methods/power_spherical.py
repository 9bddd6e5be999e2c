"""The Power Spherical distribution: De Cao and Aziz, arXiv 2006.04437. Shapes: B batch.

A density on the unit sphere in d dimensions around a mean direction mu, proportional to
(1 + mu.z)^kappa: the larger kappa is, the closer it lies around mu; 0 is uniform. With
beta = (d - 1) / 2 and alpha = beta + kappa the logarithm of its normalizer is

    log C = -((alpha + beta) log 2 + lgamma(alpha) - lgamma(alpha + beta) + beta log pi)

Densities and entropies are float64: for d 2048 and kappa 1e5 the two lgamma are about 1e6, where
float32 steps by 0.06. `torch.distributions` would check its arguments on the host.
"""

import math

import torch
from torch import Tensor

_LEAST_COSINE = -1.0 + 1e-6
"""Rounding can bring the cosine of unit vectors below -1, where the logarithm is not defined."""


def log_density(cosine: Tensor, kappa: Tensor, dim: int) -> Tensor:
    """Logarithm of the density.

    Args:
        cosine: mu.z of unit vectors (B,).
        kappa: concentrations (B,), 0 or more.
        dim: dimensions of the vectors, d.

    Returns:
        (B,) float64.
    """
    kappa, cosine = kappa.double(), cosine.double().clamp(min=_LEAST_COSINE)
    return _log_normalizer(kappa, dim) + kappa * torch.log1p(cosine)


def entropy(kappa: Tensor, dim: int) -> Tensor:
    """Differential entropy in nats (B,), float64; see `log_density` for the arguments."""
    kappa = kappa.double()
    mean_log = math.log(2) + _digamma_difference(kappa, dim)
    return -(_log_normalizer(kappa, dim) + kappa * mean_log)


def mean_cosine(kappa: Tensor, dim: int) -> Tensor:
    """Expected cosine to the mean direction, kappa / (kappa + d - 1), from 0 to 1."""
    return kappa / (kappa + (dim - 1))


def _log_normalizer(kappa: Tensor, dim: int) -> Tensor:
    beta = (dim - 1) / 2
    alpha = beta + kappa
    return -(
        (alpha + beta) * math.log(2)
        + torch.lgamma(alpha)
        - torch.lgamma(alpha + beta)
        + beta * math.log(math.pi)
    )


def _digamma_difference(kappa: Tensor, dim: int) -> Tensor:
    beta = (dim - 1) / 2
    return torch.digamma(beta + kappa) - torch.digamma(2 * beta + kappa)
