"""BYOL with and without a momentum encoder: loss, target, what is trained, what is evaluated."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import save_run
from lightly.loss import NegativeCosineSimilarity
from test_trainer import trainer
from torch import nn
from two_ranks import backbone, different_target, some_views

from fastsimsiam.config.methods import BYOLConfig, BYOLNoMomentumConfig
from fastsimsiam.config.optimizer import OptimizerConfig
from fastsimsiam.config.run import Config
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.pretrained import load_backbone
from fastsimsiam.methods.base import Method, Progress
from fastsimsiam.methods.byol import BYOL, BYOLNoMomentum
from fastsimsiam.methods.losses import normalized_distance
from fastsimsiam.methods.registry import build_method, check_method
from fastsimsiam.methods.target import TargetNetwork, cosine_tau
from fastsimsiam.recipes import catalogue
from fastsimsiam.runs.checkpoint import load

NARROW = {"hidden_dim": 24, "projection_dim": 8}
LABELS = torch.zeros(6, dtype=torch.int64)


def naive_distance(p: np.ndarray, z: np.ndarray) -> float:
    """Mean squared distance of the vectors on the unit sphere, element by element."""
    total = 0.0
    for a, b in zip(p, z, strict=True):
        a_length = sum(float(x) ** 2 for x in a) ** 0.5
        b_length = sum(float(x) ** 2 for x in b) ** 0.5
        total += sum((x / a_length - y / b_length) ** 2 for x, y in zip(a, b, strict=True))
    return total / len(p)


def numeric_gradient(function: Callable[[np.ndarray], float], at: np.ndarray) -> np.ndarray:
    """Central differences in float64."""
    gradient, step = np.empty_like(at), 1e-5
    for index in np.ndindex(*at.shape):
        moved = at.copy()
        moved[index] += step
        above = function(moved)
        moved[index] -= 2 * step
        gradient[index] = (above - function(moved)) / (2 * step)
    return gradient


@pytest.mark.parametrize("shape", [(1, 2), (7, 5), (16, 32)])
def test_the_distance_and_its_gradient_are_the_papers(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    p, z = rng.normal(size=shape), rng.normal(size=shape)
    p_tensor = torch.tensor(p, dtype=torch.float32, requires_grad=True)
    loss = normalized_distance(p_tensor, torch.tensor(z))
    loss.backward()
    assert loss.item() == pytest.approx(naive_distance(p, z), abs=1e-6)
    expected = numeric_gradient(lambda moved: naive_distance(moved, z), p)
    np.testing.assert_allclose(p_tensor.grad, expected, atol=1e-6)
    theirs = NegativeCosineSimilarity()(torch.tensor(p), torch.tensor(z)).item()
    assert loss.item() == pytest.approx(2 + 2 * theirs, abs=1e-6)


def test_short_vectors_are_limited_as_in_the_official_code() -> None:
    """The square of the length is at least 1e-12: shorter vectors stay shorter than 1."""
    p, z = torch.tensor([[1e-7, 0.0]]), torch.tensor([[0.0, 2.0]])
    assert normalized_distance(p, z).item() == pytest.approx(1 + 0.1**2)
    zero = torch.zeros(1, 2, requires_grad=True)
    loss = normalized_distance(zero, z)
    loss.backward()
    assert loss.item() == pytest.approx(1)
    assert zero.grad.isfinite().all()


def test_half_precision_changes_nothing_but_the_inputs() -> None:
    p, z = torch.randn(16, 64).bfloat16(), torch.randn(16, 64).bfloat16()
    expected = normalized_distance(p.float(), z.float())
    with torch.autocast("cpu", torch.bfloat16):
        loss = normalized_distance(p, z)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)


def byol(**options: object) -> BYOL:
    torch.manual_seed(0)
    return BYOL(backbone(), 12, BYOLConfig(**(NARROW | options)))


def no_momentum(**options: object) -> BYOLNoMomentum:
    torch.manual_seed(0)
    return BYOLNoMomentum(backbone(), 12, BYOLNoMomentumConfig(**(NARROW | options)))


@pytest.mark.parametrize("make", [byol, no_momentum])
@pytest.mark.parametrize(("turned", "expected"), [(0, 0.0), (1, 4.0), (2, 8.0)])
def test_anchors(make: Callable[[], Method], turned: int, expected: float) -> None:
    """Equal outputs: 0; orthogonal: 4; opposite: 8. Both directions are added, not averaged."""
    method = make()
    method.backbone = nn.Flatten()
    method.projector = method.predictor = nn.Identity()
    if isinstance(method, BYOL):
        method.target = TargetNetwork(method.backbone, method.projector)
    quarter = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    views = torch.randn(6, 2), torch.randn(6, 2)
    views = (views[0], 3 * views[0] @ torch.linalg.matrix_power(quarter, turned))
    loss, _ = method(views, LABELS)
    assert loss.item() == pytest.approx(expected, abs=1e-5)


def test_each_view_predicts_the_target_of_the_other() -> None:
    views = some_views()
    method, same = different_target(byol()), different_target(byol())
    loss, metrics = method(views, LABELS)
    p = [same.predictor(same.projector(same.backbone(view))).detach().double() for view in views]
    z = [same.target.projector(same.target.backbone(view)).double() for view in views]
    expected = naive_distance(p[0].numpy(), z[1].numpy()) + naive_distance(
        p[1].numpy(), z[0].numpy()
    )
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    averaged = NegativeCosineSimilarity()
    theirs = (averaged(p[0], z[1]) + averaged(p[1], z[0])) / 2
    assert loss.item() == pytest.approx(4 + 4 * theirs.item(), abs=1e-5)
    assert 0 < metrics["collapse_std"] < 1.2


def test_without_momentum_it_is_byol_whose_target_is_a_fresh_copy() -> None:
    views, networks = some_views(), (byol(), no_momentum())
    losses = [network(views, LABELS)[0] for network in networks]
    torch.testing.assert_close(losses[0], losses[1])
    for loss in losses:
        loss.backward()
    with_copy, without = (
        {name: p.grad for name, p in network.named_parameters() if p.requires_grad}
        for network in networks
    )
    assert with_copy.keys() == without.keys()
    for name, gradient in without.items():
        torch.testing.assert_close(gradient, with_copy[name], msg=name)
    assert not any("target" in name for name in networks[1].state_dict())


def test_no_gradient_reaches_the_target() -> None:
    method = byol()
    method(some_views(), LABELS)[0].backward()
    assert all(p.grad is None for p in method.target.parameters())
    trained = {p for group in method.parameter_groups() for p in group.parameters}
    assert not trained & set(method.target.parameters())


def test_heads_are_the_official_ones() -> None:
    method = BYOL(nn.Identity(), 2048, BYOLConfig())
    for head, inputs in ((method.projector, 2048), (method.predictor, 256)):
        kinds = [type(layer).__name__ for layer in head]
        assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
        assert head[0].weight.shape == (4096, inputs)
        assert head[3].weight.shape == (256, 4096)
        assert head[0].bias is not None
        assert head[3].bias is None


def test_learning_rates_of_the_heads_have_their_factors() -> None:
    method = no_momentum(predictor_lr_factor=7.0, projector_lr_factor=3.0)
    groups = method.parameter_groups()
    assert [group.lr_factor for group in groups] == [1.0, 3.0, 7.0]
    assert set(groups[2].parameters) == set(method.predictor.parameters())
    assert set(groups[1].parameters) == set(method.projector.parameters())
    assert not any(group.constant_lr for group in groups)
    assert BYOLNoMomentumConfig().predictor_lr_factor == 10


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BYOLConfig(momentum=1.5), "method.momentum is 1.5: give 1 or less"),
        (lambda: BYOLConfig(hidden_dim=0), "method.hidden_dim is 0: give 1 or more"),
        (
            lambda: BYOLNoMomentumConfig(predictor_lr_factor=-1.0),
            "method.predictor_lr_factor is -1",
        ),
    ],
)
def test_wrong_options_are_one_line(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_more_than_two_views_are_refused(tiny_config: Config) -> None:
    config = replace(tiny_config, method=BYOLConfig(), views=tiny_config.views * 2)
    with pytest.raises(UserError, match="byol is defined for 2"):
        check_method(config)


def test_a_collapse_is_told_with_the_options_to_change() -> None:
    collapsed = {"loss": 0.02, "collapse_std": 0.05}
    told = BYOL.warning(collapsed, 256)
    assert told is not None
    assert "--method.momentum" in told
    told = BYOLNoMomentum.warning(collapsed, 256)
    assert told is not None
    assert "--method.predictor-lr-factor" in told
    for method in (BYOL, BYOLNoMomentum):
        assert method.warning({"loss": 0.3, "collapse_std": 0.8}, 256) is None
        assert method.warning({"loss": 3.8, "collapse_std": 0.05}, 256) is None


@pytest.fixture
def config(tiny_config: Config) -> Config:
    """BYOL in 12 steps of two parts of 8 images each."""
    return replace(
        tiny_config,
        method=BYOLConfig(momentum=0.5, hidden_dim=32, projection_dim=16),
        optimizer=OptimizerConfig(lr=0.2),
        views=catalogue.recipe("byol-imagenette").views,
        accumulate=2,
    )


def test_the_target_follows_once_per_step_of_the_optimizer(config: Config) -> None:
    """The exact recursion in float64, over steps whose gradients are accumulated."""
    made, recorder = trainer(config)
    method = made.method
    assert isinstance(method, BYOL)
    online = [*method.backbone.parameters(), *method.projector.parameters()]
    expected = [p.detach().numpy().astype(np.float64) for p in method.target.parameters()]
    taus = []

    def follow() -> None:
        at = Progress(step=made.step - 1, steps_per_epoch=6, total_steps=12)
        tau = cosine_tau(0.5, at)
        taus.append(tau)
        for number, parameter in enumerate(online):
            new = parameter.detach().numpy().astype(np.float64)
            expected[number] = tau * expected[number] + (1 - tau) * new

    made.after_step = follow
    made.schedule_steps = replace(made.schedule_steps, stop=4)
    made.fit()
    recorder.close()
    made.loader.close()
    assert taus[0] == 0.5
    assert taus[3] == pytest.approx(1 - 0.5 * (1 + 0.5**0.5) / 2)
    start = build_method(config).target.parameters()
    moved = 0.0
    for target, value, before in zip(method.target.parameters(), expected, start, strict=True):
        np.testing.assert_allclose(target.numpy(), value, atol=1e-6)
        moved = max(moved, (target - before).abs().max().item())
    assert moved > 1e-3
    # Four steps of two parts of two views, each of which BatchNorm has seen by itself.
    assert method.target.backbone.bn1.num_batches_tracked == 4 * 2 * 2


def test_resumed_the_target_is_the_same_to_the_bit(config: Config) -> None:
    whole, recorder = trainer(config)
    whole.schedule_steps = replace(whole.schedule_steps, stop=4)
    whole.fit()
    recorder.close()
    whole.loader.close()
    resumed, recorder = trainer(replace(config, out=config.out.with_name("resumed")))
    resumed.restore(load(config.out / "checkpoints" / "step-00000003.pt"))
    resumed.schedule_steps = whole.schedule_steps
    resumed.fit()
    recorder.close()
    resumed.loader.close()
    assert resumed.step == 4
    expected, state = whole.method.state_dict(), resumed.method.state_dict()
    assert not torch.equal(
        expected["target.backbone.conv1.weight"], expected["backbone.conv1.weight"]
    )
    for name, value in expected.items():
        assert torch.equal(state[name], value), name


def test_the_online_network_is_evaluated(config: Config) -> None:
    (path,) = save_run(config, steps=(1,))
    content = torch.load(path, weights_only=True)
    for name, value in content["method"].items():
        if name.startswith("target."):
            value.add_(1)  # a target that has gone its own way
    torch.save(content, path)
    state = content["method"]
    loaded = load_backbone(path).state_dict()
    for name, value in loaded.items():
        assert torch.equal(value, state[f"backbone.{name}"]), name
    assert not torch.equal(loaded["conv1.weight"], state["target.backbone.conv1.weight"])


def test_a_batch_of_4096_is_16_parts_of_256() -> None:
    for name in ("byol-imagenet-200ep", "byol-no-momentum-imagenet-300ep"):
        made = catalogue.recipe(name)
        assert (made.batch_size, made.accumulate) == (4096, 16)
        check_method(made)
        optimizer = made.optimizer
        assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == ("lars", 0.3, 1e-6)
        assert optimizer.exclude_bias_and_norm
        assert (optimizer.warmup_epochs, optimizer.schedule) == (10, "step")
        assert [view.blur for view in made.views] == [1.0, 0.1]
        assert [view.solarize for view in made.views] == [0.0, 0.2]
        assert {view.interpolation for view in made.views} == {"bicubic"}
        assert {view.area for view in made.views} == {(0.08, 1.0)}
    assert catalogue.recipe("byol-imagenet-100ep").optimizer.lr == 0.45
