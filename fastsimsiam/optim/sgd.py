"""SGD whose learning rates are tensors, so that changing them neither syncs nor recompiles."""

from collections.abc import Sequence
from typing import Any

import torch

from fastsimsiam.config.optimizer import OptimizerConfig
from fastsimsiam.methods.base import ParameterGroup
from fastsimsiam.optim.base import drop_frozen_gradients


class ScheduledSGD:
    """Fused SGD with a learning rate of its own for every parameter group; an `Optimizer`."""

    def __init__(
        self, groups: Sequence[ParameterGroup], config: OptimizerConfig, device: torch.device
    ) -> None:
        """Builds the optimizer; the first `set_lr` sets the learning rates.

        Args:
            groups: what is trained, and how. LARS's flag `adapted` means nothing to SGD.
            config: momentum and weight decay.
            device: of the parameters.
        """
        self._groups = list(groups)
        self._lr = [torch.zeros((), device=device) for _ in groups]
        self._sgd = torch.optim.SGD(
            [
                {
                    "params": group.parameters,
                    "lr": lr,
                    "weight_decay": config.weight_decay if group.decayed else 0.0,
                }
                for group, lr in zip(groups, self._lr, strict=True)
            ],
            momentum=config.momentum,
            fused=True,
        )

    def set_lr(self, lr: float, peak_lr: float) -> None:
        """See `Optimizer.set_lr`."""
        for group, tensor in zip(self._groups, self._lr, strict=True):
            tensor.fill_((peak_lr if group.constant_lr else lr) * group.lr_factor)

    def step(self, step: int) -> None:
        """See `Optimizer.step`."""
        drop_frozen_gradients(self._groups, step)
        self._sgd.step()
        self._sgd.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Momentum buffers and settings."""
        return self._sgd.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`; the learning rates stay this object's own tensors."""
        self._sgd.load_state_dict(state)
        for group, lr in zip(self._sgd.param_groups, self._lr, strict=True):
            group["lr"] = lr
