"""The options of supervised training: fine-tuning and distillation."""

from dataclasses import dataclass

from fastsimsiam.config.fields import MOST_EPOCHS, require, require_within
from fastsimsiam.config.optimizer import OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """How a network is trained on labeled images.

    Defaults are SimCLRv2's (arXiv 2006.10029, section 3) for a quarter of its batch.
    """

    labels: str = "10%"
    """Share of the training images of each class, drawn by a hash; or a file with their paths or names,
    a line each."""
    head_layers: int | None = None
    """Layers of the projector that are kept below the classifier. None: the first one; without
    a projector, or with labels 100%, none."""
    epochs: int = 30
    """Passes over the labeled images; published: 60 for 1% of them, 30 for more."""
    batch_size: int = 256
    """Images per step; published: 1024."""
    optimizer: OptimizerConfig = OptimizerConfig(
        name="lars",
        lr=0.08,
        lr_scaling="sqrt",
        weight_decay=0.0,
        exclude_bias_and_norm=True,
        schedule="step",
    )
    """The optimizer and its schedule."""
    seed: int = 0
    """Seed of the classifier's weights, the share of the images, their order and the crops."""

    def __post_init__(self) -> None:
        if self.head_layers is not None:
            require_within("--head-layers", self.head_layers, 0, 100)
        _require_training(self.epochs, self.batch_size, self.seed)


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """How a student learns from a teacher's answers.

    Defaults are SimCLRv2's (arXiv 2006.10029, section 3) for a quarter of its epochs and a sixteenth of
    its batch.
    """

    student_arch: str | None = None
    """A student with random weights: name of a network of torchvision.models; None: the teacher's."""
    temperature: float = 1.0
    """Divides the logits of both; published: 0.1 for a student like its teacher, else 1."""
    label_weight: float = 0.0
    """Weight of the true label's cross-entropy in the loss of the images that the teacher was trained
    on with labels; the teacher's answer has the rest. 0: no label is used."""
    epochs: int = 100
    """Passes over all training images; published: 400."""
    batch_size: int = 256
    """Images per step; published: 4096."""
    optimizer: OptimizerConfig = OptimizerConfig(
        name="lars",
        lr=1.6,
        lr_scaling="sqrt",
        weight_decay=1e-4,
        exclude_bias_and_norm=True,
        schedule="step",
        warmup_epochs=5,
    )
    """The optimizer and its schedule."""
    seed: int = 0
    """Seed of new weights, the order and the crops."""

    def __post_init__(self) -> None:
        require_within("--temperature", self.temperature, 1e-3, 1e3)
        require(0 <= self.label_weight <= 1, "--label-weight", self.label_weight, "give 0 to 1")
        _require_training(self.epochs, self.batch_size, self.seed)


def _require_training(epochs: int, batch_size: int, seed: int) -> None:
    require_within("--epochs", epochs, 1, MOST_EPOCHS)
    require_within("--batch-size", batch_size, 2, 10**7)
    require_within("--seed", seed, 0, 2**63 - 1)
