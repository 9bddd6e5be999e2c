"""The training step: what is compiled of it, and the one function that does it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastsimsiam.augment.photometric import Photometric
from fastsimsiam.methods.base import Method, Progress
from fastsimsiam.optim.base import Optimizer


class TrainStep(nn.Module):
    """Photometric part, method and loss as one module, so that one graph holds them."""

    def __init__(
        self, photometric: Photometric, method: Method, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Takes the parts, and the dtype of the method's arithmetic (bfloat16: autocast)."""
        super().__init__()
        self.photometric = photometric
        self.method = method
        self._device_type = device.type
        self._dtype = dtype

    def forward(
        self, crops: tuple[Tensor, ...], photometric: dict[str, Tensor], labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """See `loaders.base.Batch` for the arguments and `Method.forward` for the result."""
        views = self.photometric(crops, photometric)
        with torch.autocast(self._device_type, self._dtype, enabled=self._dtype != torch.float32):
            loss, metrics = self.method(views, labels)
        return loss, metrics


def optimizer_step(
    compute: Callable[..., tuple[Tensor, dict[str, Tensor]]],
    parts: Sequence[tuple[Any, ...]],
    *,
    method: Method,
    optimizer: Optimizer,
    at: Progress,
    lr: float,
    peak_lr: float,
    after: Callable[[str], None] = lambda phase: None,
) -> dict[str, Tensor]:
    """One step of the optimizer, with everything that a method does around it.

    Nothing here waits for the device.

    Args:
        compute: returns the loss and the metrics of a part of the batch.
        parts: arguments of `compute` for each part whose gradients are accumulated.
        method: whose hooks are called.
        optimizer: updates the method's parameters.
        at: the run before the step.
        lr: the schedule's learning rate.
        peak_lr: its largest.
        after: told of the end of each `forward` and `backward`, and of the `update`.

    Returns:
        The loss (`loss`) and the metrics, means over the parts, on the device.
    """
    optimizer.set_lr(lr, peak_lr)
    with torch.no_grad():
        method.before_step(at)
    share = 1.0 / len(parts)
    means: dict[str, Tensor] = {}
    for part in parts:
        loss, metrics = compute(*part)
        after("forward")
        # With several ranks every part is reduced: more traffic than needed, but exact.
        (loss / len(parts)).backward()  # type: ignore[no-untyped-call]
        after("backward")
        with torch.no_grad():
            method.after_part()
        for name, value in {"loss": loss, **metrics}.items():
            value = value.detach().float() * share
            means[name] = means[name] + value if name in means else value
    optimizer.step(at)
    with torch.no_grad():
        method.after_step()
    after("update")
    return means
