"""What training asks of an optimizer."""

from collections.abc import Sequence
from typing import Any, Protocol

from fastsimsiam.methods.base import ParameterGroup, Progress


class Optimizer(Protocol):
    """Updates the parameters of a method's groups."""

    def set_lr(self, lr: float, peak_lr: float) -> None:
        """Sets the learning rates of the next step; nothing waits for the device.

        Args:
            lr: that of the schedule.
            peak_lr: the schedule's largest, for groups with `constant_lr`.
        """

    def step(self, at: Progress) -> None:
        """Applies the gradients and drops them.

        Args:
            at: the run before this step; decides what is frozen.
        """

    def state_dict(self) -> dict[str, Any]:
        """Momentum and settings."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`."""


def drop_frozen_gradients(groups: Sequence[ParameterGroup], at: Progress) -> None:
    """Drops the gradients of groups that are still frozen.

    With a learning rate of 0 instead, momentum would accumulate and be applied afterwards.
    """
    for group in groups:
        if at.step < group.frozen_epochs * at.steps_per_epoch:
            for parameter in group.parameters:
                parameter.grad = None
