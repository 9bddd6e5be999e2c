"""BYOL: Grill et al., "Bootstrap Your Own Latent", arXiv 2006.07733."""

import math
from abc import abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from fastsimsiam.config.methods import BYOLConfig, BYOLNoMomentumConfig
from fastsimsiam.methods.base import Method, ParameterGroup, Progress
from fastsimsiam.methods.collapse import collapse_std, collapse_warning
from fastsimsiam.methods.losses import normalized_distance
from fastsimsiam.methods.target import TargetNetwork, cosine_tau
from fastsimsiam.models.heads import mlp

_COLLAPSED_LOSS = 0.4
"""Sum of both directions at a mean cosine of 0.9."""


class _BYOL(Method):
    """What both methods have in common: heads and loss; they differ in the target.

    Each view goes through the network separately: BatchNorm sees one view at a time.
    """

    num_views = 2

    def __init__(
        self, backbone: nn.Module, feature_dim: int, config: BYOLConfig | BYOLNoMomentumConfig
    ) -> None:
        """Builds the heads.

        Args:
            backbone: network from images to features (B, feature_dim).
            feature_dim: number of the backbone's features.
            config: widths of the heads, and what is particular to the method.
        """
        super().__init__()
        self.backbone = backbone
        self.projector = _head(feature_dim, config)
        self.predictor = _head(config.projection_dim, config)

    @abstractmethod
    def targets(self, views: tuple[Tensor, ...], z: list[Tensor]) -> list[Tensor]:
        """What is predicted of each view (B, D), without gradient.

        Args:
            views: see `Method.forward`.
            z: the online network's projections of them.
        """

    def forward(
        self, views: tuple[Tensor, ...], labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Method.forward`; metrics: collapse_std of the first view's online projection.

        The loss is the sum of both directions, in [0, 8]: 0 where all predictions are right or all
        outputs equal, 4 where they are orthogonal.
        """
        z = [self.projector(self.backbone(view)) for view in views]
        first, second = self.targets(views, z)
        loss = normalized_distance(self.predictor(z[0]), second)
        loss = loss + normalized_distance(self.predictor(z[1]), first)
        return loss, {"collapse_std": collapse_std(z[0])}


class BYOL(_BYOL):
    """Predicts a target network's projection of one view from the other view."""

    def __init__(self, backbone: nn.Module, feature_dim: int, config: BYOLConfig) -> None:
        """Builds the heads and the target network, which starts as a copy.

        Args:
            backbone: network from images to features (B, feature_dim).
            feature_dim: number of the backbone's features.
            config: widths of the heads, and the target's momentum.
        """
        super().__init__(backbone, feature_dim, config)
        self.config = config
        self.target = TargetNetwork(self.backbone, self.projector)
        self._tau = config.momentum

    def targets(self, views: tuple[Tensor, ...], z: list[Tensor]) -> list[Tensor]:
        """The target network's projections (B, D) of each view."""
        return [self.target(view) for view in views]

    def parameter_groups(self) -> list[ParameterGroup]:
        """The online network; the target is not trained."""
        online = (self.backbone, self.projector, self.predictor)
        return [ParameterGroup(parameters=[p for module in online for p in module.parameters()])]

    def before_step(self, at: Progress) -> None:
        """Takes the momentum of this step."""
        if self.config.momentum_schedule == "cosine":
            self._tau = cosine_tau(self.config.momentum, at)

    def after_step(self) -> None:
        """Moves the target towards the online network, once per step of the optimizer."""
        self.target.update(self._tau)

    @classmethod
    def warning(cls, metrics: Mapping[str, float], batch_size: int) -> str | None:
        """A collapsed network has a small spread and a loss near 0."""
        return _collapse(
            metrics,
            batch_size,
            "Raise --method.momentum towards 1, or lower --optimizer.lr; with --optimizer.weight-decay "
            "0 training may be unstable.",
        )


class BYOLNoMomentum(_BYOL):
    """Predicts its own projection of one view from the other view: BYOL without a second network.

    The predictor has to be trained faster than the rest, or the network collapses.
    """

    def __init__(self, backbone: nn.Module, feature_dim: int, config: BYOLNoMomentumConfig) -> None:
        """Builds the heads.

        Args:
            backbone: network from images to features (B, feature_dim).
            feature_dim: number of the backbone's features.
            config: widths of the heads, and factors of their learning rates.
        """
        super().__init__(backbone, feature_dim, config)
        self.config = config

    def targets(self, views: tuple[Tensor, ...], z: list[Tensor]) -> list[Tensor]:
        """The online projections themselves, behind a stop-gradient."""
        return [projection.detach() for projection in z]

    def parameter_groups(self) -> list[ParameterGroup]:
        """Backbone, projector and predictor, each head with its factor."""
        factors = (
            (self.backbone, 1.0),
            (self.projector, self.config.projector_lr_factor),
            (self.predictor, self.config.predictor_lr_factor),
        )
        return [
            ParameterGroup(parameters=list(module.parameters()), lr_factor=factor)
            for module, factor in factors
        ]

    @classmethod
    def warning(cls, metrics: Mapping[str, float], batch_size: int) -> str | None:
        """A collapsed network has a small spread and a loss near 0."""
        return _collapse(
            metrics,
            batch_size,
            "Without a momentum encoder the predictor must learn faster than the rest: set "
            "--method.predictor-lr-factor to 10 and --method.projector-lr-factor to 1, as published, "
            "or lower --optimizer.lr.",
        )


def _head(inputs: int, config: BYOLConfig | BYOLNoMomentumConfig) -> nn.Sequential:
    """Projector or predictor: the hidden layer has a bias before its BatchNorm, the output has none."""
    widths = [inputs, config.hidden_dim, config.projection_dim]
    return mlp(widths, hidden_bias=True, output_bias=False)


def _collapse(metrics: Mapping[str, float], batch_size: int, advice: str) -> str | None:
    confirmed = metrics.get("loss", math.inf) < _COLLAPSED_LOSS
    return collapse_warning(metrics, batch_size, advice, confirmed=confirmed)
