"""What training asks of an optimizer."""

from collections.abc import Sequence
from typing import Any, Protocol

from fastsimsiam.methods.base import ParameterGroup


class Optimizer(Protocol):
    """Updates the parameters of a method's groups."""

    def set_lr(self, lr: float, peak_lr: float) -> None:
        """Sets the learning rates of the next step; nothing waits for the device.

        Args:
            lr: that of the schedule.
            peak_lr: the schedule's largest, for groups with `constant_lr`.
        """

    def step(self, step: int) -> None:
        """Applies the gradients and drops them.

        Args:
            step: optimizer steps done before this one; decides what is frozen.
        """

    def state_dict(self) -> dict[str, Any]:
        """Momentum and settings."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`."""


def drop_frozen_gradients(groups: Sequence[ParameterGroup], step: int) -> None:
    """Takes the gradients of groups that are still frozen.

    A learning rate of 0 would not do: momentum would gather, and let go when they thaw.
    """
    for group in groups:
        if step < group.frozen_steps:
            for parameter in group.parameters:
                parameter.grad = None
