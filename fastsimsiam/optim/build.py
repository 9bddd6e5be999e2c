"""The optimizer of a config. Whoever trains a method gets its optimizer here."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from fastsimsiam.config.optimizer import OptimizerConfig, OptimizerName
from fastsimsiam.methods.base import ParameterGroup
from fastsimsiam.optim.lars import Lars
from fastsimsiam.optim.scheduled import ScheduledOptimizer

STATE: Mapping[OptimizerName, frozenset[str]] = {
    "sgd": frozenset({"momentum_buffer"}),
    "lars": frozenset({"momentum"}),
    "larc": frozenset({"momentum"}),
    "adamw": frozenset({"step", "exp_avg", "exp_avg_sq"}),
}
"""Optimizer -> names of what its state holds of each parameter."""


def build_optimizer(
    groups: Sequence[ParameterGroup], config: OptimizerConfig, device: torch.device
) -> ScheduledOptimizer:
    """The optimizer that a config names.

    Args:
        groups: the method's `parameter_groups()`.
        config: the optimizer and its options.
        device: of the parameters.
    """
    groups = optimizer_groups(groups, config)
    options: list[dict[str, Any]] = [
        {
            "params": group.parameters,
            "lr": torch.zeros((), device=device),
            "weight_decay": config.weight_decay if group.decayed else 0.0,
        }
        for group in groups
    ]
    optimizer: torch.optim.Optimizer
    if config.name == "sgd":
        optimizer = torch.optim.SGD(options, momentum=config.momentum, fused=True)
    elif config.name == "adamw":
        betas = (config.momentum, config.beta2)
        optimizer = torch.optim.AdamW(options, betas=betas, fused=True)
    else:
        optimizer = Lars(
            [
                {**group_options, "adapted": group.adapted}
                for group, group_options in zip(groups, options, strict=True)
            ],
            form=config.name,
            momentum=config.momentum,
            trust=config.trust,
        )
    return ScheduledOptimizer(groups, optimizer)


def optimizer_groups(
    groups: Sequence[ParameterGroup], config: OptimizerConfig
) -> list[ParameterGroup]:
    """The groups of an optimizer, whose state counts the parameters in their order.

    Args:
        groups: the method's `parameter_groups()`.
        config: may exempt biases and norms.
    """
    return split_bias_and_norm(groups) if config.exclude_bias_and_norm else list(groups)


def split_bias_and_norm(groups: Sequence[ParameterGroup]) -> list[ParameterGroup]:
    """Cuts each group in two: biases and the parameters of norms are neither decayed nor adapted.

    They are told by their number of dimensions, one or none: weights of linear layers have two, of
    convolutions four. A transformer's tokens and position embeddings stay with the weights.
    """
    split = []
    for group in groups:
        weights = [parameter for parameter in group.parameters if parameter.ndim > 1]
        others = [parameter for parameter in group.parameters if parameter.ndim <= 1]
        if weights:
            split.append(replace(group, parameters=weights))
        if others:
            split.append(replace(group, parameters=others, decayed=False, adapted=False))
    return split
