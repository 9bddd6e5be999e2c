"""The options of BYOL, with and without a momentum encoder."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from fastsimsiam.config.methods.base import MethodConfig, require_within_ranges


@dataclass(frozen=True, kw_only=True)
class BYOLConfig(MethodConfig):
    """BYOL (arXiv 2006.07733)."""

    name: ClassVar[str] = "byol"

    momentum: float = 0.996
    """Momentum of the target network at the first step; published: 0.996 for 1000 epochs, 0.99 for 100
    to 300, 0.97 for 40."""
    momentum_schedule: Literal["cosine", "constant"] = "cosine"
    """cosine: the momentum rises to 1 by half a cosine. constant: it stays at `momentum`."""
    hidden_dim: int = 4096
    """Width of the hidden layers of projector and predictor."""
    projection_dim: int = 256
    """Width of projections and predictions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_within_ranges(self)


@dataclass(frozen=True, kw_only=True)
class BYOLNoMomentumConfig(MethodConfig):
    """BYOL with tau = 0: the target is the online network (arXiv 2006.07733, appendix I)."""

    name: ClassVar[str] = "byol-no-momentum"

    predictor_lr_factor: float = 10.0
    """Multiplies the predictor's learning rate. Linear top-1 at 300 epochs (paper): 66.6 % at 10,
    62.8 % at 2; 5.5 % at 1, where the network collapses."""
    projector_lr_factor: float = 1.0
    """Multiplies the projector's learning rate; 10 for both is 8.3 % (paper)."""
    hidden_dim: int = 4096
    """Width of the hidden layers of projector and predictor."""
    projection_dim: int = 256
    """Width of projections and predictions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_within_ranges(self)
