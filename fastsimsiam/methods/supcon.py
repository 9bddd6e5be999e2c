"""Supervised contrastive learning: Khosla et al., arXiv 2004.11362."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fastsimsiam.config.methods import SupConConfig
from fastsimsiam.methods.base import Method, ParameterGroup
from fastsimsiam.methods.collapse import LOWER_RATE, above_chance, collapse_std, collapse_warning
from fastsimsiam.methods.losses import sup_con
from fastsimsiam.models.heads import mlp

_SMALL_STD = 0.01
"""Spread below which outputs are as good as equal. Without a BatchNorm at the end it is 0.3 to 0.5 with
fresh weights, and a healthy run may pass through 0.06."""


class SupCon(Method):
    """Tells the views of a class from all other views of the batch.

    Both views go through the network as one batch: BatchNorm sees 2B images. The head has biases and no
    BatchNorm.
    """

    num_views = 2
    compares_images = True
    joint_views = True
    whole_batch = True
    needs_labels = True

    def __init__(self, backbone: nn.Module, feature_dim: int, config: SupConConfig) -> None:
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
            hidden_norm=False,
            hidden_bias=True,
        )

    def forward(
        self, views: tuple[Tensor, ...], labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Method.forward`.

        Metrics: collapse_std of both views' projections; contrast_accuracy, the share of views whose
        most similar one is of their class; chance_accuracy, what guessing would give: the share of
        pairs of this device's images that are of one class.
        """
        z = self.projector(self.backbone(torch.cat(views)))
        first, second = z.chunk(2)
        loss, accuracy = sup_con(first, second, labels, self.config.temperature)
        same_class = labels[:, None] == labels
        return loss * self.config.loss_scale, {
            "collapse_std": collapse_std(z),
            "contrast_accuracy": accuracy,
            "chance_accuracy": same_class.float().mean(),
        }

    def parameter_groups(self) -> list[ParameterGroup]:
        """One group; the optimizer's options exempt biases and BatchNorm."""
        return [ParameterGroup(parameters=list(self.parameters()))]

    @classmethod
    def warning(cls, metrics: Mapping[str, float], batch_size: int) -> str | None:
        """A collapsed network has next to no spread, far less than a healthy one at its start."""
        equal = metrics.get("collapse_std", math.inf) < _SMALL_STD
        return collapse_warning(
            metrics,
            2 * batch_size,
            f"{LOWER_RATE} The lr of SGD acts times --method.loss-scale.",
            confirmed=equal and not cls.told_apart(metrics, batch_size),
        )

    @classmethod
    def told_apart(cls, metrics: Mapping[str, float], batch_size: int) -> bool:
        """See `Method.told_apart`; chance depends on the classes of the images."""
        return above_chance(metrics, metrics.get("chance_accuracy", 0.5))
