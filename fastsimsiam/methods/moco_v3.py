"""MoCo v3 for ResNets: Chen, Xie and He, arXiv 2104.02057."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from fastsimsiam.config.methods import MoCoV3Config
from fastsimsiam.methods.base import Method, ParameterGroup, Progress
from fastsimsiam.methods.collapse import LOWER_RATE, collapse_std, collapse_warning
from fastsimsiam.methods.gather import gather, rank
from fastsimsiam.methods.losses import batch_info_nce
from fastsimsiam.methods.target import TargetNetwork, cosine_tau
from fastsimsiam.models.heads import mlp


class MoCoV3(Method):
    """Finds a target network's projection of an image among those of the batch, from another view.

    There is no queue: the negatives of an image are the other images of the whole batch, of all ranks.
    Each view goes through the networks separately: BatchNorm sees one view at a time.
    """

    whole_batch = True
    num_views = 2
    compares_images = True

    def __init__(self, backbone: nn.Module, feature_dim: int, config: MoCoV3Config) -> None:
        """Builds the heads and the target network, which starts as a copy.

        Args:
            backbone: network from images to features (B, feature_dim).
            feature_dim: number of the backbone's features.
            config: temperature, widths of the heads, and the target's momentum.
        """
        super().__init__()
        self.config = config
        self.backbone = backbone
        hidden, dim = config.hidden_dim, config.projection_dim
        self.projector = mlp([feature_dim, hidden, dim], output_norm="plain", output_bias=False)
        self.predictor = mlp([dim, hidden, dim], output_bias=False)
        self.target = TargetNetwork(self.backbone, self.projector)
        self._momentum = config.momentum

    def forward(
        self, views: tuple[Tensor, ...], labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Method.forward`.

        Metrics: collapse_std of the first view's online projection; contrast_accuracy, the share of
        predictions that are nearer to the target's projection of their image than to any other.

        The loss is the sum of both directions, each times 2 * temperature: 4 * temperature * ln(batch
        size) where all similarities are equal.
        """
        z = [self.projector(self.backbone(view)) for view in views]
        keys = [gather(self.target(view)) for view in views]
        queries = [self.predictor(projection) for projection in z]
        temperature, first = self.config.temperature, rank() * len(z[0])
        one, found = batch_info_nce(queries[0], keys[1], temperature=temperature, first=first)
        other, too = batch_info_nce(queries[1], keys[0], temperature=temperature, first=first)
        return (one + other) * (2.0 * temperature), {
            "collapse_std": collapse_std(z[0]),
            "contrast_accuracy": (found + too) / 2.0,
        }

    def parameter_groups(self) -> list[ParameterGroup]:
        """The online network; the target is not trained."""
        online = (self.backbone, self.projector, self.predictor)
        return [ParameterGroup(parameters=[p for module in online for p in module.parameters()])]

    def before_step(self, at: Progress) -> None:
        """Takes the momentum of the next step, at whose start the authors move the target."""
        if self.config.momentum_schedule == "cosine":
            self._momentum = cosine_tau(self.config.momentum, replace(at, step=at.step + 1))

    def after_step(self) -> None:
        """Moves the target towards the online network."""
        self.target.update(self._momentum)

    @classmethod
    def warning(cls, metrics: Mapping[str, float], batch_size: int) -> str | None:
        """A collapsed network has a small spread, and finds images no better than by chance."""
        confirmed = not cls.told_apart(metrics, batch_size)
        return collapse_warning(metrics, batch_size, LOWER_RATE, confirmed=confirmed)
