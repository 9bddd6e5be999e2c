"""Whether the compiled step, with whatever is fused in it, computes what torch's own layers compute."""

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from benchmarks.gpu.worker import Result
from fastsimsiam.loaders.base import Batch
from fastsimsiam.methods.registry import build_method
from fastsimsiam.train.step import TrainStep
from fastsimsiam.train.trainer import Trainer


def exactness(trainer: Trainer, held: Batch | None) -> Result:
    """The compiled step's loss and gradients beside those of torch's own layers, not compiled."""
    assert held is not None
    arguments = held.crops, held.photometric, held.label
    with _ones(trainer.method):
        ours = _loss_and_norms(trainer.compute, trainer.method, arguments)
    plain = build_method(trainer.config).to(trainer.device).to(memory_format=torch.channels_last)
    with torch.no_grad():
        for mine, theirs in zip(plain.parameters(), trainer.method.parameters(), strict=True):
            mine.copy_(theirs)
    photometric = getattr(trainer.compute, "photometric")  # noqa: B009 - of a compiled module
    dtype = torch.bfloat16 if trainer.device.type == "cuda" else torch.float32
    step = TrainStep(photometric, plain.train(), trainer.device, dtype)
    with _ones(plain):
        theirs = _loss_and_norms(step, plain, arguments)
    least = 1e-5 * max(theirs[1].values())
    found = {
        name: abs(ours[1].get(name, 0.0) - norm) / max(norm, least)
        for name, norm in theirs[1].items()
    }
    worst = sorted(found, key=lambda name: -found[name])[:5]
    return {
        "loss": ours[0],
        "loss_of_torch": theirs[0],
        "missing": sorted(theirs[1].keys() ^ ours[1].keys()),
        "largest_differences_of_norms": {name: found[name] for name in worst},
        "median_difference": statistics.median(found.values()),
    }


@contextmanager
def _ones(method: nn.Module) -> Iterator[None]:
    """All BatchNorm2d weights are 1: the recipe's zeros leave branches without gradients."""
    weights = [m.weight for m in method.modules() if isinstance(m, nn.BatchNorm2d)]
    initial = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        for weight in weights:
            weight.fill_(1.0)
        try:
            with torch.enable_grad():
                yield
        finally:
            for weight, value in zip(weights, initial, strict=True):
                weight.copy_(value)


def _loss_and_norms(
    compute: Any, method: nn.Module, arguments: tuple[Any, ...]
) -> tuple[float, dict[str, float]]:
    method.zero_grad(set_to_none=True)
    loss = compute(*arguments)[0]
    loss.backward()
    norms = {
        name: parameter.grad.float().norm().item()
        for name, parameter in method.named_parameters()
        if parameter.grad is not None
    }
    method.zero_grad(set_to_none=True)
    return loss.item(), norms
