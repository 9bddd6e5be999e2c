"""The options of SwAV."""

from dataclasses import dataclass
from typing import ClassVar

from fastsimsiam.config.fields import MOST_EPOCHS, require_used, require_within
from fastsimsiam.config.methods.base import MethodConfig, require_within_ranges


@dataclass(frozen=True, kw_only=True)
class SwAVConfig(MethodConfig):
    """SwAV (arXiv 2006.09882). Defaults are those of its code, without a queue."""

    name: ClassVar[str] = "swav"

    projector_layers: int = 2
    """Linear layers of the projector; 3 in SwAV+ of arXiv 2011.10566."""
    hidden_dim: int | None = None
    """Width of the projector's hidden layers; None: as many as the backbone has features."""
    projection_dim: int = 128
    """Width of the projection, which is compared with the prototypes."""
    prototypes: int = 3000
    """Number of prototypes, the clusters."""
    temperature: float = 0.1
    """Divides the similarities to the prototypes, of which the prediction is made."""
    epsilon: float = 0.05
    """Divides the similarities of which the codes are made: the smaller, the harder they are."""
    sinkhorn_iterations: int = 3
    """Rounds in which codes are balanced over the prototypes."""
    queue_size: int | None = None
    """Projections of earlier batches, for each of the first two views, that codes are balanced with;
    published: 3840 for batches of 256. None: no queue."""
    queue_start_epoch: int = 15
    """Epoch from which the queue is filled; it is used as soon as it is full."""
    freeze_prototypes_epochs: float = 1.0
    """Epochs at the start in which the prototypes are not trained."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_within_ranges(self)
        require_within("method.prototypes", self.prototypes, 2, 2**24)
        # Of unit vectors, exp(similarity / epsilon) spans exp(2 / epsilon), which float32 must hold.
        require_within("method.epsilon", self.epsilon, 0.025, 1e3)
        require_within("method.sinkhorn_iterations", self.sinkhorn_iterations, 1, 1000)
        require_within("method.queue_start_epoch", self.queue_start_epoch, 0, MOST_EPOCHS)
        require_within(
            "method.freeze_prototypes_epochs", self.freeze_prototypes_epochs, 0, MOST_EPOCHS
        )
        start, default = self.queue_start_epoch, SwAVConfig.queue_start_epoch
        fix = "there is no queue: give queue_size"
        require_used("method.queue_start_epoch", start, default, self.queue_size is not None, fix)
