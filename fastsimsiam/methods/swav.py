"""SwAV: Caron et al., arXiv 2006.09882."""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastsimsiam.config.methods import SwAVConfig
from fastsimsiam.config.run import Config
from fastsimsiam.config.views import view_sizes
from fastsimsiam.errors import UserError
from fastsimsiam.methods.base import Method, ParameterGroup, Progress
from fastsimsiam.methods.collapse import collapse_std, collapse_warning
from fastsimsiam.methods.gather import gather, rank, world_size
from fastsimsiam.methods.losses import swapped_prediction
from fastsimsiam.methods.prototypes import Prototypes, sinkhorn
from fastsimsiam.methods.queue import KeyQueue
from fastsimsiam.models.heads import mlp

_CODED_VIEWS = 2
"""The first views, of which codes are made; all others only predict them."""
_LEAST_SPREAD = 0.1
"""`prototype_spread` below which all prototypes are as near as one another."""


class SwAV(Method):
    """Predicts the code of one view, an assignment to prototypes, from the other views.

    Views of one size go through the backbone as one batch, and all views through the projector:
    BatchNorm sees them together. Codes are made without gradient.

    Attributes:
        queue: projections of earlier images, those of all coded views in a row; may be None.
        filled: number of images that have entered the queue, in checkpoints.
        queue_used: 1 where the queue is full, else 0; set before each step, so not in checkpoints.
    """

    whole_batch = True

    queue: KeyQueue | None
    filled: Tensor
    queue_used: Tensor

    def __init__(self, backbone: nn.Module, feature_dim: int, config: SwAVConfig) -> None:
        """Builds the head, the prototypes, and the queue.

        Args:
            backbone: network from images to features (B, feature_dim).
            feature_dim: number of the backbone's features.
            config: options.
        """
        super().__init__()
        self.config = config
        self.backbone = backbone
        hidden = [config.hidden_dim or feature_dim] * (config.projector_layers - 1)
        self.projector = mlp([feature_dim, *hidden, config.projection_dim], hidden_bias=True)
        self.prototypes = Prototypes(config.prototypes, config.projection_dim)
        self.queue = None
        if config.queue_size is not None:
            self.queue = KeyQueue(config.queue_size, _CODED_VIEWS * config.projection_dim)
            self.register_buffer("filled", torch.zeros((), dtype=torch.int64))
            self.register_buffer("queue_used", torch.zeros(()), persistent=False)
        self._fills = False

    def forward(
        self, views: tuple[Tensor, ...], labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Method.forward`.

        Metrics: collapse_std of the first view's projections; prototype_spread, the standard deviation
        of an image's similarities to the prototypes, mean over the images, times sqrt(D): about 1 with
        fresh weights, more in training, 0 where predictions say nothing.
        """
        projections = self._project(views)
        with torch.autocast(projections.device.type, enabled=False):
            z = F.normalize(projections.float(), dim=2)
            codes = torch.stack([self._codes(z, view) for view in range(_CODED_VIEWS)])
            similarity = self.prototypes(z)
            loss = swapped_prediction(similarity, codes, self.config.temperature)
        self.fresh_keys = z[:_CODED_VIEWS].detach()  # for `after_part`
        spread = similarity.detach().std(dim=2, correction=0).mean() * math.sqrt(z.shape[2])
        return loss, {"collapse_std": collapse_std(z[0]), "prototype_spread": spread}

    def _project(self, views: tuple[Tensor, ...]) -> Tensor:
        """Projections (V, B, D) of all views."""
        sides = [view.shape[-1] for view in views]
        features: dict[int, Tensor] = {}
        for side in dict.fromkeys(sides):
            numbers = [number for number, own in enumerate(sides) if own == side]
            parts = self.backbone(torch.cat([views[number] for number in numbers]))
            features.update(zip(numbers, parts.chunk(len(numbers)), strict=True))
        z: Tensor = self.projector(torch.cat([features[number] for number in range(len(views))]))
        return z.view(len(views), -1, z.shape[1])

    @torch.no_grad()
    def _codes(self, z: Tensor, view: int) -> Tensor:
        """Codes (B, K) of one view's projections, balanced over those of all ranks and of the queue."""
        own, everyone = len(z[view]), gather(z[view])
        first, used = rank() * own, None
        if self.queue is not None:
            dim = self.config.projection_dim
            keys = self.queue.keys[:, view * dim : (view + 1) * dim]
            used = torch.cat([self.queue_used.expand(len(keys)), everyone.new_ones(len(everyone))])
            everyone, first = torch.cat([keys, everyone]), first + len(keys)
        codes = sinkhorn(
            self.prototypes(everyone),
            epsilon=self.config.epsilon,
            iterations=self.config.sinkhorn_iterations,
            used=used,
        )
        return codes[first : first + own]

    def parameter_groups(self) -> list[ParameterGroup]:
        """All follow the schedule; the prototypes are trained later."""
        encoder = [*self.backbone.parameters(), *self.projector.parameters()]
        return [
            ParameterGroup(parameters=encoder),
            ParameterGroup(
                parameters=list(self.prototypes.parameters()),
                frozen_epochs=self.config.freeze_prototypes_epochs,
            ),
        ]

    def before_step(self, at: Progress) -> None:
        """Decides whether the queue is filled, and used."""
        if self.config.queue_size is not None:
            self._fills = at.step >= self.config.queue_start_epoch * at.steps_per_epoch
            self.queue_used.copy_(self.filled >= self.config.queue_size)

    def after_part(self) -> None:
        """Puts the new projections into the queue, which the codes were balanced without."""
        if self.queue is not None and self._fills:
            self.queue.enqueue(torch.cat(self.fresh_keys.unbind(), dim=1))
            self.filled.add_(self.fresh_keys.shape[1] * world_size())

    def after_step(self) -> None:
        """Brings the prototypes back to length 1."""
        self.prototypes.renormalize()

    @classmethod
    def check_batch(cls, config: Config, images: int) -> None:
        """Refuses small crops among the views that codes are made of, and a queue after the run.

        Raises:
            UserError: names the option.
        """
        method, epochs = config.method, config.epochs
        assert isinstance(method, SwAVConfig)
        if method.queue_size is not None and method.queue_start_epoch >= epochs:
            raise UserError(
                f"--method.queue-start-epoch {method.queue_start_epoch} is not within --epochs "
                f"{epochs}: give --method.queue-start-epoch {epochs // 10}"
            )
        if method.freeze_prototypes_epochs >= epochs:
            raise UserError(
                f"--method.freeze-prototypes-epochs {method.freeze_prototypes_epochs:g} is not within "
                f"--epochs {epochs}: give --method.freeze-prototypes-epochs 0"
            )
        sizes = view_sizes(config.views, config.image_size)
        if min(sizes[:_CODED_VIEWS]) < max(sizes):
            raise UserError(
                f"views are of {', '.join(map(str, sizes))} pixels, but swav makes its codes of the "
                f"first {_CODED_VIEWS}, which must be the largest: give --image-size {max(sizes)}, or "
                "a smaller --views.N.size to the others"
            )

    @classmethod
    def warning(cls, metrics: Mapping[str, float], batch_size: int) -> str | None:
        """Collapsed networks have outputs that are equal, or predict all prototypes alike: ln K."""
        spread = metrics.get("prototype_spread", 1.0)
        if spread >= _LEAST_SPREAD:
            return collapse_warning(metrics, batch_size, confirmed=False)
        return (
            f"all prototypes are predicted alike (similarities spread by {spread:.3f}, healthy is 1 or "
            f"more; loss {metrics['loss']:.3f}): the network has collapsed. Lower --optimizer.lr, or "
            "give --method.epsilon 0.03."
        )
