"""MoCo: its loss, its keys, its queue, and that query and key share no statistics."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import save_run
from lightly.loss import NTXentLoss
from queue_ranks import fill
from test_resume import assert_same_state, newest
from test_trainer import losses, trainer
from torch import Tensor, nn

from fastsimsiam.cli import main
from fastsimsiam.config.methods import MoCoConfig
from fastsimsiam.config.run import Config
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.pretrained import load_backbone
from fastsimsiam.methods.base import Progress
from fastsimsiam.methods.losses import queue_info_nce
from fastsimsiam.methods.moco import MoCo
from fastsimsiam.methods.registry import build_method
from fastsimsiam.methods.shuffle import permutation
from fastsimsiam.models.backbones import feature_extractor
from fastsimsiam.recipes import catalogue
from fastsimsiam.train.checks import require_possible
from fastsimsiam.train.pretrain import pretrain

LABELS = torch.zeros(8, dtype=torch.int64)
CPU = torch.device("cpu")


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    rows = rng.normal(size=shape)
    return rows / np.sqrt((rows**2).sum(axis=1, keepdims=True))


def naive_loss(
    query: np.ndarray, key: np.ndarray, queue: np.ndarray, temperature: float
) -> tuple[float, np.ndarray]:
    """Loss and gradient of the queries by loops, from the paper's equation 1."""
    total, gradient = 0.0, np.zeros_like(query)
    for row, (q, k) in enumerate(zip(query, key, strict=True)):
        candidates = [k, *queue]
        exponentials = [math.exp(float(q @ c) / temperature) for c in candidates]
        partition = sum(exponentials)
        total -= math.log(exponentials[0] / partition)
        gradient[row] = -k / temperature
        for c, e in zip(candidates, exponentials, strict=True):
            gradient[row] += e / partition * c / temperature
    return total / len(query), gradient / len(query)


@pytest.mark.parametrize("temperature", [0.07, 0.2])
@pytest.mark.parametrize("shape", [(1, 1, 2), (5, 3, 4), (16, 40, 32)])
def test_loss_and_gradient_are_the_papers(shape: tuple[int, int, int], temperature: float) -> None:
    batch, size, dim = shape
    rng = np.random.default_rng(0)
    query, key, queue = (
        unit(rng, rows, dim).astype(np.float32).astype(np.float64) for rows in (batch, batch, size)
    )
    q = torch.tensor(query, dtype=torch.float32, requires_grad=True)
    loss, accuracy = queue_info_nce(
        q, torch.tensor(key), torch.tensor(queue), temperature=temperature
    )
    loss.backward()
    expected, gradient = naive_loss(query, key, queue, temperature)
    # Near 9, where the loss is at the lower temperature, float32 has steps of 1e-6.
    assert loss.item() == pytest.approx(expected, abs=1e-6, rel=2e-7)
    # The temperature divides the gradient, and so multiplies its rounding.
    np.testing.assert_allclose(q.grad * temperature, gradient * temperature, atol=1e-6)
    nearer = [all(q @ k > q @ c for c in queue) for q, k in zip(query, key, strict=True)]
    assert accuracy.item() == pytest.approx(np.mean(nearer))


def test_loss_and_gradient_are_lightly_s() -> None:
    torch.manual_seed(0)
    theirs = NTXentLoss(temperature=0.2, memory_bank_size=(30, 8))
    queue = theirs.memory_bank.bank.clone()
    out, key = torch.randn(6, 8, requires_grad=True), torch.randn(6, 8)
    loss, _ = queue_info_nce(
        F.normalize(out, dim=1), F.normalize(key, dim=1), queue, temperature=0.2
    )
    expected = theirs(out, key)
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=0)
    ours, other = (torch.autograd.grad(value, out)[0] for value in (loss, expected))
    torch.testing.assert_close(ours, other, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [1, 4096, 65536])
def test_equal_similarities_have_the_loss_of_a_guess(size: int) -> None:
    same = F.normalize(torch.ones(3, 16), dim=1)
    loss, accuracy = queue_info_nce(same, same, same[:1].expand(size, 16), temperature=0.07)
    assert loss.item() == pytest.approx(math.log(size + 1), abs=1e-5)
    assert accuracy == 0


def test_a_loss_that_is_nearly_zero_is_exact() -> None:
    """The softplus has a linear branch; a far queue reaches it from the other side."""
    q = F.normalize(torch.ones(2, 4), dim=1)
    for queue, expected in ((-q, 0.0), (q, math.log(3.0))):
        loss, _ = queue_info_nce(q, q, queue, temperature=0.05)
        assert loss.item() == pytest.approx(expected, abs=1e-6)
    loss, _ = queue_info_nce(q, -q, q, temperature=0.05)
    assert loss.item() == pytest.approx(40 + math.log(2), abs=1e-5)


def test_autocast_changes_nothing() -> None:
    rng = np.random.default_rng(1)
    q, k, queue = (torch.tensor(unit(rng, n, 16)).float() for n in (4, 4, 50))
    expected, _ = queue_info_nce(q, k, queue, temperature=0.2)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = queue_info_nce(q, k, queue, temperature=0.2)
    assert torch.equal(loss, expected)


class Encoder(nn.Sequential):
    """Images (B, 3, 4, 4) to 12 features, with a BatchNorm."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 12, 4), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten())


def moco(**options: object) -> MoCo:
    """A small MoCo whose target is another network than the online one."""
    torch.manual_seed(0)
    small = {"projection_dim": 6, "queue_size": 20, "bn_group_size": 4}
    method = MoCo(Encoder(), 12, MoCoConfig(**(small | options)))
    with torch.no_grad():
        for number, parameter in enumerate(method.target.parameters()):
            wave = torch.sin(torch.arange(parameter.numel()).view_as(parameter) + number)
            parameter.add_(0.1 * wave)
    return method


def some_views(count: int = 8, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.rand(count, 3, 4, 4, generator=generator) for _ in range(2))
    return first, second


def at(step: int) -> Progress:
    return Progress(step=step, steps_per_epoch=10, total_steps=100)


def embedded(network: nn.Module, view: Tensor) -> np.ndarray:
    """Unit vectors of a view in float64, through networks in evaluation: each image by itself."""
    rows = network(view).detach().double().numpy()
    return rows / np.sqrt((rows**2).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("symmetric", ["off", "sum", "mean"])
def test_the_loss_is_of_queries_keys_and_the_queue_before_them(symmetric: str) -> None:
    views, method = some_views(), moco(symmetric=symmetric, temperature=0.3).eval()
    online = nn.Sequential(method.backbone, method.projector)
    q, k = ([embedded(network, view) for view in views] for network in (online, method.target))
    queue = method.queue.keys.double().numpy().copy()
    directions = [naive_loss(q[a], k[1 - a], queue, 0.3)[0] for a in (0, 1)]
    expected = {"off": directions[0], "sum": sum(directions), "mean": sum(directions) / 2}
    method.before_step(at(3))
    loss, metrics = method(views, LABELS)
    assert loss.item() == pytest.approx(expected[symmetric], abs=2e-6)
    assert 0 <= metrics["contrast_accuracy"] <= 1
    np.testing.assert_array_equal(method.queue.keys.double(), queue)
    # Keys enter behind the loss, both sets in the symmetric case, in the order of the images.
    method.after_part()
    new = k[1] if symmetric == "off" else np.concatenate([k[0], k[1]])
    np.testing.assert_allclose(method.queue.keys[: len(new)], new, atol=1e-6)
    np.testing.assert_array_equal(method.queue.keys[len(new) :].double(), queue[len(new) :])
    assert method.queue.pointer == len(new)


def test_keys_see_groups_of_the_shuffled_batch() -> None:
    """Keys, image by image, of a network that is called once per group."""
    views, method = some_views(12), moco(bn_group_size=4)
    method.before_step(at(5))
    order = permutation(method.shuffle_seed, 12, 1)
    assert order.tolist() != list(range(12))
    method(views, LABELS)
    reference = moco(bn_group_size=0)
    for group in range(3):
        images = order[4 * group : 4 * group + 4]
        keys = F.normalize(reference.target(views[1][images]), dim=1)
        torch.testing.assert_close(method.fresh_keys[images], keys)


def test_no_gradient_reaches_target_and_queue_and_the_target_follows() -> None:
    method = moco(momentum=0.75)
    method(some_views(), LABELS)[0].backward()
    assert all(p.grad is None for p in method.target.parameters())
    assert not method.fresh_keys.requires_grad
    assert not method.queue.keys.requires_grad
    trained = {p for group in method.parameter_groups() for p in group.parameters}
    assert all(p.grad is not None for p in trained)
    assert not trained & set(method.target.parameters())
    before = method.target.projector[0].weight.clone()
    running = method.target.backbone[1].running_mean.clone()
    method.after_step()
    expected = 0.75 * before + 0.25 * method.projector[0].weight
    torch.testing.assert_close(method.target.projector[0].weight, expected)
    assert torch.equal(method.target.backbone[1].running_mean, running)


def test_heads_are_those_of_v1_and_v2() -> None:
    (only,) = moco(projector_layers=1).projector
    assert only.bias is not None
    kinds = [type(layer) for layer in moco().projector]
    assert kinds == [nn.Linear, nn.ReLU, nn.Linear]
    assert [layer.bias is not None for layer in moco().projector[::2]] == [True, True]
    assert moco().projector[0].out_features == 12  # as wide as the features
    assert moco(hidden_dim=30).projector[0].out_features == 30


# Shared statistics of BatchNorm


def moved_together(make: Callable[[], MoCo], steps: int, *, ordered: bool = False) -> float:
    """How much query and key of an image are moved alike by other images of the batch.

    Both views are the same images, and the target equals the online network. One image after the other
    is changed, in both views. What that does to query and key of all others passes through the
    statistics of BatchNorm alone. The sum over all pairs of images of the product of both movements,
    over the root of the sums of squares, is 1 where query and key see the same statistics, and 0 where
    no image touches both.
    """
    generator = torch.Generator().manual_seed(1)
    view = torch.randn(16, 3, 4, 4, generator=generator)
    product = squares_q = squares_k = 0.0
    for step in range(steps):
        method = make()
        method.target.load_state_dict(
            {
                **{f"backbone.{k}": v for k, v in method.backbone.state_dict().items()},
                **{f"projector.{k}": v for k, v in method.projector.state_dict().items()},
            }
        )
        queries: list[Tensor] = []
        method.projector.register_forward_hook(lambda _m, _i, out, q=queries: q.append(out))
        method.before_step(at(step))
        if ordered:
            method._keys = lambda view, _number, m=method: F.normalize(m.target(view), dim=1)

        def both(images: Tensor, method: MoCo = method, queries: list[Tensor] = queries):
            with torch.no_grad():
                method((images, images), LABELS)
            return F.normalize(queries[-1], dim=1), method.fresh_keys

        query, key = both(view)
        for image in range(len(view)):
            changed = view.clone()
            changed[image] *= 3
            new_query, new_key = both(changed)
            others = torch.arange(len(view)) != image
            by_query, by_key = (new_query - query)[others], (new_key - key)[others]
            product += float((by_query * by_key).sum())
            squares_q += float(by_query.square().sum())
            squares_k += float(by_key.square().sum())
    return product / math.sqrt(squares_q * squares_k)


def test_plain_batch_norm_leaks_and_split_and_shuffled_does_not() -> None:
    assert moved_together(lambda: moco(bn_group_size=0), 1) > 0.99
    # Groups without a shuffle leak as much, and so does a shuffle without groups.
    assert moved_together(lambda: moco(bn_group_size=4), 1, ordered=True) > 0.99
    # Of the 3 other images in a group of 4, 3 / 15 are by chance in the key's group as well.
    assert moved_together(lambda: moco(bn_group_size=4), 12) < 0.35


def test_a_shuffle_within_one_group_changes_nothing() -> None:
    """Why the published code needs several GPUs, or groups."""
    method = moco(bn_group_size=0)
    view = some_views()[1]
    order = permutation(torch.tensor(7), 8)
    shuffled = method.target(view[order])[torch.argsort(order)]
    torch.testing.assert_close(shuffled, method.target(view))


# The shuffle


def test_the_order_of_keys_is_a_function_of_the_step() -> None:
    orders = {}
    for step in (0, 1, 2, 1000):
        for method in (moco(), moco()):
            method.before_step(at(step))
            order = permutation(method.shuffle_seed, 64, 1)
            assert sorted(order.tolist()) == list(range(64))
            assert orders.setdefault(step, order).equal(order)
    assert len({tuple(order.tolist()) for order in orders.values()}) == 4
    assert "shuffle_seed" not in moco().state_dict()  # nothing to resume
    # The two directions of a symmetric loss are shuffled differently.
    assert not torch.equal(orders[0], permutation(torch.tensor(0), 64, 0))
    one, other = (permutation(method.shuffle_seed, 64, number) for number in (0, 1))
    assert not torch.equal(one, other)


def test_every_place_is_as_likely_as_any_other() -> None:
    """Chi-squared of 2,000 permutations of 8, over images, places, and pairs of neighbors."""
    method, counts, pairs = moco(), np.zeros((8, 8)), np.zeros((8, 8))
    for step in range(2000):
        method.before_step(at(step))
        order = permutation(method.shuffle_seed, 8).tolist()
        counts[range(8), order] += 1
        pairs[order[:-1], order[1:]] += 1
    expected = 2000 / 8
    assert ((counts - expected) ** 2 / expected).sum() < 49 + 5 * math.sqrt(2 * 49)
    off_diagonal = pairs[~np.eye(8, dtype=bool)]
    expected = 2000 * 7 / 56
    assert ((off_diagonal - expected) ** 2 / expected).sum() < 55 + 5 * math.sqrt(2 * 55)


def test_one_graph_serves_all_steps() -> None:
    torch._dynamo.reset()
    eager, compiled = moco(symmetric="sum"), moco(symmetric="sum")
    compiled.compile(fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(4):
            for method in (eager, compiled):
                method.before_step(at(step))
                loss, _ = method(some_views(seed=step), LABELS)
                loss.backward()
                method.after_part()
                method.after_step()
    torch.testing.assert_close(compiled.queue.keys, eager.queue.keys)
    torch.testing.assert_close(compiled.projector[0].weight.grad, eager.projector[0].weight.grad)
    for name, value in compiled.state_dict().items():
        torch.testing.assert_close(value, eager.state_dict()[name])


# Runs


@pytest.fixture
def config(tiny_config: Config) -> Config:
    """12 steps of MoCo v2; 40 keys are no multiple of a batch of 16."""
    made = catalogue.recipe("moco-v2-imagenette").method
    method = replace(made, hidden_dim=32, projection_dim=16, queue_size=40, bn_group_size=4)
    return replace(tiny_config, method=method)


def test_a_resumed_run_is_the_same_to_the_bit(config: Config, tmp_path: Path) -> None:
    for steps, resume in ((3, False), (7, True)):
        pretrain(replace(config, max_steps=steps), resume=resume)
    whole = replace(config, out=tmp_path / "whole", max_steps=7)
    pretrain(whole)
    assert_same_state(newest(config), newest(whole))
    assert {"queue.keys", "queue.pointer", "target.projector.0.weight"} <= set(
        torch.load(newest(whole), weights_only=True)["method"]
    )
    assert min(losses(whole)) > 0


def test_parts_of_a_batch_fill_the_queue_and_the_target_moves_once(config: Config) -> None:
    made, recorder = trainer(replace(config, accumulate=2, max_steps=2))
    method = made.method
    assert isinstance(method, MoCo)
    updates: list[float] = []
    update = method.target.update
    method.target.update = lambda tau: (updates.append(tau), update(tau))
    made.fit()
    recorder.close()
    made.loader.close()
    assert updates == [0.99, 0.99]
    assert method.queue.pointer == 2 * 2 * 16 % 40  # both sets of keys of both parts


def test_a_checkpoint_is_evaluated_as_plain_batch_norm(config: Config) -> None:
    save_run(config)
    backbone = load_backbone(config.out).eval()
    kinds = {type(layer) for layer in backbone.modules()}
    assert nn.BatchNorm2d in kinds
    assert all("Split" not in kind.__name__ for kind in kinds)
    method = build_method(config).eval()
    method.load_state_dict(torch.load(newest(config), weights_only=True)["method"])
    images = torch.randn(3, 3, 32, 32)  # no multiple of the groups
    torch.testing.assert_close(backbone(images), method.backbone(images))


def test_a_batch_that_the_groups_cannot_share_is_refused_in_a_line(config: Config) -> None:
    for batch, parts, size in ((12, 1, 8), (16, 2, 8), (36, 2, 4), (13, 1, 2), (8, 1, 8)):
        method = replace(config.method, bn_group_size=size)
        asked = replace(config, batch_size=batch, method=method)
        with pytest.raises(UserError, match=f"--method.bn-group-size is {size}, but ") as caught:
            MoCo.check_batch(asked, batch // parts)
        text = str(caught.value)
        advised = int(text.split("give --batch-size ")[1].split(",")[0])
        assert advised % parts == 0
        MoCo.check_batch(replace(asked, batch_size=advised), advised // parts)
        if "or --method.bn-group-size " in text:
            fewer = int(text.rpartition(" ")[2])
            assert 1 < fewer <= size
            fitting = replace(asked, method=replace(method, bn_group_size=fewer))
            MoCo.check_batch(fitting, batch // parts)
    MoCo.check_batch(replace(config, method=replace(config.method, bn_group_size=0)), 13)
    shared = replace(config, accumulate=2, batch_size=24)
    with pytest.raises(UserError, match="the 6 images that a device has at a time"):
        require_possible(shared, CPU, 2)


def test_it_is_refused_on_the_command_line_before_the_run(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"pretrain moco-v2-imagenette --data {config.data} --out {config.out} --device cpu"
    assert main([*command.split(), "--batch-size", "100"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "give --batch-size 128, or --method.bn-group-size 25" in line
    assert not config.out.exists()


def test_wrong_options_are_refused() -> None:
    for name, value in (
        ("queue_size", 0),
        ("temperature", 0.0),
        ("momentum", 1.5),
        ("bn_group_size", 1),
        ("projector_layers", 0),
        ("hidden_dim", 0),
    ):
        with pytest.raises(UserError, match=f"method.{name} is "):
            MoCoConfig(**{name: value})


def test_a_collapse_is_told_and_a_small_spread_at_the_start_is_not() -> None:
    said = MoCo.warning({"collapse_std": 0.01, "contrast_accuracy": 0.0, "loss": 11.09}, 32)
    assert said is not None
    assert "the network has collapsed" in said
    for std, accuracy in ((0.05, 0.4), (0.9, 0.0), (0.9, 0.9)):
        metrics = {"collapse_std": std, "contrast_accuracy": accuracy, "loss": 8.0}
        assert MoCo.warning(metrics, 32) is None


def test_recipes_are_the_published_settings() -> None:
    v1, v2 = (catalogue.recipe(f"moco-v{v}-imagenet-200ep") for v in (1, 2))
    for made in (v1, v2):
        assert (made.epochs, made.batch_size, made.zero_init_residual) == (200, 256, False)
        assert (made.optimizer.lr, made.optimizer.weight_decay) == (0.03, 1e-4)
        assert made.method.queue_size == 65536
        assert made.method.momentum == 0.999
        assert made.method.symmetric == "off"
        assert made.optimizer.warmup_epochs == 0
    assert (v1.method.projector_layers, v1.method.temperature) == (1, 0.07)
    assert (v2.method.projector_layers, v2.method.temperature) == (2, 0.2)
    assert v1.optimizer.milestones == (120, 160)
    assert (v2.optimizer.decay, v2.optimizer.schedule) == ("cosine", "epoch")
    assert [(s.jitter, s.hue, s.grayscale_first, s.blur) for s in v1.views] == [
        (1, 0.4, True, 0)
    ] * 2
    assert v2.views == catalogue.recipe("imagenet-100ep").views
    cifar = catalogue.recipe("moco-cifar10-200ep-symmetric")
    assert cifar.optimizer.lr * 512 / 256 == 0.06
    assert cifar.method == MoCoConfig(
        projector_layers=1,
        temperature=0.1,
        momentum=0.99,
        queue_size=4096,
        symmetric="sum",
        bn_group_size=64,
    )
    every = [catalogue.recipe(name) for name in catalogue.RECIPES]
    ours = [made for made in every if isinstance(made.method, MoCoConfig)]
    assert len(ours) > 5
    for made in ours:
        MoCo.check_batch(made, made.batch_size)


def test_the_backbone_has_no_zero_initialized_residuals() -> None:
    config = catalogue.recipe("moco-v2-imagenette")
    backbone, _ = feature_extractor("tiny_resnet", zero_init_residual=config.zero_init_residual)
    assert backbone.layer1[0].bn2.weight.min() == 1


def test_queues_of_two_ranks_are_equal(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(fill, args=(str(tmp_path),), nprocs=2)
