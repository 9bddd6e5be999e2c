"""What the trainer asks of a method; it knows nothing else of it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class ParameterGroup:
    """Parameters that share a learning-rate schedule.

    Attributes:
        parameters: trained parameters.
        constant_lr: True keeps the starting learning rate for the whole run.
    """

    parameters: list[nn.Parameter]
    constant_lr: bool


class Method(nn.Module, ABC):
    """A self-supervised method around a backbone.

    Attributes:
        backbone: images (B, 3, H, W) to features (B, D); what evaluation and export use.
    """

    backbone: nn.Module

    @abstractmethod
    def forward(self, views: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes the loss of a batch.

        Args:
            views: one tensor (B, 3, S, S) per view of the recipe.

        Returns:
            The scalar loss and scalar figures for the log; a figure `collapse_std` (1 healthy, 0
            collapsed) is watched by the trainer.
        """

    @abstractmethod
    def parameter_groups(self) -> list[ParameterGroup]:
        """All trained parameters, by schedule."""
