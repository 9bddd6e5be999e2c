"""Prototypes of clusters, and codes that spread images over them. Shapes: N images, K prototypes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Prototypes(nn.Module):
    """K unit vectors (K, D), trained by gradients and brought back to length 1 after each step.

    Attributes:
        weight: (K, D), a parameter.
    """

    def __init__(self, count: int, dim: int) -> None:
        """Draws them as torch draws the weights of a linear layer.

        Args:
            count: number of prototypes, K.
            dim: dimensions of each, D.
        """
        super().__init__()
        self.weight = nn.Parameter(nn.Linear(dim, count, bias=False).weight.detach())
        self.renormalize()

    def forward(self, z: Tensor) -> Tensor:
        """Cosine similarities (N, K) of unit vectors (N, D), in float32 outside of autocast."""
        return F.linear(z, self.weight)

    @torch.no_grad()
    def renormalize(self) -> None:
        """Gives every prototype length 1, in place."""
        self.weight.copy_(F.normalize(self.weight, dim=1))


@torch.no_grad()
def sinkhorn(
    similarity: Tensor, *, epsilon: float, iterations: int, used: Tensor | None = None
) -> Tensor:
    """Codes: soft assignments of images to prototypes, in which all prototypes have an equal share.

    exp(similarity / epsilon) with rows and columns scaled in turn, `iterations` times, to sums of 1/K
    for each prototype and 1/N for each image; arXiv 2006.09882, section 3.1. The two vectors of scales
    are iterated, not the matrix: the same numbers, for two products of matrix and vector a round.

    Args:
        similarity: (N, K) cosine similarities, float32.
        epsilon: the smaller, the harder the codes are.
        iterations: number of rounds; the images' scaling is the last of each.
        used: (N,) 1 for images that count, 0 for those that are left out; None: all count.

    Returns:
        (N, K) whose rows sum to 1, float32; 0 for images that do not count.
    """
    with torch.autocast(similarity.device.type, enabled=False):
        # Any factor of the whole matrix cancels out: this one keeps exp from overflowing.
        weight = ((similarity.float() - 1.0) / epsilon).exp()
        images = torch.ones_like(weight[:, 0]) if used is None else used
        share = images / images.sum()
        scale = images
        for _ in range(iterations):
            prototypes = 1.0 / (weight.shape[1] * (scale @ weight))
            scale = share / (weight @ prototypes)
        return scale[:, None] * weight * (prototypes * images.sum())
