"""The target network: a copy of the online network that follows it slowly (BYOL, MoCo).

A method calls it `target`, so that its state is `target.backbone...` and `target.projector...`, which
evaluation does not take for the network that is trained.
"""

import copy
import math

import torch
from torch import Tensor, nn

from fastsimsiam.methods.base import Progress


class TargetNetwork(nn.Module):
    """Backbone and projector whose parameters are a moving average of the online network's.

    Only parameters are averaged. BatchNorm takes the statistics of the batch, as in the online network;
    its running statistics are the target's own, and nothing reads them.

    Attributes:
        backbone, projector: copies without gradient; neither the optimizer nor DistributedDataParallel
            sees them.
    """

    def __init__(self, backbone: nn.Module, projector: nn.Module) -> None:
        """Copies an online network, with its values of now.

        Args:
            backbone: images (B, 3, H, W) to features.
            projector: features to projections.
        """
        super().__init__()
        self.backbone = copy.deepcopy(backbone).requires_grad_(False)
        self.projector = copy.deepcopy(projector).requires_grad_(False)
        # In a tuple they are no submodules: the online network is in the method's state already.
        self._online = (backbone, projector)

    def forward(self, view: Tensor) -> Tensor:
        """Projections (B, D) of a view (B, 3, H, W), without gradient."""
        with torch.no_grad():
            projection: Tensor = self.projector(self.backbone(view))
        return projection

    @torch.no_grad()
    def update(self, tau: float) -> None:
        """Moves every parameter to tau * target + (1 - tau) * online, in place.

        Called after the optimizer's step, outside of the compiled graph, where a number of the host is
        an argument of one kernel: a tau on the device would cost two more passes over the weights, and
        would be rounded to float32 before it is subtracted from 1.

        Args:
            tau: momentum; 0 copies the online network, 1 leaves the target alone.
        """
        targets: list[Tensor] = [*self.backbone.parameters(), *self.projector.parameters()]
        onlines: list[Tensor] = [p for module in self._online for p in module.parameters()]
        assert len(targets) == len(onlines)
        torch._foreach_lerp_(targets, onlines, 1.0 - tau)


def cosine_tau(base: float, at: Progress) -> float:
    """The momentum of a step: from `base` at the first up to 1, by half a cosine.

    1 - (1 - base) * (1 + cos(pi * step / total_steps)) / 2; arXiv 2006.07733, section 3.3.

    Args:
        base: momentum of the first step.
        at: the run before the step.
    """
    return 1.0 - (1.0 - base) * (1.0 + math.cos(math.pi * at.step / at.total_steps)) / 2.0
