"""Both views through the network at once, BatchNorm still one at a time: exact, fewer launches."""

import torch
from torch import Tensor, nn

from fastsimsiam.methods.collapse import collapse_std
from fastsimsiam.methods.losses import negative_cosine_similarity
from fastsimsiam.methods.simsiam import SimSiam


class PerViewBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm of a batch that holds `parts` views, one after the other."""

    parts = 2

    def forward(self, input: Tensor) -> Tensor:
        """(V N, C, H, W) to the same, each N normalized by itself."""
        return torch.cat(
            [super(PerViewBatchNorm2d, self).forward(x) for x in input.chunk(self.parts)]
        )


class PerViewBatchNorm1d(nn.BatchNorm1d):
    """Likewise for (V N, C)."""

    parts = 2

    def forward(self, input: Tensor) -> Tensor:
        """(V N, C) to the same, each N normalized by itself."""
        return torch.cat(
            [super(PerViewBatchNorm1d, self).forward(x) for x in input.chunk(self.parts)]
        )


def join_views(module: nn.Module) -> None:
    """Lets the BatchNorm layers of a module see one of two views at a time, in place."""
    for layer in module.modules():
        if type(layer) is nn.BatchNorm2d:
            layer.__class__ = PerViewBatchNorm2d
        elif type(layer) is nn.BatchNorm1d:
            layer.__class__ = PerViewBatchNorm1d


class JointSimSiam(SimSiam):
    """SimSiam's symmetric loss on two views that go through the network together."""

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
