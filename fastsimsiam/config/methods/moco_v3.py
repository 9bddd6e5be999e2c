"""The options of MoCo v3."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from fastsimsiam.config.methods.base import MethodConfig, require_within_ranges


@dataclass(frozen=True, kw_only=True)
class MoCoV3Config(MethodConfig):
    """MoCo v3 for ResNets (arXiv 2104.02057)."""

    name: ClassVar[str] = "moco-v3"

    temperature: float = 1.0
    """Divides the cosine similarities; published: 1 for ResNet-50."""
    momentum: float = 0.99
    """Momentum of the target network at the first step; published: 0.99 for 100 epochs."""
    momentum_schedule: Literal["cosine", "constant"] = "cosine"
    """cosine: the momentum rises to 1 by half a cosine. constant: it stays."""
    hidden_dim: int = 4096
    """Width of the hidden layers of projector and predictor."""
    projection_dim: int = 256
    """Width of projections and predictions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_within_ranges(self)
