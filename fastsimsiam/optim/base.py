"""What training asks of an optimizer."""

from typing import Any, Protocol


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
