"""The options of SimCLR."""

from dataclasses import dataclass
from typing import ClassVar

from fastsimsiam.config.methods.base import MethodConfig, require_within_ranges


@dataclass(frozen=True, kw_only=True)
class SimCLRConfig(MethodConfig):
    """SimCLR (arXiv 2002.05709); with a projector of 3 layers the pretraining of SimCLRv2."""

    name: ClassVar[str] = "simclr"

    temperature: float = 0.1
    """Divides the similarities; 0.5 on CIFAR-10."""
    loss_scale: float = 1.0
    """Factor of the loss, a mean over all views; 2 in the official code, which adds the means over the
    first and over the second views. LARS weighs it against the weight decay; the lr of SGD is bound to
    it."""
    projector_layers: int = 2
    """Linear layers of the projector; 3 in SimCLRv2."""
    hidden_dim: int | None = None
    """Width of the projector's hidden layers; None: as many as the backbone has features."""
    projection_dim: int = 128
    """Width of the projection, of which similarities are taken."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_within_ranges(self)
