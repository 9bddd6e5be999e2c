"""Both views in one batch, BatchNorm still per view: the same results with fewer kernel launches."""

import torch
from torch import Tensor, nn

from fastsimsiam.methods.collapse import collapse_std
from fastsimsiam.methods.losses import negative_cosine_similarity
from fastsimsiam.methods.simsiam import SimSiam


class PerViewBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d of a batch of `num_views` views, one after the other; each has its own statistics."""

    num_views = 2

    def forward(self, input: Tensor) -> Tensor:
        """Normalizes each view of (V N, C, H, W)."""
        return torch.cat(
            [super(PerViewBatchNorm2d, self).forward(x) for x in input.chunk(self.num_views)]
        )


class PerViewBatchNorm1d(nn.BatchNorm1d):
    """BatchNorm1d of a batch of `num_views` views, one after the other; each has its own statistics."""

    num_views = 2

    def forward(self, input: Tensor) -> Tensor:
        """Normalizes each view of (V N, C)."""
        return torch.cat(
            [super(PerViewBatchNorm1d, self).forward(x) for x in input.chunk(self.num_views)]
        )


def join_views(module: nn.Module) -> None:
    """Turns the BatchNorm layers of a module into those per view, in place."""
    for layer in module.modules():
        if type(layer) is nn.BatchNorm2d:
            layer.__class__ = PerViewBatchNorm2d
        elif type(layer) is nn.BatchNorm1d:
            layer.__class__ = PerViewBatchNorm1d


class JointSimSiam(SimSiam):
    """SimSiam with both views in one batch."""

    def forward(
        self, views: tuple[Tensor, ...], labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Method.forward`."""
        assert len(views) == 2
        z = self.projector(self.backbone(torch.cat(views)))
        p = self.predictor(z)
        (z1, z2), (p1, p2) = z.detach().chunk(2), p.chunk(2)
        loss = negative_cosine_similarity(p1, z2) + negative_cosine_similarity(p2, z1)
        return loss / 2, {"collapse_std": collapse_std(z1)}
