"""LARS: You et al., "Large Batch Training of Convolutional Networks", arXiv 1708.03888."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn


class Lars(torch.optim.Optimizer):
    """SGD that adapts the learning rate of every tensor by the ratio of norms.

    A tensor's gradient is scaled by trust * |w| / (|g| + weight_decay * |w|), without clipping. Tensors
    that are all zero, whose gradient is all zero, or whose group has `adapted` False are not scaled.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        """Takes the parameters.

        Args:
            parameters: to train, or groups of them, each of which may have its own options.
            lr: global learning rate.
            momentum: momentum of the scaled gradients.
            weight_decay: factor of the weights that are added to gradients before scaling.
            trust: coefficient of the ratio of norms.
        """
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust": trust,
            "adapted": True,
        }
        super().__init__(parameters, defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores a state, also one of a version without `adapted`."""
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("adapted", True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates all parameters that have a gradient; nothing waits for the device."""
        assert closure is None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group)

    def _update(self, weight: nn.Parameter, grad: torch.Tensor, group: dict[str, Any]) -> None:
        decay = group["weight_decay"]
        scaled = grad + decay * weight
        if group["adapted"]:
            weight_norm, grad_norm = weight.norm(), grad.norm()
            ratio = group["trust"] * weight_norm / (grad_norm + decay * weight_norm + 1e-8)
            scaled = scaled * torch.where(
                (weight_norm > 0) & (grad_norm > 0), ratio, torch.ones_like(ratio)
            )
        state = self.state[weight]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(weight)
        state["momentum"].mul_(group["momentum"]).add_(scaled)
        weight.sub_(group["lr"] * state["momentum"])
