"""The options of SimSiam."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from fastsimsiam.config.fields import Switch
from fastsimsiam.config.methods.base import MethodConfig, require_within_ranges


@dataclass(frozen=True, kw_only=True)
class SimSiamConfig(MethodConfig):
    """SimSiam (arXiv 2011.10566) and the switches of its ablations."""

    name: ClassVar[str] = "simsiam"

    stop_gradient: Switch = True
    """Off: gradients flow through both sides, and the network collapses (paper, section 4.1)."""
    predictor: Literal["mlp", "none", "fixed"] = "mlp"
    """none: p = z. fixed: an untrained random MLP (paper, section 4.2)."""
    predictor_lr: Literal["constant", "decay"] = "constant"
    """constant: the predictor keeps the peak learning rate. decay: it follows the schedule."""
    symmetric: Switch = True
    """Off: only the first view is predicted from the second (paper, section 4.6)."""
    projector_layers: int = 3
    """Linear layers of the projector; 2 on CIFAR-10."""
    projector_output_bn: Switch = True
    """Off: BatchNorm in hidden layers only (paper, section 4.4); outputs can then be all alike."""
    projector_dim: int = 2048
    """Width of the projector's hidden layers and of the projection z."""
    predictor_dim: int = 512
    """Width of the predictor's hidden layer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_within_ranges(self)
