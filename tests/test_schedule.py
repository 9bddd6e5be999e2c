"""Durations and learning rates."""

import copy
import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from fastsimsiam.config.optimizer import OptimizerConfig
from fastsimsiam.config.run import CheckpointConfig
from fastsimsiam.methods.base import ParameterGroup
from fastsimsiam.optim.lars import Lars
from fastsimsiam.optim.schedule import learning_rate, schedule_steps
from fastsimsiam.optim.sgd import ScheduledSGD
from fastsimsiam.recipes import catalogue


def rates(optimizer: OptimizerConfig, batch_size: int = 512, epochs: int = 4) -> list[float]:
    """The rate of each step, at 5 steps an epoch."""
    config = replace(catalogue.recipe("imagenet-100ep"), epochs=epochs)
    durations = schedule_steps(config, 5)
    return [
        learning_rate(optimizer, batch_size=batch_size, step=step, steps=durations)
        for step in range(durations.total)
    ]


def test_cosine_by_epoch_is_the_published_schedule() -> None:
    found = rates(OptimizerConfig(lr=0.05))
    expected = [
        0.1 * 0.5 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4) for _ in range(5)
    ]
    assert found == pytest.approx(expected)


def test_cosine_by_step_falls_every_step() -> None:
    found = rates(OptimizerConfig(lr=0.05, schedule="step"))
    assert found[0] == pytest.approx(0.1)
    assert all(a > b for a, b in itertools.pairwise(found))
    assert found[10] == pytest.approx(0.05)


def test_warm_up_rises_to_the_peak_then_falls() -> None:
    found = rates(OptimizerConfig(lr=0.05, schedule="step", warmup_epochs=2))
    assert found[:10] == pytest.approx([0.1 * (step + 1) / 10 for step in range(10)])
    assert found[10] == pytest.approx(0.1)
    assert found[-1] < 0.01


def test_durations_become_steps() -> None:
    config = replace(
        catalogue.recipe("imagenet-100ep"),
        max_steps=120,
        checkpoint=CheckpointConfig(every_epochs=0.25),
    )
    durations = schedule_steps(config, 8)
    assert (durations.total, durations.stop, durations.checkpoint_every) == (800, 120, 2)
    assert durations.knn_every == 80
    assert schedule_steps(replace(config, max_steps=5000), 8).stop == 800


def test_sgd_equals_its_definition_with_two_rates() -> None:
    """W <- w - lr m, m <- 0.9 m + g + wd w; the predictor keeps its rate."""
    weights = [nn.Parameter(torch.tensor([2.0])), nn.Parameter(torch.tensor([2.0]))]
    groups = [
        ParameterGroup(parameters=[weights[0]], constant_lr=False),
        ParameterGroup(parameters=[weights[1]], constant_lr=True),
    ]
    sgd = ScheduledSGD(groups, OptimizerConfig(weight_decay=0.1), torch.device("cpu"))
    expected, momentum = [2.0, 2.0], [0.0, 0.0]
    for rate in (0.3, 0.2, 0.1):
        sgd.set_lr(rate, 0.3)
        for weight in weights:
            weight.grad = torch.tensor([0.5])
        sgd.step(0)
        for side, own in enumerate((rate, 0.3)):
            momentum[side] = 0.9 * momentum[side] + 0.5 + 0.1 * expected[side]
            expected[side] -= own * momentum[side]
        assert weights[0].grad is None
        assert [w.item() for w in weights] == pytest.approx(expected)


def test_restored_sgd_still_follows_the_schedule() -> None:
    def make() -> tuple[nn.Parameter, ScheduledSGD]:
        weight = nn.Parameter(torch.tensor([2.0]))
        group = ParameterGroup(parameters=[weight], constant_lr=False)
        return weight, ScheduledSGD([group], OptimizerConfig(), torch.device("cpu"))

    def advance(weight: nn.Parameter, sgd: ScheduledSGD, rate: float) -> None:
        sgd.set_lr(rate, 1.0)
        weight.grad = torch.tensor([0.5])
        sgd.step(0)

    one, first = make()
    advance(one, first, 0.3)
    two, second = make()
    two.data.copy_(one.data)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    advance(one, first, 0.1)
    advance(two, second, 0.1)
    assert one.item() == two.item()


def flagged_groups() -> tuple[list[nn.Parameter], list[ParameterGroup]]:
    """Four equal weights: plain, not decayed, at ten times the lr, frozen for two steps."""
    weights = [nn.Parameter(torch.tensor([2.0])) for _ in range(4)]
    flags: list[dict[str, Any]] = [{}, {"decayed": False}, {"lr_factor": 10.0}, {"frozen_steps": 2}]
    groups = [
        ParameterGroup(parameters=[weight], **flag)
        for weight, flag in zip(weights, flags, strict=True)
    ]
    return weights, groups


def test_sgd_heeds_decay_factor_and_freezing() -> None:
    weights, groups = flagged_groups()
    sgd = ScheduledSGD(groups, OptimizerConfig(weight_decay=0.1), torch.device("cpu"))
    expected, momentum = [2.0] * 4, [0.0] * 4
    for step in range(4):
        sgd.set_lr(0.01, 1.0)
        for weight in weights:
            weight.grad = torch.tensor([0.5])
        sgd.step(step)
        for number, group in enumerate(groups):
            if step < group.frozen_steps:
                continue  # neither the weight nor its momentum moves
            decay = 0.1 * expected[number] if group.decayed else 0.0
            momentum[number] = 0.9 * momentum[number] + 0.5 + decay
            expected[number] -= 0.01 * group.lr_factor * momentum[number]
        assert [w.item() for w in weights] == pytest.approx(expected)


def test_lars_leaves_what_is_not_adapted_to_sgd() -> None:
    """One weight is adapted, one is not and decays, one neither."""
    weights = [nn.Parameter(torch.tensor([3.0, 4.0])) for _ in range(3)]
    lars = Lars(
        [
            {"params": weights[0]},
            {"params": weights[1], "adapted": False},
            {"params": weights[2], "adapted": False, "weight_decay": 0.0},
        ],
        lr=0.1,
        weight_decay=0.2,
        trust=0.01,
    )
    for weight in weights:
        weight.grad = torch.tensor([0.0, 2.0])
    lars.step()
    ratio = 0.01 * 5.0 / (2.0 + 0.2 * 5.0 + 1e-8)
    gradient = torch.tensor([0.2 * 3.0, 2.0 + 0.2 * 4.0])
    for weight, scaled in zip(
        weights, (ratio * gradient, gradient, torch.tensor([0.0, 2.0])), strict=True
    ):
        torch.testing.assert_close(weight.detach(), torch.tensor([3.0, 4.0]) - 0.1 * scaled)


def test_lars_resumes_what_an_earlier_version_stored() -> None:
    """Version 0.1.0 had no flag `adapted`."""
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    lars = Lars([weight], lr=0.1)
    stored = lars.state_dict()
    del stored["param_groups"][0]["adapted"]
    lars.load_state_dict(stored)
    weight.grad = torch.tensor([0.0, 2.0])
    lars.step()
    moved = (torch.tensor([3.0, 4.0]) - weight.detach()).norm()
    assert moved == pytest.approx(0.1 * 0.001 * 5.0, rel=1e-3)
