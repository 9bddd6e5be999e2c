"""The options of every method."""

from dataclasses import dataclass
from typing import Literal

from fastsimsiam.config.fields import Switch, require


@dataclass(frozen=True, kw_only=True)
class SimSiamConfig:
    """SimSiam (arXiv 2011.10566) and the switches of its ablations."""

    stop_gradient: Switch = True
    """Off: gradients flow through both sides, and the network collapses (paper, section 4.1)."""
    predictor: Literal["mlp", "none", "fixed"] = "mlp"
    """none: p = z. fixed: an untrained random MLP (paper, section 4.2)."""
    predictor_lr: Literal["constant", "decay"] = "constant"
    """constant: the predictor keeps the starting lr. decay: it follows the schedule."""
    symmetric: Switch = True
    """Off: only the first view is predicted from the second (paper, section 4.6)."""
    projector_layers: int = 3
    """Linear layers of the projector; 2 on CIFAR-10."""
    projector_output_bn: Switch = True
    """Off: BatchNorm in hidden layers only (paper, section 4.4); outputs can then be all alike."""
    projector_dim: int = 2048
    """Width of the projector's hidden layers and of z."""
    predictor_dim: int = 512
    """Width of the predictor's hidden layer."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        for name in ("projector_layers", "projector_dim", "predictor_dim"):
            require(
                getattr(self, name) >= 1, f"method.{name}", getattr(self, name), "give 1 or more"
            )
