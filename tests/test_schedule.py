"""Durations and learning rates."""

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import progress
from torch import nn

from fastsimsiam.config.optimizer import OptimizerConfig
from fastsimsiam.config.run import CheckpointConfig
from fastsimsiam.methods.base import ParameterGroup
from fastsimsiam.optim.build import build_optimizer
from fastsimsiam.optim.lars import Lars
from fastsimsiam.optim.schedule import learning_rate, peak_lr, schedule_steps
from fastsimsiam.optim.scheduled import ScheduledOptimizer
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


def test_the_schedule_of_older_runs_is_the_same_to_the_bit() -> None:
    """Resumed runs go on as they began."""

    def before(optimizer: OptimizerConfig, step: int) -> float:
        peak, epoch = optimizer.lr * 512 / 256, step / 5
        if epoch < optimizer.warmup_epochs:
            return peak * (step + 1) / math.ceil(optimizer.warmup_epochs * 5)
        if optimizer.schedule == "epoch":
            epoch = math.floor(epoch)
        done = (epoch - optimizer.warmup_epochs) / max(40 - optimizer.warmup_epochs, 1e-9)
        return peak * 0.5 * (1.0 + math.cos(math.pi * min(max(done, 0.0), 1.0)))

    for lr, warmup, schedule in itertools.product(
        (0.05, 0.03, 0.7), (0.0, 0.5, 3.3), ("epoch", "step")
    ):
        optimizer = OptimizerConfig(lr=lr, warmup_epochs=warmup, schedule=schedule)
        assert rates(optimizer, epochs=40) == [before(optimizer, step) for step in range(200)]


@pytest.mark.parametrize(("scaling", "expected"), [("linear", 4.8), ("sqrt", 1.2), ("none", 0.3)])
def test_scaling_rules(scaling: Any, expected: float) -> None:
    optimizer = OptimizerConfig(lr=0.3, lr_scaling=scaling)
    assert peak_lr(optimizer, 4096) == pytest.approx(expected)
    assert peak_lr(optimizer, 256) == 0.3
    assert rates(optimizer, batch_size=4096)[0] == peak_lr(optimizer, 4096)


def at_steps(
    optimizer: OptimizerConfig, *, batch_size: int, epochs: int, per_epoch: int
) -> Callable[[int], float]:
    """The learning rate as a function of the step."""
    config = replace(catalogue.recipe("imagenet-100ep"), epochs=epochs)
    steps = schedule_steps(config, per_epoch)
    return lambda step: learning_rate(optimizer, batch_size=batch_size, step=step, steps=steps)


def test_schedule_of_simclr() -> None:
    """Of arXiv 2002.05709: lr 0.3 per 256, 10 epochs of warm-up, cosine by step; 312 steps of 4096."""
    optimizer = OptimizerConfig(lr=0.3, schedule="step", warmup_epochs=10)
    lr = at_steps(optimizer, batch_size=4096, epochs=100, per_epoch=312)
    assert lr(0) == pytest.approx(4.8 / 3120)
    assert lr(1559) == pytest.approx(2.4)
    assert lr(3119) == lr(3120) == pytest.approx(4.8)
    assert lr(3120 + 28080 // 4) == pytest.approx(4.8 * (2 + math.sqrt(2)) / 4)
    assert lr(3120 + 28080 // 2) == pytest.approx(2.4)
    assert lr(31199) == pytest.approx(1.2 * (math.pi / 28080) ** 2, rel=1e-3)
    root = OptimizerConfig(lr=1.2, lr_scaling="sqrt")  # 0.075 times the root of the batch size
    assert [peak_lr(root, size) for size in (256, 512, 4096)] == pytest.approx([1.2, 1.697056, 4.8])


def test_schedule_of_the_supcon_recipe() -> None:
    """From 0.01 to 0.5, then by epoch to 0.0005; within 0.006 of arXiv 2004.11362's code for CIFAR."""
    optimizer = catalogue.recipe("supcon-cifar10-1000ep").optimizer
    lr = at_steps(optimizer, batch_size=1024, epochs=1000, per_epoch=48)
    assert lr(0) == pytest.approx(0.01)
    assert lr(240) == pytest.approx(0.01 + 0.49 * 240 / 479)
    assert lr(479) == lr(480) == lr(527) == pytest.approx(0.5)
    assert lr(48 * 505) == pytest.approx(0.25025)
    assert lr(48 * 999) == lr(47999) == pytest.approx(0.00050126, rel=1e-4)

    def code(step: int) -> float:
        """Its cosine is over all epochs, counted from 1; its warm-up ends on that curve."""

        def cosine(epoch: int) -> float:
            return 0.0005 + 0.4995 * 0.5 * (1 + math.cos(math.pi * epoch / 1000))

        if step < 480:
            return 0.01 + (cosine(10) - 0.01) * step / 480
        return cosine(step // 48 + 1)

    assert code(48 * 505) == pytest.approx(0.2455, abs=1e-4)
    assert max(abs(lr(step) - code(step)) for step in range(0, 48000, 16)) < 0.006


def test_schedule_of_moco_v1() -> None:
    """Of arXiv 1911.05722: 0.03, a tenth of it from epochs 120 and 160 on."""
    optimizer = OptimizerConfig(lr=0.03, decay="milestones", milestones=(120, 160))
    lr = at_steps(optimizer, batch_size=256, epochs=200, per_epoch=5004)
    assert lr(0) == lr(5004 * 120 - 1) == 0.03
    assert lr(5004 * 120) == lr(5004 * 160 - 1) == pytest.approx(0.003)
    assert lr(5004 * 160) == lr(5004 * 200 - 1) == pytest.approx(0.0003)
    warm = at_steps(replace(optimizer, warmup_epochs=1), batch_size=256, epochs=200, per_epoch=4)
    assert [warm(step) for step in range(5)] == pytest.approx([0.0075, 0.015, 0.0225, 0.03, 0.03])


def test_schedule_of_swav() -> None:
    """Of arXiv 2006.09882, batch 4096: from 0.3 to 4.8, both included, then by step to 0.0048."""
    optimizer = OptimizerConfig(
        lr=0.3, schedule="step", warmup_epochs=10, warmup_start_factor=0.0625, final_lr_factor=1e-3
    )
    lr = at_steps(optimizer, batch_size=4096, epochs=100, per_epoch=312)
    ramp = np.linspace(0.3, 4.8, 3120)
    t = np.arange(28080)
    fall = 0.0048 + 0.5 * (4.8 - 0.0048) * (1 + np.cos(np.pi * t / 28080))
    np.testing.assert_allclose(
        [lr(step) for step in range(31200)], np.concatenate([ramp, fall]), rtol=1e-9
    )
    assert (lr(0), lr(3119), lr(3120)) == pytest.approx((0.3, 4.8, 4.8))
    small = replace(optimizer, lr=0.6, warmup_epochs=0, warmup_start_factor=0)
    lr = at_steps(small, batch_size=256, epochs=200, per_epoch=5004)
    assert lr(0) == 0.6
    assert lr(5004 * 200 - 1) == pytest.approx(0.0006)


def test_a_warm_up_of_one_step() -> None:
    for start, first in ((0.0, 0.1), (0.5, 0.05)):
        optimizer = OptimizerConfig(schedule="step", warmup_epochs=0.2, warmup_start_factor=start)
        found = rates(optimizer)
        assert found[0] == pytest.approx(first)
        assert found[1] == pytest.approx(0.1)


def test_durations_become_steps() -> None:
    config = replace(
        catalogue.recipe("imagenet-100ep"),
        max_steps=120,
        checkpoint=CheckpointConfig(every_epochs=0.25, min_minutes=0.0),
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
    sgd = build_optimizer(groups, OptimizerConfig(weight_decay=0.1), torch.device("cpu"))
    expected, momentum = [2.0, 2.0], [0.0, 0.0]
    for rate in (0.3, 0.2, 0.1):
        sgd.set_lr(rate, 0.3)
        for weight in weights:
            weight.grad = torch.tensor([0.5])
        sgd.step(progress(0))
        for side, own in enumerate((rate, 0.3)):
            momentum[side] = 0.9 * momentum[side] + 0.5 + 0.1 * expected[side]
            expected[side] -= own * momentum[side]
        assert weights[0].grad is None
        assert [w.item() for w in weights] == pytest.approx(expected)


def test_restored_sgd_still_follows_the_schedule() -> None:
    def make() -> tuple[nn.Parameter, ScheduledOptimizer]:
        weight = nn.Parameter(torch.tensor([2.0]))
        group = ParameterGroup(parameters=[weight], constant_lr=False)
        return weight, build_optimizer([group], OptimizerConfig(), torch.device("cpu"))

    def advance(weight: nn.Parameter, sgd: ScheduledOptimizer, rate: float) -> None:
        sgd.set_lr(rate, 1.0)
        weight.grad = torch.tensor([0.5])
        sgd.step(progress(0))

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
    flags: list[dict[str, Any]] = [
        {},
        {"decayed": False},
        {"lr_factor": 10.0},
        {"frozen_epochs": 2},
    ]
    groups = [
        ParameterGroup(parameters=[weight], **flag)
        for weight, flag in zip(weights, flags, strict=True)
    ]
    return weights, groups


def test_sgd_heeds_decay_factor_and_freezing() -> None:
    weights, groups = flagged_groups()
    sgd = build_optimizer(groups, OptimizerConfig(weight_decay=0.1), torch.device("cpu"))
    expected, momentum = [2.0] * 4, [0.0] * 4
    for step in range(4):
        sgd.set_lr(0.01, 1.0)
        for weight in weights:
            weight.grad = torch.tensor([0.5])
        sgd.step(progress(step))
        for number, group in enumerate(groups):
            if step < group.frozen_epochs:
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
        form="larc",
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
    lars = Lars([weight], form="larc", lr=0.1)
    stored = lars.state_dict()
    del stored["param_groups"][0]["adapted"]
    lars.load_state_dict(stored)
    weight.grad = torch.tensor([0.0, 2.0])
    lars.step()
    moved = (torch.tensor([3.0, 4.0]) - weight.detach()).norm()
    assert moved == pytest.approx(0.1 * 0.001 * 5.0, rel=1e-3)
