"""Linear evaluation: LARS against NumPy, learning, resuming, and an unchanged backbone."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CPU
from torch import Tensor, nn

from fastsimsiam.cli import main
from fastsimsiam.config.evaluation import EvalOptions, LinearConfig
from fastsimsiam.config.run import Config
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate import linear_probe
from fastsimsiam.evaluate.context import open_eval_context
from fastsimsiam.evaluate.linear import cached_features, new_state, optimizer_of, train
from fastsimsiam.evaluate.supervised import SupervisedState, accuracy
from fastsimsiam.optim.lars import Lars
from fastsimsiam.optim.schedule import ScheduleSteps, learning_rate
from fastsimsiam.plan.order import epoch_order
from fastsimsiam.train.pretrain import pretrain

ON_CPU = EvalOptions(device="cpu", precision="fp32", workers=1)


def test_lars_equals_numpy() -> None:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(4, 3))
    bias = np.zeros(3)
    parameters = [nn.Parameter(torch.from_numpy(w.copy())) for w in (weight, bias)]
    optimizer = Lars(parameters, form="larc", lr=0.7, momentum=0.9, weight_decay=0.01, trust=0.02)
    own = [weight.copy(), bias.copy()]
    momentum = [np.zeros_like(w) for w in own]
    for _ in range(5):
        for number, parameter in enumerate(parameters):
            g = rng.normal(size=own[number].shape)
            parameter.grad = torch.from_numpy(g.copy())
            norm_w, norm_g = np.linalg.norm(own[number]), np.linalg.norm(g)
            g = g + 0.01 * own[number]
            if norm_w > 0 and norm_g > 0:
                g = g * 0.02 * norm_w / (norm_g + 0.01 * norm_w)
            momentum[number] = 0.9 * momentum[number] + g
            own[number] = own[number] - 0.7 * momentum[number]
        optimizer.step()
    for parameter, expected in zip(parameters, own, strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-5)


def clusters(images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Linearly separable features of seven classes, and labels."""
    centers = 3 * torch.randn(7, 16, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 7, (images,), generator=generator)
    return centers[label] + torch.randn(images, 16, generator=generator), label


def test_the_layer_learns_separable_features() -> None:
    config = LinearConfig(epochs=30, batch_size=64, lr=40.0)
    state = new_state(16, 7, config, CPU)

    def score(*batches: tuple[Tensor, Tensor]) -> tuple[float, float]:
        with torch.no_grad():
            return accuracy((state.network(h), label) for h, label in batches)

    before = score(clusters(500, 2))
    train(state, cached_features(*clusters(640, 1), config), config)
    top1, top5 = score(clusters(300, 2), clusters(200, 3))
    assert before[0] < 40 < 95 < top1 <= top5
    assert state.losses[-1] < state.losses[0] / 2
    assert len(state.losses) == 30


def test_cached_features_come_in_an_order_of_seed_and_epoch() -> None:
    """Row and label stay together; the last, incomplete batch is dropped."""
    h = torch.arange(30.0)[:, None]

    def order(seed: int, epoch: int) -> list[int]:
        features = cached_features(h, torch.arange(30), LinearConfig(seed=seed, batch_size=8))
        batches = list(features(epoch))
        assert [len(label) for _, label in batches] == [8, 8, 8]
        assert all(torch.equal(rows[:, 0].long(), label) for rows, label in batches)
        return torch.cat([label for _, label in batches]).tolist()

    assert order(3, 2) == order(3, 2) == epoch_order(30, 3, 2)[:24].tolist()
    assert len(set(order(3, 2))) == 24
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_accuracy_of_known_predictions() -> None:
    h = torch.tensor([[6.0, 5, 4, 3, 2, 1]] * 4)
    label = torch.tensor([0, 1, 4, 5])
    assert accuracy(iter([(h[:1], label[:1]), (h[1:], label[1:])])) == (25.0, 75.0)


def test_the_learning_rate_is_half_a_cosine_by_the_scaling_rule() -> None:
    config = LinearConfig()
    steps = ScheduleSteps(steps_per_epoch=1, total=90, stop=90, checkpoint_every=1, knn_every=0)

    def lr(epoch: int) -> float:
        return learning_rate(
            optimizer_of(config), batch_size=config.batch_size, step=epoch, steps=steps
        )

    assert [lr(0), lr(45), lr(90)] == pytest.approx([1.6, 0.8, 0])
    assert (config.epochs, config.batch_size, config.weight_decay) == (90, 4096, 0)


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    config = LinearConfig(epochs=3, batch_size=4)
    state = new_state(2, 2, config, CPU)

    def broken(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        yield torch.full((4, 2), float("nan")), torch.zeros(4, dtype=torch.int64)

    with pytest.raises(UserError, match="not finite in epoch 1: lower --lr"):
        train(state, broken, config)


@pytest.mark.parametrize("cached", [False, True])
def test_from_a_run_to_a_score(
    cached: bool, tiny_config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(replace(tiny_config, max_steps=2))
    file = tmp_path / "linear.json"
    argv = ["linear", str(tiny_config.out), "--data", str(tiny_config.data), "--epochs", "6"]
    argv += ["--batch-size", "32", "--lr", "1", "--device", "cpu", "--json", str(file)]
    argv += ["--optimizer", "sgd"]
    capsys.readouterr()
    assert main([*argv, *(["--cached"] if cached else [])]) == 0
    printed = capsys.readouterr().out
    assert "not the published protocol" in printed
    assert ("cached" in printed) == cached
    assert ("epochs 6, batch_size 32" in printed) != cached
    result = json.loads(file.read_text())
    assert list(result) == [
        *("protocol", "top1", "top5", "losses", "seconds", "config", "bad_images", "checkpoint"),
        *("step", "data", "train_images", "val_images", "image_size", "notes"),
    ]
    assert result["config"]["epochs"] == 6
    assert (result["step"], result["checkpoint"]) == (2, str(tiny_config.out))
    assert 0 < result["top1"] < result["top5"] == 100  # three classes of equal textures
    assert len(result["losses"]) == 6
    assert all(0.5 < loss < 3 for loss in result["losses"])


def test_a_resumed_evaluation_is_the_uninterrupted_one(tiny_config: Config, tmp_path: Path) -> None:
    pretrain(replace(tiny_config, max_steps=2))
    config = LinearConfig(epochs=4, batch_size=32)

    def run(out: Path, *, resume: bool = False) -> linear_probe.LinearResult:
        return linear_probe.linear(
            tiny_config.out, tiny_config.data, config=config, out=out, resume=resume, options=ON_CPU
        )

    whole = run(tmp_path / "whole")

    class StoppedError(Exception):
        """Stands for a signal."""

    def stop(state: SupervisedState, features: object, config: LinearConfig, after: object) -> None:
        def interrupted(now: SupervisedState) -> None:
            after(now)  # type: ignore[operator]
            if now.epoch == 2:
                raise StoppedError

        train(state, features, config, interrupted)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear_probe, "train", stop)
        with pytest.raises(StoppedError):
            run(tmp_path / "parts")
    with pytest.raises(UserError, match="already holds a linear evaluation: pass --resume"):
        run(tmp_path / "parts")
    trained: list[int] = []

    def counted(state: SupervisedState, features: Any, *rest: Any) -> None:
        train(state, lambda epoch: (trained.append(epoch), features(epoch))[1], *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear_probe, "train", counted)
        resumed = run(tmp_path / "parts", resume=True)
    assert trained == [2, 3]  # it continues instead of starting again
    assert resumed.losses == whole.losses
    assert resumed.top1 == whole.top1
    (tmp_path / "parts" / "linear.pt").write_bytes(b"cut short")
    with pytest.raises(UserError, match="damaged or no checkpoint"):
        run(tmp_path / "parts", resume=True)
    run(tmp_path / "other")
    config = replace(config, lr=0.5)
    with pytest.raises(UserError, match="was made with another config"):
        run(tmp_path / "other", resume=True)


def test_a_backbone_that_changes_is_an_error(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BatchNorm in training mode would update its statistics."""
    pretrain(replace(tiny_config, max_steps=2))
    training = linear_probe._training
    monkeypatch.setattr(
        linear_probe,
        "_training",
        lambda context, *rest: (context.pretrained.backbone.train(), training(context, *rest))[1],
    )
    with pytest.raises(AssertionError, match="the frozen backbone has changed"):
        linear_probe.linear(
            tiny_config.out,
            tiny_config.data,
            config=LinearConfig(epochs=1, batch_size=32),
            options=ON_CPU,
        )


@pytest.mark.parametrize(
    ("key", "value"),
    [("lr", float("nan")), ("momentum", -1.0), ("momentum", 1.0), ("weight_decay", -1.0)],
)
def test_values_out_of_range_are_named(key: str, value: float) -> None:
    with pytest.raises(UserError, match=f"--{key.replace('_', '-')} is {value:g}: give"):
        LinearConfig(**{key: value})


def test_large_batches_pass_the_backbone_in_chunks(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrain(replace(tiny_config, max_steps=2))
    config = LinearConfig(batch_size=48)

    def first_batch() -> tuple[Tensor, Tensor]:
        options = EvalOptions(device="cpu", precision="fp32")
        with open_eval_context(tiny_config.out, tiny_config.data, options) as context:
            return next(linear_probe._training(context, config, cached=False)(0))

    whole, labels = first_batch()
    monkeypatch.setattr("fastsimsiam.evaluate.linear._CHUNK", 20)
    chunks, same_labels = first_batch()
    assert whole.shape == (48, 128)
    torch.testing.assert_close(chunks, whole, rtol=1e-4, atol=1e-5)
    assert torch.equal(labels, same_labels)


def test_too_little_memory_is_one_line(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(replace(tiny_config, max_steps=2))

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(linear_probe, "train", full)
    capsys.readouterr()
    argv = ["--data", str(tiny_config.data), "--device", "cpu", "--batch-size", "16"]
    assert main(["linear", str(tiny_config.out), *argv]) == 2
    assert "the GPU's memory is too small" in capsys.readouterr().err


def test_too_large_a_batch_is_one_line(tiny_config: Config) -> None:
    pretrain(replace(tiny_config, max_steps=2))
    config = LinearConfig(epochs=1, batch_size=100)
    with pytest.raises(
        UserError, match="96 images, fewer than one batch of 100: lower --batch-size"
    ):
        linear_probe.linear(tiny_config.out, tiny_config.data, config=config, options=ON_CPU)


def test_a_batch_size_that_nobody_gave_is_lowered_to_the_images(tiny_config: Config) -> None:
    pretrain(replace(tiny_config, max_steps=2))
    result = linear_probe.linear(
        tiny_config.out, tiny_config.data, config=LinearConfig(epochs=1), options=ON_CPU
    )
    assert result.config.batch_size == 96
    assert result.notes == ("--batch-size is 96, all training images, instead of 4096",)
    assert "not the published protocol: epochs 1, batch_size 96" in result.protocol


def test_only_the_published_options_are_called_the_published_protocol() -> None:
    assert (
        linear_probe._protocol(LinearConfig(seed=3), False)
        == "random crops, the published protocol"
    )
    assert "lr 0.02" in linear_probe._protocol(LinearConfig(lr=0.02), False)
