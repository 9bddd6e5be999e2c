"""MoCo v3: loss, negatives of all ranks, what is trained, what is evaluated."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import save_run
from pytorch_metric_learning.losses import NTXentLoss
from test_byol import numeric_gradient
from torch import nn
from two_ranks import different_target, moco_v3, some_views, train_half

from fastsimsiam.config.methods import MoCoV3Config
from fastsimsiam.config.run import Config
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.pretrained import load_backbone
from fastsimsiam.methods.base import Progress
from fastsimsiam.methods.losses import batch_info_nce
from fastsimsiam.methods.moco_v3 import MoCoV3
from fastsimsiam.methods.registry import check_method
from fastsimsiam.methods.target import TargetNetwork
from fastsimsiam.recipes import catalogue

LABELS = torch.zeros(6, dtype=torch.int64)


def naive_loss(query: np.ndarray, keys: np.ndarray, temperature: float, first: int) -> float:
    """Cross-entropy of each query's key among all keys, term by term."""
    total = 0.0
    for row, q in enumerate(query):
        logits = [
            float(q @ k) / (float(q @ q) ** 0.5 * float(k @ k) ** 0.5) / temperature for k in keys
        ]
        total += math.log(sum(math.exp(logit) for logit in logits)) - logits[first + row]
    return total / len(query)


@pytest.mark.parametrize("temperature", [1.0, 0.2])
@pytest.mark.parametrize(("batch", "num_keys", "first"), [(2, 2, 0), (5, 5, 0), (4, 12, 8)])
def test_the_loss_and_its_gradient_are_the_papers(
    batch: int, num_keys: int, first: int, temperature: float
) -> None:
    rng = np.random.default_rng(0)
    query, keys = rng.normal(size=(batch, 16)), rng.normal(size=(num_keys, 16))
    tensor = torch.tensor(query, dtype=torch.float32, requires_grad=True)
    options = {"temperature": temperature, "first": first}
    loss, _ = batch_info_nce(tensor, torch.tensor(keys), **options)
    loss.backward()
    assert loss.item() == pytest.approx(naive_loss(query, keys, **options), abs=1e-6)
    expected = numeric_gradient(lambda moved: naive_loss(moved, keys, **options), query)
    np.testing.assert_allclose(tensor.grad, expected, atol=1e-6)
    library = NTXentLoss(temperature=temperature)(
        torch.tensor(query),
        torch.arange(first, first + batch),
        ref_emb=torch.tensor(keys),
        ref_labels=torch.arange(num_keys),
    )
    assert loss.item() == pytest.approx(library.item(), abs=1e-6)


def test_half_precision_changes_nothing_but_the_inputs() -> None:
    query, keys = torch.randn(16, 64).bfloat16(), torch.randn(16, 64).bfloat16()
    expected, _ = batch_info_nce(query.float(), keys.float(), temperature=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = batch_info_nce(query, keys, temperature=0.1)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_both_directions_are_added_each_times_twice_the_temperature(temperature: float) -> None:
    views = some_views()
    method, same = (different_target(moco_v3(temperature=temperature)) for _ in range(2))
    loss, metrics = method(views, LABELS)
    q, k = (
        [network(view).detach().double().numpy() for view in views]
        for network in (
            lambda view: same.predictor(same.projector(same.backbone(view))),
            lambda view: same.target.projector(same.target.backbone(view)),
        )
    )
    expected = 2 * temperature * naive_loss(q[0], k[1], temperature, 0)
    expected += 2 * temperature * naive_loss(q[1], k[0], temperature, 0)
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    assert 0.5 < metrics["collapse_std"] < 1.1  # behind a BatchNorm


def test_equal_outputs_have_the_loss_of_a_guess() -> None:
    method = moco_v3(temperature=0.5)
    method.backbone = nn.Flatten()
    method.projector = method.predictor = nn.Identity()
    method.target = TargetNetwork(method.backbone, method.projector)
    loss, metrics = method((torch.ones(6, 4), torch.ones(6, 4)), LABELS)
    assert loss.item() == pytest.approx(4 * 0.5 * math.log(6), abs=1e-6)
    told = MoCoV3.warning({"loss": loss.item(), **{k: v.item() for k, v in metrics.items()}}, 6)
    assert told is not None


def test_accuracy_is_the_share_of_nearest_keys_that_are_their_own() -> None:
    keys = torch.eye(4)
    query = torch.tensor([[3.0, 1, 0, 0], [1, 2, 0, 0], [0, 0, 1, 2]])  # the last finds the fourth
    assert batch_info_nce(query, keys, temperature=1.0)[1] == pytest.approx(2 / 3)
    assert batch_info_nce(query[2:], keys, temperature=1.0, first=3)[1] == 1.0


def test_no_gradient_reaches_the_target_and_it_follows() -> None:
    method = moco_v3(momentum=0.75)
    method(some_views(), LABELS)[0].backward()
    assert all(p.grad is None for p in method.target.parameters())
    trained = {p for group in method.parameter_groups() for p in group.parameters}
    assert trained == {p for p in method.parameters() if p.requires_grad}
    before = method.target.projector[0].weight.clone()
    with torch.no_grad():
        method.projector[0].weight.add_(1.0)
    # Behind a step it is the momentum of the next one: half-way up the cosine, and at its end.
    for step, share in ((4, 0.125), (9, 0.0)):
        with torch.no_grad():
            method.target.projector[0].weight.copy_(before)
            method.before_step(Progress(step=step, steps_per_epoch=5, total_steps=10))
            method.after_step()
        torch.testing.assert_close(method.target.projector[0].weight, before + share)
    constant = moco_v3(momentum=0.75, momentum_schedule="constant")
    constant.before_step(Progress(step=9, steps_per_epoch=5, total_steps=10))
    with torch.no_grad():
        constant.projector[0].weight.add_(1.0)
    constant.after_step()
    torch.testing.assert_close(constant.target.projector[0].weight, before + 0.25)


def test_heads_are_the_official_ones() -> None:
    method = MoCoV3(nn.Identity(), 2048, MoCoV3Config())
    kinds = ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert [type(layer).__name__ for layer in method.projector] == [*kinds, "BatchNorm1d"]
    assert [type(layer).__name__ for layer in method.predictor] == kinds
    assert not method.projector[4].affine
    for head, inputs in ((method.projector, 2048), (method.predictor, 256)):
        assert head[0].weight.shape == (4096, inputs)
        assert head[3].weight.shape == (256, 4096)
        assert head[0].bias is None
        assert head[3].bias is None


def test_parts_of_a_batch_and_wrong_options_are_refused(tiny_config: Config) -> None:
    config = replace(tiny_config, method=MoCoV3Config(), accumulate=2)
    with pytest.raises(UserError, match="moco-v3 compares all images of a batch"):
        check_method(config)
    makers: list[Callable[[], object]] = [
        lambda: MoCoV3Config(temperature=0.0),
        lambda: MoCoV3Config(momentum=2.0),
        lambda: MoCoV3Config(projection_dim=0),
    ]
    for make in makers:
        with pytest.raises(UserError, match=r"^method\.\w+ is [\d.]+: give [^\n]+$"):
            make()


def test_a_collapse_is_told_with_the_options_to_change() -> None:
    told = MoCoV3.warning({"loss": 4 * math.log(256), "collapse_std": 0.05}, 256)
    assert told is not None
    assert "--optimizer.lr" in told
    assert MoCoV3.warning({"loss": 18.0, "collapse_std": 0.9}, 256) is None
    apart = {"loss": 10.0, "collapse_std": 0.15, "contrast_accuracy": 0.3}
    assert MoCoV3.warning(apart, 256) is None
    assert MoCoV3.warning({**apart, "contrast_accuracy": 1 / 256}, 256) is not None


def test_the_online_network_is_evaluated(tiny_config: Config) -> None:
    config = replace(tiny_config, method=MoCoV3Config(hidden_dim=32, projection_dim=16))
    (path,) = save_run(config, steps=(1,))
    content = torch.load(path, weights_only=True)
    state = content["method"]
    for name, value in state.items():
        if name.startswith("target."):
            value.add_(1)
    torch.save(content, path)
    loaded = load_backbone(path).state_dict()
    for name, value in loaded.items():
        assert torch.equal(value, state[f"backbone.{name}"]), name


def test_the_recipe_is_the_published_one() -> None:
    made = catalogue.recipe("moco-v3-imagenet-100ep")
    optimizer = made.optimizer
    assert (made.batch_size, made.accumulate, made.epochs) == (4096, 1, 100)
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == ("lars", 0.6, 1e-6)
    assert optimizer.exclude_bias_and_norm
    assert {(view.area, view.interpolation) for view in made.views} == {((0.2, 1.0), "bilinear")}
    assert [(view.blur, view.solarize) for view in made.views] == [(1.0, 0.0), (0.1, 0.2)]


def test_two_ranks_have_the_loss_and_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(train_half, args=(str(tmp_path),), nprocs=2)
