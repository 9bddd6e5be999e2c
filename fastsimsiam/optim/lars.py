"""LARS: You et al., "Large Batch Training of Convolutional Networks", arXiv 1708.03888."""

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd

_EPSILON = 1e-8
"""What apex adds to the divisor of its ratio."""


class Lars(torch.optim.Optimizer):
    """SGD that adapts the learning rate of every tensor by a ratio of norms.

    With weights w, gradient g, weight decay d and momentum buffer m, a step is

        u = g + d w;  m = momentum m + ratio u;  w = w - lr m

    and the ratio of a tensor is

        lars: trust |w| / |u|, or 1 where a norm is 0: SimCLR, BYOL and MoCo v3
            (arXiv 2002.05709, 2006.07733, 2104.02057).
        larc: trust |w| / (|g| + d |w| + 1e-8), the LARC of NVIDIA's apex without clipping; where a norm
            is 0, u is g, neither scaled nor decayed: SwAV (arXiv 2006.09882), and SimSiam's linear
            evaluation (arXiv 2011.10566, appendix A).

    In a group with `adapted` False it is 1.

    The learning rate is applied outside of the momentum, as in BYOL and MoCo v3. SimCLR's TensorFlow
    code applies it inside, m = momentum m + lr ratio u: the weights move alike while lr is constant,
    and a new lr takes effect gradually.

    A group is updated by torch's `_foreach` functions and fused SGD, not tensor by tensor, and a GPU is
    not waited for. Multiplying by the ratios is one small kernel per adapted tensor, as torch has no
    fused one.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        *,
        form: Literal["lars", "larc"],
        lr: float | Tensor = 0.001,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
    ) -> None:
        """Takes the parameters.

        Args:
            parameters: to train, or groups of them, each of which may have its own options; also
                `adapted`, which is True by default.
            form: how the ratio is computed.
            lr: global learning rate; a 0-d tensor on the device changes without a wait.
            momentum: momentum of the scaled gradients.
            weight_decay: factor of the weights that are added to gradients before scaling.
            trust: coefficient of the ratio of norms.
        """
        self._form = form
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
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._update(weights, [weight.grad for weight in weights], group)

    def _update(self, weights: list[Tensor], grads: list[Tensor], group: dict[str, Any]) -> None:
        updates = list(torch._foreach_add(grads, weights, alpha=group["weight_decay"]))
        if group["adapted"]:
            torch._foreach_mul_(updates, self._ratios(weights, grads, updates, group))
        sgd(
            weights,
            updates,
            self._momentum(weights),
            fused=True,
            weight_decay=0.0,
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )

    def _ratios(
        self,
        weights: list[Tensor],
        grads: list[Tensor],
        updates: list[Tensor],
        group: dict[str, Any],
    ) -> tuple[Tensor, ...]:
        """The ratio of each tensor, 0-d."""
        weight = torch.stack(torch._foreach_norm(weights))
        if self._form == "lars":
            update = torch.stack(torch._foreach_norm(updates))
            ratio = group["trust"] * weight / update
            ratio = ratio.masked_fill((weight == 0) | (update == 0), 1.0)
            return tuple(ratio.unbind())
        grad = torch.stack(torch._foreach_norm(grads))
        ratio = group["trust"] * weight / (grad + group["weight_decay"] * weight + _EPSILON)
        # Without a gradient the update is the decay alone, which apex then leaves out.
        return tuple(ratio.masked_fill(weight == 0, 1.0).masked_fill(grad == 0, 0.0).unbind())

    def _momentum(self, weights: list[Tensor]) -> list[Tensor | None]:
        for weight in weights:
            if "momentum" not in self.state[weight]:
                self.state[weight]["momentum"] = torch.zeros_like(weight)
        return [self.state[weight]["momentum"] for weight in weights]
