"""The loop of all supervised training: `linear`, `finetune` and `distill`. Shapes: B batch, C classes.

A batch is whatever the caller's loss takes. A training that is stopped between two epochs and resumed
gives the same weights: order and crops depend on seed and epoch alone, and torch's generators, which
dropout draws of, are in the state.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fastsimsiam.config.optimizer import OptimizerConfig
from fastsimsiam.errors import UserError
from fastsimsiam.methods.base import ParameterGroup, Progress
from fastsimsiam.optim.build import build_optimizer
from fastsimsiam.optim.schedule import ScheduleSteps, learning_rate, peak_lr
from fastsimsiam.optim.scheduled import ScheduledOptimizer

Batch = TypeVar("Batch")


@dataclass(frozen=True, kw_only=True)
class Training:
    """How long and how fast a network is trained.

    Attributes:
        epochs: passes over the images.
        batch_size: images per step, by which the learning rate is scaled.
        optimizer: the optimizer and its schedule.
        lr_option: the command's option for the learning rate, for messages.
    """

    epochs: int
    batch_size: int
    optimizer: OptimizerConfig
    lr_option: str = "--optimizer.lr"


@dataclass(kw_only=True)
class SupervisedState:
    """State of a training between two epochs.

    Attributes:
        network: what is trained.
        optimizer: its optimizer.
        name: key of the network's state in files.
        epoch: number of epochs done.
        losses: mean training loss of each epoch.
    """

    network: nn.Module
    optimizer: ScheduledOptimizer
    name: str = "network"
    epoch: int = 0
    losses: list[float] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors and plain values, for a file."""
        return {
            self.name: self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "losses": self.losses,
            "rng": _generators(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the result of `state_dict`."""
        self.network.load_state_dict(state[self.name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.losses = state["epoch"], list(state["losses"])
        if "rng" in state:  # version 0.1.0 had none, for linear layers, which draw nothing
            _restore_generators(state["rng"])


def _generators() -> dict[str, Tensor]:
    """State of torch's generators, of which networks with dropout draw."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _restore_generators(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def start(
    network: nn.Module, optimizer: OptimizerConfig, device: torch.device, *, name: str = "network"
) -> SupervisedState:
    """The state before the first epoch: all parameters of a network in one group.

    Args:
        network: what is trained, on the device.
        optimizer: the optimizer.
        device: of the network.
        name: key of the network's state in files.
    """
    group = ParameterGroup(parameters=list(network.parameters()))
    return SupervisedState(
        network=network, optimizer=build_optimizer([group], optimizer, device), name=name
    )


def train(
    state: SupervisedState,
    batches: Callable[[int], Iterator[Batch]],
    loss: Callable[[Batch], Tensor],
    training: Training,
    *,
    steps_per_epoch: int,
    after_epoch: Callable[[SupervisedState], None] = lambda state: None,
) -> None:
    """Trains a network to the end of the last epoch.

    Args:
        state: new or restored state; changed in place.
        batches: function of the epoch that yields its batches.
        loss: of a batch, a scalar.
        training: how long and how fast.
        steps_per_epoch: number of batches of an epoch, by which the schedule is laid out.
        after_epoch: called with the state after each epoch.

    Raises:
        UserError: the loss is not finite.
    """
    total = training.epochs * steps_per_epoch
    steps = ScheduleSteps(
        steps_per_epoch=steps_per_epoch, total=total, stop=total, checkpoint_every=1, knn_every=0
    )
    peak = peak_lr(training.optimizer, training.batch_size)
    device = next(state.network.parameters()).device
    while state.epoch < training.epochs:
        summed, count = torch.zeros((), device=device), 0
        for number, batch in enumerate(batches(state.epoch)):
            # An epoch that lost whole batches to broken images has fewer than planned.
            step = state.epoch * steps_per_epoch + min(number, steps_per_epoch - 1)
            lr = learning_rate(
                training.optimizer, batch_size=training.batch_size, step=step, steps=steps
            )
            state.optimizer.set_lr(lr, peak)
            value = loss(batch)
            value.backward()  # type: ignore[no-untyped-call]
            state.optimizer.step(
                Progress(step=step, steps_per_epoch=steps_per_epoch, total_steps=total)
            )
            summed += value.detach()
            count += 1
        mean = (summed / count).item() if count else math.nan
        if not math.isfinite(mean):
            raise UserError(
                f"the loss is not finite in epoch {state.epoch + 1}: lower {training.lr_option}"
            )
        state.epoch += 1
        state.losses.append(mean)
        after_epoch(state)


def accuracy(batches: Iterator[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Top-1 and top-5 accuracy in percent; top-5 is 100 with five classes or fewer.

    Args:
        batches: logits (B, C) and labels (B,).
    """
    hits: list[Tensor] = []
    images = 0
    for logits, label in batches:
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        hit = best == label[:, None]
        hits.append(torch.stack([hit[:, 0].sum(), hit.any(dim=1).sum()]))
        images += len(label)
    top1, top5 = (100.0 * torch.stack(hits).sum(dim=0) / images).tolist()
    return top1, top5
