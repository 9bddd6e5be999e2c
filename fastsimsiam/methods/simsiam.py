"""SimSiam: Chen and He, "Exploring Simple Siamese Representation Learning", arXiv 2011.10566."""

from collections.abc import Mapping

from torch import Tensor, nn

from fastsimsiam.config.methods import SimSiamConfig
from fastsimsiam.methods.base import Method, ParameterGroup
from fastsimsiam.methods.collapse import collapse_std, collapse_warning
from fastsimsiam.methods.losses import negative_cosine_similarity
from fastsimsiam.models.heads import mlp

_COLLAPSED_LOSS = -0.9


class SimSiam(Method):
    """Predicts the projection of one view from that of another, with a stop-gradient on the target.

    Each view goes through the encoder separately: BatchNorm sees one view at a time.
    """

    def __init__(self, backbone: nn.Module, feature_dim: int, config: SimSiamConfig) -> None:
        """Builds the heads.

        Args:
            backbone: network from images to features (B, feature_dim).
            feature_dim: number of the backbone's features.
            config: widths of the heads and switches of the paper's ablations.
        """
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.projector = mlp(
            [feature_dim, *[config.projector_dim] * config.projector_layers],
            output_norm="plain" if config.projector_output_bn else "none",
            output_bias=not config.projector_output_bn,
        )
        self.predictor: nn.Module = nn.Identity()
        if config.predictor != "none":
            self.predictor = mlp([config.projector_dim, config.predictor_dim, config.projector_dim])
        if config.predictor == "fixed":
            self.predictor.requires_grad_(False)

    def forward(
        self, views: tuple[Tensor, ...], labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Method.forward`; metrics: collapse_std of the first view's z."""
        z = [self.projector(self.backbone(view)) for view in views]
        p = [self.predictor(projection) for projection in z]
        target = [projection.detach() for projection in z] if self.config.stop_gradient else z
        pairs = [(a, b) for a in range(len(views)) for b in range(len(views)) if a != b]
        if not self.config.symmetric:
            pairs = [(0, b) for b in range(1, len(views))]
        losses = [negative_cosine_similarity(p[a], target[b]) for a, b in pairs]
        loss = sum(losses[1:], start=losses[0]) / len(losses)
        return loss, {"collapse_std": collapse_std(z[0])}

    def parameter_groups(self) -> list[ParameterGroup]:
        """The encoder follows the schedule; the predictor by default keeps the peak lr."""
        trained = [p for p in self.predictor.parameters() if p.requires_grad]
        encoder = [*self.backbone.parameters(), *self.projector.parameters()]
        groups = [ParameterGroup(parameters=encoder)]
        if trained:
            constant = self.config.predictor_lr == "constant"
            groups.append(ParameterGroup(parameters=trained, constant_lr=constant))
        return groups

    @classmethod
    def warning(cls, metrics: Mapping[str, float], batch_size: int) -> str | None:
        """A collapsed network has a small spread and a loss near its minimum, -1."""
        return collapse_warning(
            metrics,
            batch_size,
            "Pass --method.stop-gradient on, --method.predictor mlp and --method.predictor-lr "
            "constant, or lower --optimizer.lr or --optimizer.weight-decay.",
            confirmed=metrics.get("loss", 0.0) < _COLLAPSED_LOSS,
        )
