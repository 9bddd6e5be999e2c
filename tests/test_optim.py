"""LARS, LARC and AdamW: against their definitions, other libraries and themselves after a resume."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm.optim
import torch
from conftest import CPU, progress
from test_resume import assert_same_state
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastsimsiam.cli import main
from fastsimsiam.config.methods import SimSiamConfig
from fastsimsiam.config.optimizer import OptimizerConfig
from fastsimsiam.config.run import Config
from fastsimsiam.errors import UserError
from fastsimsiam.methods.base import ParameterGroup
from fastsimsiam.methods.registry import build_method
from fastsimsiam.models.heads import mlp
from fastsimsiam.optim.build import build_optimizer, split_bias_and_norm
from fastsimsiam.optim.lars import Lars
from fastsimsiam.optim.scheduled import ScheduledOptimizer
from fastsimsiam.runs.archive import DamagedCheckpointError
from fastsimsiam.runs.checkpoint import CheckpointStore, load
from fastsimsiam.train.pretrain import pretrain
from fastsimsiam.train.resume import require_restorable

NAMES: tuple[Any, ...] = ("sgd", "lars", "larc", "adamw")
SHAPES = ((4, 3), (3,), (2, 3, 3, 3), (5,), (3, 4), (4,))
LR = ((0.5, 1.0), (0.25, 1.0), (0.125, 1.0), (0.25, 1.0), (0.5, 1.0))
"""Learning rates of five steps, that of the schedule and the peak; float32 holds them exactly."""


def weights_and_groups() -> tuple[list[nn.Parameter], list[ParameterGroup]]:
    """A matrix, a vector, filters, zeros; with all flags of groups."""
    rng = np.random.default_rng(0)
    weights = [nn.Parameter(torch.from_numpy(rng.normal(size=shape))) for shape in SHAPES]
    nn.init.zeros_(weights[3])
    return weights, [
        ParameterGroup(parameters=weights[:2]),
        ParameterGroup(parameters=weights[2:4], lr_factor=2.0, frozen_epochs=2),
        ParameterGroup(parameters=weights[4:5], constant_lr=True, decayed=False),
        ParameterGroup(parameters=weights[5:], adapted=False),
    ]


def gradients(step: int) -> list[np.ndarray]:
    """One for each weight; that of the first is zero in the third step."""
    rng = np.random.default_rng(1 + step)
    made = [rng.normal(size=shape) for shape in SHAPES]
    made[0] *= step != 2
    return made


def train(optimizer: ScheduledOptimizer, weights: Sequence[nn.Parameter], steps: range) -> None:
    """Some steps with the gradients and learning rates from above."""
    for step in steps:
        for weight, gradient in zip(weights, gradients(step), strict=True):
            weight.grad = torch.from_numpy(gradient).to(weight.dtype)
        optimizer.set_lr(*LR[step])
        optimizer.step(progress(step))
        assert all(weight.grad is None for weight in weights)


def adapted_update(name: str, w: np.ndarray, g: np.ndarray, decay: float) -> np.ndarray:
    """What enters the momentum of an adapted tensor, with trust 0.02."""
    if name == "lars":
        u = g + decay * w
        norm_w, norm_u = np.linalg.norm(w), np.linalg.norm(u)
        return u if norm_w == 0 or norm_u == 0 else 0.02 * norm_w / norm_u * u
    norm_w, norm_g = np.linalg.norm(w), np.linalg.norm(g)
    if norm_w == 0 or norm_g == 0:
        return g  # apex skips the decay, too
    return 0.02 * norm_w / (norm_g + decay * norm_w + 1e-8) * (g + decay * w)


@pytest.mark.parametrize(("exclude", "beta"), [(False, 0.75), (True, 0.75), (False, 0.0)])
@pytest.mark.parametrize("name", ["lars", "larc"])
def test_lars_equals_its_definition(name: Any, exclude: bool, beta: float) -> None:
    """In float64, with a frozen group, exempt ones, zero weights, a zero gradient, a changing lr."""
    weights, groups = weights_and_groups()
    own = [weight.detach().numpy().copy() for weight in weights]
    momentum = [np.zeros_like(w) for w in own]
    config = OptimizerConfig(
        name=name, trust=0.02, momentum=beta, weight_decay=0.1, exclude_bias_and_norm=exclude
    )
    train(build_optimizer(groups, config, CPU), weights, range(5))
    owner = [0, 0, 1, 1, 2, 3]
    for step, (scheduled, peak) in enumerate(LR):
        for number, gradient in enumerate(gradients(step)):
            group = groups[owner[number]]
            if step < group.frozen_epochs:
                continue
            exempt = exclude and own[number].ndim <= 1
            decay = 0.1 if group.decayed and not exempt else 0.0
            if group.adapted and not exempt:
                update = adapted_update(name, own[number], gradient, decay)
            else:
                update = gradient + decay * own[number]
            momentum[number] = beta * momentum[number] + update
            lr = (peak if group.constant_lr else scheduled) * group.lr_factor
            own[number] = own[number] - lr * momentum[number]
    for weight, expected in zip(weights, own, strict=True):
        np.testing.assert_allclose(weight.detach().numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("name", ["lars", "larc"])
def test_lars_equals_timms(name: Any) -> None:
    """The ratio of timm's is that of LARC; and of LARS, where the gradient holds the decay already."""
    weights = weights_and_groups()[0]
    twins = [nn.Parameter(weight.detach().clone()) for weight in weights]
    lars = Lars(weights, form=name, lr=0.5, weight_decay=0.1)
    decay, epsilon = (0.0, 0.0) if name == "lars" else (0.1, 1e-8)
    theirs = timm.optim.Lars(
        twins, lr=0.5, momentum=0.9, weight_decay=decay, eps=epsilon, always_adapt=True
    )
    for step in (0, 1, 3, 4):  # without the zero gradient, which timm decays, unlike apex
        for optimizer in (lars, theirs):
            optimizer.param_groups[0]["lr"] = LR[step][0]
        for weight, twin, gradient in zip(weights, twins, gradients(step), strict=True):
            weight.grad = torch.from_numpy(gradient)
            twin.grad = weight.grad + (0.1 - decay) * twin.detach()
        lars.step()
        theirs.step()
    for weight, twin in zip(weights, twins, strict=True):
        torch.testing.assert_close(weight, twin, rtol=1e-10, atol=0)


@pytest.mark.parametrize("exclude", [False, True])
def test_adamw_equals_torchs_and_its_definition(exclude: bool) -> None:
    """That of torch, tensor by tensor, and arXiv 1711.05101, algorithm 2, in NumPy."""
    weights, groups = weights_and_groups()
    own = [weight.detach().numpy().copy() for weight in weights]
    means, squares, counts = ([0.0 * w for w in own], [0.0 * w for w in own], [0] * len(own))
    twins = [nn.Parameter(weight.detach().clone()) for weight in weights]
    owner = [groups[number] for number in (0, 0, 1, 1, 2, 3)]
    decays = [
        0.1 if group.decayed and not (exclude and weight.ndim <= 1) else 0.0
        for group, weight in zip(owner, weights, strict=True)
    ]
    theirs = torch.optim.AdamW(
        [
            {"params": twin, "weight_decay": decay}
            for twin, decay in zip(twins, decays, strict=True)
        ],
        betas=(0.75, 0.98),
        foreach=False,
    )
    config = OptimizerConfig(
        name="adamw", momentum=0.75, beta2=0.98, weight_decay=0.1, exclude_bias_and_norm=exclude
    )
    train(build_optimizer(groups, config, CPU), weights, range(5))
    for step, (scheduled, peak) in enumerate(LR):
        for i, gradient in enumerate(gradients(step)):
            lr = (peak if owner[i].constant_lr else scheduled) * owner[i].lr_factor
            frozen = step < owner[i].frozen_epochs
            twins[i].grad = None if frozen else torch.from_numpy(gradient)
            theirs.param_groups[i]["lr"] = lr
            if frozen:
                continue
            counts[i] += 1
            means[i] = 0.75 * means[i] + 0.25 * gradient
            squares[i] = 0.98 * squares[i] + 0.02 * gradient**2
            mean, square = means[i] / (1 - 0.75 ** counts[i]), squares[i] / (1 - 0.98 ** counts[i])
            own[i] = own[i] - lr * (mean / (np.sqrt(square) + 1e-8) + decays[i] * own[i])
        theirs.step()
    for weight, twin, expected in zip(weights, twins, own, strict=True):
        torch.testing.assert_close(weight, twin, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(weight.detach().numpy(), expected, rtol=1e-6, atol=1e-9)


def float32_run(config: OptimizerConfig) -> tuple[list[nn.Parameter], ScheduledOptimizer]:
    """The weights from above in float32, and their optimizer."""
    weights, groups = weights_and_groups()
    for weight in weights:
        weight.data = weight.data.float()
    return weights, build_optimizer(groups, config, CPU)


@pytest.mark.parametrize("name", NAMES)
def test_a_restored_optimizer_goes_on_to_the_bit(name: Any, tmp_path: Path) -> None:
    """Its lr still follows the schedule; of the stored settings none counts."""
    config = OptimizerConfig(name=name, exclude_bias_and_norm=True)
    whole, optimizer = float32_run(config)
    train(optimizer, whole, range(3))
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    resumed, other = float32_run(config)
    for weight, value in zip(resumed, whole, strict=True):
        weight.data.copy_(value.data)
    stored = torch.load(tmp_path / "state.pt", weights_only=True)
    stored["param_groups"][0]["weight_decay"] = 7.0
    other.load_state_dict(stored)
    train(optimizer, whole, range(3, 5))
    train(other, resumed, range(3, 5))
    for weight, value in zip(resumed, whole, strict=True):
        assert torch.equal(weight, value)
    assert not torch.equal(whole[0].float(), weights_and_groups()[0][0].float())


@pytest.mark.parametrize("name", ["lars", "adamw"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    tiny_config: Config, tmp_path: Path, name: Any
) -> None:
    config = replace(
        tiny_config,
        arch="micro_resnet",
        optimizer=OptimizerConfig(
            name=name, lr=0.01, exclude_bias_and_norm=True, schedule="step", warmup_epochs=0.5
        ),
        max_steps=5,
    )
    pretrain(replace(config, max_steps=2))
    pretrain(config, resume=True)
    whole = replace(config, out=tmp_path / "whole")
    pretrain(whole)
    one, two = (CheckpointStore(run.out, keep=1).paths()[-1] for run in (config, whole))
    assert "resumed at step 2" in (config.out / "log.txt").read_text()
    assert_same_state(one, two)


def test_a_checkpoint_of_another_optimizer_is_one_line(tiny_config: Config) -> None:
    config = replace(tiny_config, arch="micro_resnet", max_steps=1)
    pretrain(config)
    other = replace(config, optimizer=replace(config.optimizer, name="lars"))
    with pytest.raises(UserError, match=re.escape("optimizer.name (sgd -> lars); give the old")):
        pretrain(other, resume=True)
    path = CheckpointStore(config.out, keep=1).paths()[-1]
    checkpoint = load(path)
    require_restorable(path, checkpoint)
    for optimizer in (
        replace(config.optimizer, name="lars"),
        replace(config.optimizer, name="adamw"),
        replace(config.optimizer, exclude_bias_and_norm=True),
    ):
        forged = replace(checkpoint, config=replace(config, optimizer=optimizer))
        with pytest.raises(DamagedCheckpointError, match="optimizer's state is not that of its"):
            require_restorable(path, forged)


def test_a_state_of_adamw_that_no_run_has_written_is_refused(tiny_config: Config) -> None:
    optimizer = OptimizerConfig(name="adamw", lr=0.01)
    config = replace(tiny_config, arch="micro_resnet", max_steps=1, optimizer=optimizer)
    pretrain(config)
    path = CheckpointStore(config.out, keep=1).paths()[-1]
    changes: list[Callable[[dict[str, Any]], object]] = [
        lambda state: state.pop("exp_avg"),
        lambda state: state.update(exp_avg=0.5),
        lambda state: state.update(exp_avg_sq=torch.zeros(())),
        lambda state: state.update(more=torch.zeros(())),
        lambda state: state["step"].fill_(torch.inf),
    ]
    for change in changes:
        checkpoint = load(path)
        require_restorable(path, checkpoint)
        change(checkpoint.optimizer["state"][0])
        with pytest.raises(DamagedCheckpointError, match="optimizer's state is not that of its"):
            require_restorable(path, checkpoint)


class Operations(TorchDispatchMode):
    """Counts the operations that reach ATen."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


def operations(name: Any, tensors: int) -> Counter[str]:
    """The operations of an optimizer's second step, with two groups of `tensors` matrices each."""
    groups = [
        ParameterGroup(parameters=[nn.Parameter(torch.ones(2, 3)) for _ in range(tensors)])
        for _ in range(2)
    ]
    optimizer = build_optimizer(groups, OptimizerConfig(name=name), CPU)
    for step in range(2):
        for group in groups:
            for parameter in group.parameters:
                parameter.grad = torch.ones(2, 3)
        with Operations() as counted:
            optimizer.set_lr(0.1, 0.1)
            optimizer.step(progress(step))
    return counted.counts


@pytest.mark.parametrize("name", ["lars", "larc"])
def test_lars_has_no_loop_over_tensors_and_reads_nothing(name: Any) -> None:
    few, many = operations(name, 2), operations(name, 50)
    assert few == many
    assert few["aten._foreach_norm.Scalar"] == 4
    assert few["aten._local_scalar_dense.default"] == 0
    assert sum(many.values()) < 50


@pytest.mark.parametrize("name", ["lars", "adamw"])
def test_a_compiled_step_is_the_same(name: Any) -> None:
    """Compiled in the fourth step: the state of all groups is there."""
    torch._dynamo.reset()
    config = OptimizerConfig(name=name, exclude_bias_and_norm=True)
    plain, optimizer = float32_run(config)
    train(optimizer, plain, range(4))
    compiled, optimizer = float32_run(config)
    train(optimizer, compiled, range(3))
    optimizer.step = torch.compile(optimizer.step, backend="aot_eager")  # type: ignore[method-assign]
    train(optimizer, compiled, range(3, 4))
    for weight, expected in zip(compiled, plain, strict=True):
        torch.testing.assert_close(weight, expected)


def test_biases_and_norms_of_networks_and_heads_are_split_off(tiny_config: Config) -> None:
    method = build_method(
        replace(tiny_config, arch="resnet18", method=SimSiamConfig(projector_dim=32))
    )
    method.other = mlp([8, 8, 4], hidden_bias=True, output_norm="scale", output_bias=False)
    groups = [*method.parameter_groups(), ParameterGroup(parameters=[*method.other.parameters()])]
    split = split_bias_and_norm(groups)
    assert [group.constant_lr for group in split] == [False, False, True, True, False, False]
    assert [group.adapted for group in split] == [group.decayed for group in split]
    exempt: set[Tensor] = set()
    for module in method.modules():
        own = dict(module.named_parameters(recurse=False))
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            exempt |= set(own.values())
        else:
            assert isinstance(module, (nn.Conv2d, nn.Linear)) or not own
            exempt |= {own["bias"]} if "bias" in own else set()
    found = {p for group in split if not group.adapted for p in group.parameters}
    assert found == exempt
    kept = {p for group in split if group.adapted for p in group.parameters}
    assert kept | found == set(method.parameters())
    assert len(found) > 40 < len(kept) + 20
    plain = ParameterGroup(parameters=[nn.Parameter(torch.ones(2, 2))], lr_factor=3.0)
    assert split_bias_and_norm([plain]) == [plain]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"momentum": 1.0}, "optimizer.momentum is 1: give 0 to below 1"),
        ({"beta2": 1.0}, "optimizer.beta2 is 1: give 0 to below 1"),
        ({"trust": 0.0}, "optimizer.trust is 0: give 1e-09 or more"),
        ({"warmup_start_factor": 1.5}, "optimizer.warmup_start_factor is 1.5: give 1 or less"),
        (
            {"warmup_start_factor": 0.5},
            "optimizer.warmup_start_factor is 0.5: give 0, or warmup_epochs above 0",
        ),
        ({"final_lr_factor": -0.1}, "optimizer.final_lr_factor is -0.1: give 0 or more"),
        ({"decay": "milestones"}, "optimizer.milestones is empty: give one epoch or more"),
        ({"milestones": (3,)}, "optimizer.decay is cosine: give milestones"),
        (
            {"decay": "milestones", "milestones": (160, 120)},
            "optimizer.milestones is (160, 120): give ascending epochs",
        ),
        ({"decay": "milestones", "milestones": (0,)}, "optimizer.milestones is 0: give 1 or more"),
        (
            {"decay": "milestones", "milestones": (3,), "final_lr_factor": 0.1},
            "optimizer.final_lr_factor is 0.1: give 0",
        ),
    ],
)
def test_wrong_options_are_one_line(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=re.escape(reason)) as caught:
        OptimizerConfig(**options)
    assert "\n" not in str(caught.value)


def test_wrong_options_of_the_command_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ("--optimizer.name adam", "--optimizer.decay milestones", "--optimizer.trust x"):
        assert main(["pretrain", "imagenette", *words.split()]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "optimizer" in line


def test_the_command_takes_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["pretrain", "imagenette", "--help"])
    text = capsys.readouterr().out
    for name in vars(OptimizerConfig()):
        assert f"--optimizer.{name.replace('_', '-')}" in text
