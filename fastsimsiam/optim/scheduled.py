"""Optimizers of torch with tensors as learning rates: changing them neither waits nor recompiles."""

from collections.abc import Sequence
from typing import Any

import torch

from fastsimsiam.methods.base import ParameterGroup, Progress
from fastsimsiam.optim.base import drop_frozen_gradients


class ScheduledOptimizer:
    """A torch optimizer whose groups each have a learning rate of their own; an `Optimizer`."""

    def __init__(self, groups: Sequence[ParameterGroup], optimizer: torch.optim.Optimizer) -> None:
        """Takes the optimizer; the first `set_lr` sets the learning rates.

        Args:
            groups: what is trained, and how.
            optimizer: has one group for each of `groups`, in their order, with a 0-d tensor as `lr`.
        """
        self._groups = list(groups)
        self._optimizer = optimizer
        self._lr = [group["lr"] for group in optimizer.param_groups]

    def set_lr(self, lr: float, peak_lr: float) -> None:
        """See `Optimizer.set_lr`."""
        for group, tensor in zip(self._groups, self._lr, strict=True):
            tensor.fill_((peak_lr if group.constant_lr else lr) * group.lr_factor)

    def step(self, at: Progress) -> None:
        """See `Optimizer.step`."""
        drop_frozen_gradients(self._groups, at)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Momentum buffers and settings."""
        return self._optimizer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`; the settings stay this object's own, and so do the lr tensors."""
        own = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state["state"], "param_groups": own})
        for group, lr in zip(self._optimizer.param_groups, self._lr, strict=True):
            group["lr"] = lr
