"""VI-SimSiam: Nakamura, Okada and Taniguchi, arXiv 2203.11437.

SimSiam read as variational inference on a sphere: the prediction of a view is the mean direction of a
distribution, and a head of its own says how concentrated it is. The loss is minus the logarithm of its
density at the other view's projection. An image whose views are hard to predict gets a small
concentration kappa: it is uncertain.

No official code was found, and the paper's settings could not be checked; what is open is decided as
follows. The loss is the alignment of the views alone. Kappa is (d - 1) exp(x), where x is the logit of
the mean cosine that the distribution expects; a head predicts x, from one half on. With softplus in
place of exp, SGD would not reach the 18,423 that a mean cosine of 0.9 takes (d 2048). The loss is the
mean density over d; its gradient is that over the mean kappa instead. By the cosine it is then
1 / (1 + cosine) for an image of mean kappa, where SimSiam's is 1. Over d it would grow with kappa, and
vanish with it: at the start, when no view is predicted, kappa falls faster than the network learns.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastsimsiam.config.methods import VISimSiamConfig
from fastsimsiam.methods.base import Method, ParameterGroup
from fastsimsiam.methods.collapse import collapse_std, collapse_warning
from fastsimsiam.methods.gather import gather
from fastsimsiam.methods.power_spherical import log_density, mean_cosine
from fastsimsiam.models.heads import mlp

_LARGEST_LOGIT = 10.0
"""Of the mean cosine: from 0.00005 to 0.99995. A soft limit, so that a head can come back from it."""
_COLLAPSED_COSINE = 0.9


class KappaHead(nn.Module):
    """Features (B, D) to concentrations (B,), float32."""

    def __init__(self, feature_dim: int, hidden_dim: int, dim: int) -> None:
        """Builds the head; it starts at a mean cosine of one half for all images.

        Args:
            feature_dim: number of features, D.
            hidden_dim: width of the hidden layer.
            dim: dimensions of the vectors whose density it is, d.
        """
        super().__init__()
        self._dim = dim
        self.layers = mlp([feature_dim, hidden_dim, 1])
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        logit = self.layers(features).float().squeeze(1)
        logit = _LARGEST_LOGIT * torch.tanh(logit / _LARGEST_LOGIT)
        kappa: Tensor = (self._dim - 1) * logit.exp()
        return kappa


class VISimSiam(Method):
    """Predicts a distribution of the other view's projection.

    Each view goes through the network separately: BatchNorm sees one view at a time.

    Attributes:
        kappa_head: features to concentrations, large where the method is certain; None if they are
            fixed.
    """

    kappa_head: KappaHead | None

    def __init__(self, backbone: nn.Module, feature_dim: int, config: VISimSiamConfig) -> None:
        """Builds the heads.

        Args:
            backbone: network from images to features (B, feature_dim).
            feature_dim: number of the backbone's features.
            config: options.
        """
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.projector = mlp(
            [feature_dim, *[config.projector_dim] * config.projector_layers],
            output_norm="plain",
            output_bias=False,
        )
        self.predictor = mlp([config.projector_dim, config.predictor_dim, config.projector_dim])
        self.kappa_head = None
        if config.kappa is None:
            hidden = config.kappa_dim or max(1, feature_dim // 4)
            self.kappa_head = KappaHead(feature_dim, hidden, config.projector_dim)

    def forward(
        self, views: tuple[Tensor, ...], labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Method.forward`.

        Metrics: collapse_std of the first view's z; cosine, of prediction and projection, mean over all
        pairs; expected_cosine, the mean cosine of the predicted distributions.
        """
        features = [self.backbone(view) for view in views]
        z = [self.projector(feature) for feature in features]
        p = [self.predictor(projection) for projection in z]
        kappa = [self._kappa(feature) for feature in features]
        pairs = [(a, b) for a in range(len(views)) for b in range(len(views)) if a != b]
        with torch.autocast(views[0].device.type, enabled=False):
            cosines = torch.stack([_cosine(p[a], z[b].detach()) for a, b in pairs])
            kappas = torch.stack([kappa[a] for a, _ in pairs])
            value = -self._log_density(cosines, kappas).mean() / self.config.projector_dim
            weight = self.config.projector_dim / gather(kappas.detach().mean()[None]).mean()
            loss = value.detach() + weight * (value - value.detach())
        return loss.float(), {
            "collapse_std": collapse_std(z[0]),
            "cosine": cosines.detach().mean(),
            "expected_cosine": mean_cosine(kappas.detach(), self.config.projector_dim).mean(),
        }

    def _kappa(self, features: Tensor) -> Tensor:
        if self.kappa_head is None:
            assert self.config.kappa is not None
            return features.new_full((len(features),), self.config.kappa, dtype=torch.float32)
        kappa: Tensor = self.kappa_head(features)
        return kappa

    def _log_density(self, cosine: Tensor, kappa: Tensor) -> Tensor:
        """Of the projections, up to a constant for a fixed kappa."""
        if self.config.density == "von-mises-fisher":
            return kappa * cosine
        return log_density(cosine, kappa, self.config.projector_dim)

    def certainty(self, features: Tensor) -> Tensor | None:
        """See `Method.certainty`: the learned concentrations; None where it is fixed."""
        return None if self.kappa_head is None else self._kappa(features)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Encoder and kappa follow the schedule; the predictor by default keeps the peak lr."""
        scheduled = [*self.backbone.parameters(), *self.projector.parameters()]
        if self.kappa_head is not None:
            scheduled += self.kappa_head.parameters()
        return [
            ParameterGroup(parameters=scheduled),
            ParameterGroup(
                parameters=list(self.predictor.parameters()),
                constant_lr=self.config.predictor_lr == "constant",
            ),
        ]

    @classmethod
    def warning(cls, metrics: Mapping[str, float], batch_size: int) -> str | None:
        """A collapsed network has a small spread, and predicts it without error."""
        return collapse_warning(
            metrics,
            batch_size,
            "Pass --method.predictor-lr constant, or lower --optimizer.lr or "
            "--optimizer.weight-decay.",
            confirmed=metrics.get("cosine", 0.0) > _COLLAPSED_COSINE,
        )


def _cosine(p: Tensor, z: Tensor) -> Tensor:
    """Of each pair (B,), float32."""
    return (F.normalize(p.float(), dim=1) * F.normalize(z.float(), dim=1)).sum(dim=1)
