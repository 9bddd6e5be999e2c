"""SGD whose learning rates are tensors, so that changing them neither syncs nor recompiles."""

import torch

from fastsimsiam.config.run import OptimizerConfig
from fastsimsiam.methods.base import ParameterGroup


class ScheduledSGD:
    """Fused SGD with one learning rate for what decays and one for what does not.

    Weight decay applies to all parameters, BatchNorm and biases too, as published.
    """

    def __init__(
        self, groups: list[ParameterGroup], config: OptimizerConfig, device: torch.device
    ) -> None:
        """Builds the optimiser; the first `set_rates` sets the learning rates."""
        self._constant = [group.constant_lr for group in groups]
        self._rates = [torch.zeros((), device=device) for _ in groups]
        self._sgd = torch.optim.SGD(
            [
                {"params": group.parameters, "lr": rate}
                for group, rate in zip(groups, self._rates, strict=True)
            ],
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            fused=True,
        )

    def set_rates(self, rate: float, starting_rate: float) -> None:
        """Sets the scheduled learning rate, and the constant one where a group keeps it."""
        for constant, tensor in zip(self._constant, self._rates, strict=True):
            tensor.fill_(starting_rate if constant else rate)

    def step(self) -> None:
        """Applies the gradients and drops them."""
        self._sgd.step()
        self._sgd.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, object]:
        """Momentum buffers and settings."""
        return self._sgd.state_dict()

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Restores `state_dict`; the learning rates stay this object's own tensors."""
        self._sgd.load_state_dict(state)
        for group, rate in zip(self._sgd.param_groups, self._rates, strict=True):
            group["lr"] = rate
