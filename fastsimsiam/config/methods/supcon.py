"""The options of supervised contrastive learning."""

from dataclasses import dataclass
from typing import ClassVar

from fastsimsiam.config.methods.base import MethodConfig, require_within_ranges


@dataclass(frozen=True, kw_only=True)
class SupConConfig(MethodConfig):
    """Supervised contrastive learning (arXiv 2004.11362) with the loss L_out."""

    name: ClassVar[str] = "supcon"

    temperature: float = 0.1
    """Divides the similarities."""
    loss_scale: float = 1.0
    """Factor of the loss, to which the lr of SGD is bound: the paper's TensorFlow code multiplies by
    the temperature, its PyTorch code by temperature / 0.07."""
    projector_layers: int = 2
    """Linear layers of the projector; 1 in the paper's code for ImageNet."""
    hidden_dim: int | None = None
    """Width of the projector's hidden layers; None: as many as the backbone has features."""
    projection_dim: int = 128
    """Width of the projection, of which similarities are taken."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_within_ranges(self)
