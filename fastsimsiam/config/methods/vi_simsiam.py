"""The options of VI-SimSiam."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from fastsimsiam.config.fields import require, require_within
from fastsimsiam.config.methods.base import MethodConfig, require_within_ranges


@dataclass(frozen=True, kw_only=True)
class VISimSiamConfig(MethodConfig):
    """VI-SimSiam (arXiv 2203.11437). Widths of the heads are SimSiam's."""

    name: ClassVar[str] = "vi-simsiam"

    projector_layers: int = 3
    """Linear layers of the projector, with BatchNorm after each."""
    projector_dim: int = 2048
    """Width of the projection, on whose sphere the density is."""
    predictor_dim: int = 512
    """Width of the predictor's hidden layer."""
    kappa_dim: int | None = None
    """Width of the hidden layer of the head for kappa; None: a quarter of the backbone's features."""
    density: Literal["power-spherical", "von-mises-fisher"] = "power-spherical"
    """Density of the other view's projection around the prediction. von-mises-fisher needs a fixed
    kappa, and is SimSiam with a factor then."""
    kappa: float | None = None
    """Fixed concentration of the density; None: learned, for each image."""
    predictor_lr: Literal["constant", "decay"] = "constant"
    """constant: the predictor keeps the peak learning rate. decay: it follows the schedule."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_within_ranges(self)
        require_within("method.projector_dim", self.projector_dim, 2, 2**17)
        if self.kappa_dim is not None:
            require_within("method.kappa_dim", self.kappa_dim, 1, 2**17)
        if self.kappa is None:
            fix = "its kappa cannot be learned: give kappa as well, or power-spherical"
            require(self.density == "power-spherical", "method.density", self.density, fix)
            return
        require_within("method.kappa", self.kappa, 0, 1e7, above=True)
        fix = "kappa is fixed and has no head: leave one of the two out"
        require(self.kappa_dim is None, "method.kappa_dim", self.kappa_dim, fix)
