"""SimCLR: Chen et al., arXiv 2002.05709, and the pretraining of SimCLRv2, arXiv 2006.10029."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fastsimsiam.config.methods import SimCLRConfig
from fastsimsiam.methods.base import Method, ParameterGroup
from fastsimsiam.methods.collapse import LOWER_RATE, above_chance, collapse_std, collapse_warning
from fastsimsiam.methods.losses import nt_xent
from fastsimsiam.models.heads import mlp

_INITIAL_STD = 0.01
"""Standard deviation of the head's initial weights."""


class SimCLR(Method):
    """Tells the two views of an image from all other views of the batch.

    Both views go through the network as one batch: BatchNorm sees 2B images. Every linear layer of the
    head is followed by a BatchNorm; that of the last one has no offset, and no ReLU follows it.
    """

    num_views = 2
    compares_images = True
    joint_views = True
    whole_batch = True

    def __init__(self, backbone: nn.Module, feature_dim: int, config: SimCLRConfig) -> None:
        """Builds the head.

        Args:
            backbone: network from images to features (B, feature_dim).
            feature_dim: number of the backbone's features.
            config: temperature, factor of the loss, and widths of the head.
        """
        super().__init__()
        self.config = config
        self.backbone = backbone
        hidden = config.hidden_dim or feature_dim
        self.projector = mlp(
            [feature_dim, *[hidden] * (config.projector_layers - 1), config.projection_dim],
            output_norm="scale",
            output_bias=False,
        )
        for layer in self.projector:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=_INITIAL_STD)

    def forward(
        self, views: tuple[Tensor, ...], labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Method.forward`.

        Metrics: collapse_std of both views' projections; contrast_accuracy, the share of views whose
        most similar one is the other view of their image.
        """
        z = self.projector(self.backbone(torch.cat(views)))
        first, second = z.chunk(2)
        loss, accuracy = nt_xent(first, second, self.config.temperature)
        metrics = {"collapse_std": collapse_std(z), "contrast_accuracy": accuracy}
        return loss * self.config.loss_scale, metrics

    def parameter_groups(self) -> list[ParameterGroup]:
        """One group; the optimizer's options exempt biases and BatchNorm."""
        return [ParameterGroup(parameters=list(self.parameters()))]

    @classmethod
    def warning(cls, metrics: Mapping[str, float], batch_size: int) -> str | None:
        """A collapsed network has a small spread, and finds the other view no better than by chance."""
        confirmed = not cls.told_apart(metrics, batch_size)
        return collapse_warning(metrics, 2 * batch_size, LOWER_RATE, confirmed=confirmed)

    @classmethod
    def told_apart(cls, metrics: Mapping[str, float], batch_size: int) -> bool:
        """See `Method.told_apart`; a view is one of 2B, and is not compared with itself."""
        return above_chance(metrics, 1.0 / (2 * batch_size - 1))
