"""The options of MoCo."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from fastsimsiam.config.fields import require_within
from fastsimsiam.config.methods.base import MethodConfig, require_within_ranges


@dataclass(frozen=True, kw_only=True)
class MoCoConfig(MethodConfig):
    """MoCo v1 (arXiv 1911.05722) and v2 (arXiv 2003.04297). Defaults are those of v2 on ImageNet."""

    name: ClassVar[str] = "moco"

    projector_layers: int = 2
    """Linear layers of the projector, with ReLU and without BatchNorm: 1 is MoCo v1, 2 MoCo v2."""
    hidden_dim: int | None = None
    """Width of the projector's hidden layers; None: as many as the backbone has features."""
    projection_dim: int = 128
    """Width of queries and keys."""
    temperature: float = 0.2
    """Divides the cosine similarities; 0.07 in MoCo v1."""
    momentum: float = 0.999
    """Momentum of the target network, which makes the keys."""
    queue_size: int = 65536
    """Keys in the queue, the negatives of each query."""
    symmetric: Literal["off", "sum", "mean"] = "off"
    """off: the first view is the query, the second the key. sum, mean: each view is both, and the two
    losses are added, or averaged; twice the work of off."""
    bn_group_size: int = 32
    """Images whose BatchNorm statistics are taken together; keys are shuffled among such groups.
    Published: 32, on each of 8 GPUs. 0: all images of a device, so that query and key share them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_within_ranges(self)
        if self.bn_group_size != 0:
            require_within("method.bn_group_size", self.bn_group_size, 2, 2**20)
