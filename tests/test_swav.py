"""SwAV: codes and loss against independent code; prototypes, queue, multi-crop, collapse."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import CPU
from lightly.loss import SwaVLoss
from lightly.loss.swav_loss import sinkhorn as lightly_sinkhorn
from swav_ranks import compare
from test_contrastive import numeric_gradient
from test_method_contract import backbone
from torch import Tensor, nn

from fastsimsiam.config.methods import SwAVConfig
from fastsimsiam.config.optimizer import OptimizerConfig
from fastsimsiam.config.run import Config
from fastsimsiam.config.views import ViewSpec
from fastsimsiam.errors import UserError
from fastsimsiam.methods.base import Progress
from fastsimsiam.methods.losses import swapped_prediction
from fastsimsiam.methods.prototypes import Prototypes, sinkhorn
from fastsimsiam.methods.swav import SwAV
from fastsimsiam.optim.build import build_optimizer
from fastsimsiam.recipes import catalogue
from fastsimsiam.train.checks import require_possible


def oracle_codes(similarity: np.ndarray, epsilon: float, iterations: int) -> np.ndarray:
    """Algorithm 1 of arXiv 2006.09882 with the whole matrix, in float64."""
    q = np.exp(similarity / epsilon).T
    q /= q.sum()
    prototypes, images = q.shape
    for _ in range(iterations):
        q /= q.sum(axis=1, keepdims=True) * prototypes
        q /= q.sum(axis=0, keepdims=True) * images
    return (q * images).T


def oracle_loss(similarity: np.ndarray, codes: np.ndarray, temperature: float) -> float:
    """Pair by pair."""
    total, pairs = 0.0, 0
    for i, code in enumerate(codes):
        for v, scores in enumerate(similarity):
            if v == i:
                continue
            pairs += 1
            for q, s in zip(code, scores, strict=True):
                log_p = s / temperature - np.log(np.exp(s / temperature).sum())
                total -= float(q @ log_p) / len(code)
    return total / pairs


def cosines(*shape: int) -> np.ndarray:
    """Similarities of random unit vectors."""
    rng = np.random.default_rng(0)
    return np.tanh(rng.normal(scale=0.3, size=shape))


@pytest.mark.parametrize(("images", "prototypes"), [(8, 20), (64, 30), (3, 300)])
@pytest.mark.parametrize("iterations", [1, 3, 50])
def test_codes_are_the_papers(images: int, prototypes: int, iterations: int) -> None:
    similarity = cosines(images, prototypes)
    codes = sinkhorn(torch.tensor(similarity), epsilon=0.05, iterations=iterations)
    assert codes.dtype == torch.float32
    expected = oracle_codes(similarity, 0.05, iterations)
    np.testing.assert_allclose(codes, expected, atol=1e-6)
    theirs = lightly_sinkhorn(torch.tensor(similarity), iterations, 0.05)
    np.testing.assert_allclose(codes, theirs, atol=1e-6)
    np.testing.assert_allclose(codes.sum(1), 1, atol=1e-5)
    if iterations == 50:
        np.testing.assert_allclose(codes.sum(0), images / prototypes, rtol=1e-3)


def test_images_that_do_not_count_change_no_code() -> None:
    similarity = torch.tensor(cosines(12, 20))
    used = torch.tensor([0.0] * 4 + [1.0] * 8)
    codes = sinkhorn(similarity, epsilon=0.05, iterations=3, used=used)
    alone = sinkhorn(similarity[4:], epsilon=0.05, iterations=3)
    assert codes[:4].eq(0).all()
    torch.testing.assert_close(codes[4:], alone)


def test_the_smallest_epsilon_stays_finite() -> None:
    similarity = torch.ones(4, 6)
    similarity[:, :3] = -1.0  # prototypes that no image is near to still get their share
    codes = sinkhorn(similarity, epsilon=0.025, iterations=3)
    torch.testing.assert_close(codes, torch.full((4, 6), 1 / 6))


def test_loss_and_gradient_are_the_papers() -> None:
    similarity, codes = cosines(4, 5, 6), oracle_codes(cosines(10, 6), 0.05, 3).reshape(2, 5, 6)
    given = torch.tensor(similarity, dtype=torch.float32, requires_grad=True)
    loss = swapped_prediction(given, torch.tensor(codes, dtype=torch.float32), 0.1)
    loss.backward()
    assert loss.item() == pytest.approx(oracle_loss(similarity, codes, 0.1), abs=1e-6)
    expected = numeric_gradient(lambda s: oracle_loss(s, codes, 0.1), similarity)
    np.testing.assert_allclose(given.grad, expected, atol=1e-6)


def test_uniform_predictions_have_the_anchor_loss() -> None:
    codes = torch.rand(2, 5, 3000)
    loss = swapped_prediction(torch.zeros(3, 5, 3000), codes / codes.sum(2, keepdim=True), 0.1)
    assert loss.item() == pytest.approx(math.log(3000), abs=1e-5)  # 8.006


def swav(**options: Any) -> SwAV:
    """A small SwAV with fixed weights."""
    torch.manual_seed(0)
    small = {"projection_dim": 8, "prototypes": 20, "hidden_dim": 24}
    return SwAV(backbone(), 12, SwAVConfig(**(small | options)))


def crops(step: int = 0, sides: tuple[int, ...] = (16, 16, 8, 8, 8)) -> tuple[Tensor, ...]:
    """Views of eight images."""
    generator = torch.Generator().manual_seed(step)
    return tuple(torch.rand(8, 3, side, side, generator=generator) for side in sides)


def official_forward(method: SwAV, views: tuple[Tensor, ...]) -> Tensor:
    """Unit vectors (V, B, D) with BatchNorm over views of one size, and over all in the projector."""
    large, small = (torch.cat(views[:2]), torch.cat(views[2:]))
    features = torch.cat([method.backbone(large), method.backbone(small)])
    z: Tensor = F.normalize(method.projector(features), dim=1)
    return z.view(len(views), -1, z.shape[1])


def test_the_loss_of_a_batch_is_that_of_another_library() -> None:
    method = swav()
    views = crops()
    loss, _ = method(views, torch.zeros(8))
    twin = copy.deepcopy(method)
    scores = official_forward(twin, views) @ twin.prototypes.weight.T
    theirs = SwaVLoss()(list(scores[:2]), list(scores[2:]))
    torch.testing.assert_close(loss, theirs.squeeze())
    loss.backward()
    theirs.backward()
    for (name, one), (_, two) in zip(
        method.named_parameters(), twin.named_parameters(), strict=True
    ):
        torch.testing.assert_close(one.grad, two.grad, msg=name)


def test_views_keep_their_numbers_whatever_their_sizes() -> None:
    method = swav()
    views = crops(sides=(16, 16, 8, 16, 8))
    z = method._project(views)
    moved = method._project((views[0], views[1], views[3], views[2], views[4]))
    torch.testing.assert_close(z[[0, 1, 3, 2, 4]], moved)


class OfficialQueue:
    """The queue of the paper's code: zeros, the newest in front, used once its last row is not zero."""

    def __init__(self, size: int) -> None:
        self.rows = torch.zeros(2, size, 8)
        self.used = False

    def codes(self, z: Tensor, prototypes: Tensor, view: int) -> Tensor:
        out = z[view] @ prototypes.T
        rows = self.rows[view]
        if self.used or not torch.all(rows[-1] == 0):
            self.used = True
            out = torch.cat([rows @ prototypes.T, out])
        count = len(z[view])
        self.rows[view, count:] = rows[:-count].clone()
        self.rows[view, :count] = z[view]
        return lightly_sinkhorn(out)[-count:]


def test_the_queue_is_filled_and_used_when_it_is_in_the_papers_code() -> None:
    """24 rows, batches of 8, from epoch 2 of 2 steps: filled from step 4 on, used from step 7."""
    method = swav(queue_size=24, queue_start_epoch=2)
    official = OfficialQueue(24)
    used = []
    for step in range(10):
        views = crops(step)
        method.before_step(Progress(step=step, steps_per_epoch=2, total_steps=10))
        used.append(bool(method.queue_used))
        loss, _ = method(views, torch.zeros(8))
        z = official_forward(method, views).detach()
        prototypes = method.prototypes.weight.detach()
        if step < 4:
            codes = torch.stack([lightly_sinkhorn(z[view] @ prototypes.T) for view in (0, 1)])
        else:
            codes = torch.stack([official.codes(z, prototypes, view) for view in (0, 1)])
            assert official.used == used[-1]
        torch.testing.assert_close(loss, swapped_prediction(z @ prototypes.T, codes, 0.1))
        method.after_part()
    assert used == [False] * 7 + [True] * 3
    assert method.state_dict().keys() >= {"filled", "queue.keys", "queue.pointer"}


def test_prototypes_have_length_one_and_wait_for_their_epochs() -> None:
    method = swav(freeze_prototypes_epochs=1.5)
    config = OptimizerConfig(name="larc", lr=20.0, weight_decay=1e-2)
    optimizer = build_optimizer(method.parameter_groups(), config, CPU)
    moved = []
    for step in range(5):
        at = Progress(step=step, steps_per_epoch=2, total_steps=5)
        before = method.prototypes.weight.detach().clone()
        optimizer.set_lr(20.0, 20.0)
        method(crops(step), torch.zeros(8))[0].backward()
        optimizer.step(at)
        method.after_step()
        torch.testing.assert_close(method.prototypes.weight.norm(dim=1), torch.ones(20))
        moved.append(not torch.allclose(before, method.prototypes.weight))
    assert moved == [False, False, False, True, True]


def test_prototypes_begin_as_a_linear_layer_of_unit_rows() -> None:
    torch.manual_seed(3)
    made = Prototypes(20, 8).weight
    torch.manual_seed(3)
    torch.testing.assert_close(made.detach(), F.normalize(nn.Linear(8, 20, bias=False).weight))


def test_it_is_in_float32_under_autocast() -> None:
    method = swav()
    views = crops()
    exact, _ = method(views, torch.zeros(8))
    seen: list[torch.dtype] = []
    method.prototypes.register_forward_hook(lambda *hook: seen.append(hook[2].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        loss, metrics = method(views, torch.zeros(8))
    assert set(seen) == {torch.float32}
    assert loss.dtype == metrics["prototype_spread"].dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), abs=0.05)


def test_it_stays_finite_for_2000_steps_in_bfloat16() -> None:
    """Embeddings that learn under a queue, at a learning rate far too high."""
    torch.manual_seed(0)
    config = SwAVConfig(
        projection_dim=8, prototypes=20, hidden_dim=24, queue_size=24, queue_start_epoch=0
    )
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(12, 16))
    method = SwAV(encoder, 16, config)
    optimizer = build_optimizer(
        method.parameter_groups(),
        OptimizerConfig(name="larc", lr=50.0, trust=0.02, weight_decay=1e-6),
        CPU,
    )
    for step in range(2000):
        at = Progress(step=step, steps_per_epoch=100, total_steps=2000)
        method.before_step(at)
        optimizer.set_lr(50.0, 50.0)
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = method(crops(step, (2, 2, 2)), torch.zeros(8))
        loss.backward()
        method.after_part()
        optimizer.step(at)
        method.after_step()
        assert math.isfinite(loss.item()), step
    assert all(tensor.isfinite().all() for tensor in method.state_dict().values())


def metrics_of(method: SwAV) -> dict[str, float]:
    loss, metrics = method(crops(), torch.zeros(8))
    return {"loss": loss.item()} | {name: value.item() for name, value in metrics.items()}


def test_only_a_collapse_is_warned_of() -> None:
    for temperature in (0.1, 1.0, 100.0):
        fresh = metrics_of(SwAV(backbone(), 12, SwAVConfig(temperature=temperature)))
        assert 0.5 < fresh["prototype_spread"] < 2
        assert SwAV.warning(fresh, 8) is None

    collapsed = swav()
    with torch.no_grad():
        collapsed.prototypes.weight.copy_(collapsed.prototypes.weight[:1].expand(20, -1))
    metrics = metrics_of(collapsed)
    assert metrics["loss"] == pytest.approx(math.log(20), abs=1e-5)
    assert metrics["collapse_std"] > 0.1
    told = SwAV.warning(metrics, 8)
    assert told
    assert "all prototypes are predicted alike" in told
    assert "similarities spread by 0.000, healthy is 1 or more; loss 2.996" in told

    alike = swav()
    with torch.no_grad():
        last = alike.projector[-1]
        assert isinstance(last, nn.Linear)
        last.weight.zero_()
    told = SwAV.warning(metrics_of(alike), 8)
    assert told
    assert "all images get the same output" in told


SIDES = "views are of 8, 16, 16 pixels, but swav makes its codes of the first 2"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: replace(c, accumulate=2), "--accumulate is 2, but swav compares all images"),
        (lambda c: replace(c, views=(ViewSpec(size=8), ViewSpec(), ViewSpec())), SIDES),
        (
            lambda c: replace(c, method=SwAVConfig(queue_size=8), epochs=10),
            "--method.queue-start-epoch 15 is not within --epochs 10: give --method.queue-start-",
        ),
        (
            lambda c: replace(c, epochs=1),
            "--method.freeze-prototypes-epochs 1 is not within --epochs 1: give",
        ),
    ],
    ids=["accumulate", "sides", "queue", "frozen"],
)
def test_runs_that_it_cannot_do_are_refused(
    change: Callable[[Config], Config], message: str, tiny_config: Config
) -> None:
    config = replace(tiny_config, image_size=16, method=SwAVConfig())
    with pytest.raises(UserError, match=message):
        require_possible(change(config), CPU)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 0.01}, "method.epsilon is 0.01"),
        ({"prototypes": 1}, "method.prototypes is 1"),
        ({"queue_size": 0}, "method.queue_size is 0"),
        ({"queue_start_epoch": 3}, "method.queue_start_epoch is 3: there is no queue"),
        ({"sinkhorn_iterations": 0}, "method.sinkhorn_iterations is 0"),
        ({"freeze_prototypes_epochs": -1}, "method.freeze_prototypes_epochs is -1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SwAVConfig(**options)


def test_the_published_recipe() -> None:
    config = catalogue.recipe("swav-imagenet-200ep")
    sizes = [view.size or config.image_size for view in config.views]
    assert sizes == [224, 224, 96, 96, 96, 96, 96, 96]
    assert config.optimizer.lr * config.optimizer.final_lr_factor == pytest.approx(0.0006)
    large = catalogue.recipe("swav-imagenet-400ep-2x224")
    optimizer = large.optimizer
    assert optimizer.lr * large.batch_size / 256 == pytest.approx(4.8)
    assert optimizer.lr * large.batch_size / 256 * optimizer.warmup_start_factor == pytest.approx(
        0.3
    )


def test_two_ranks_do_what_one_does(tmp_path: Path) -> None:
    """Loss, gradients, codes balanced over all images and the queue, and what enters the queue."""
    torch.multiprocessing.spawn(compare, args=(str(tmp_path),), nprocs=2)
