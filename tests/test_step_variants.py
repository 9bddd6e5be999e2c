"""The variants of the step benchmark compute the same step."""

from dataclasses import replace

import pytest
import tiny_backbone  # noqa: F401 (registers tiny_resnet)
import torch
from conftest import CPU

from benchmarks.step import analyze, config_of, table
from benchmarks.step_variants import VARIANTS, Step
from fastsimsiam.config.methods import SimSiamConfig
from fastsimsiam.config.run import Config


@pytest.fixture
def config() -> Config:
    """A tiny network and a learning rate that moves it."""
    config = config_of("tiny_resnet", 32, 16)
    method = SimSiamConfig(projector_layers=2, projector_dim=64, predictor_dim=16)
    return replace(config, method=method, optimizer=replace(config.optimizer, lr=0.5))


def run(config: Config, name: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Losses of four steps, and the state after them, in float32 and without a compiler."""
    step = Step(config, replace(VARIANTS[name], dtype=torch.float32, compiled=False), CPU)
    losses = [step(step.views(config, seed)).item() for seed in range(4)]
    return losses, step.method.state_dict()


@pytest.mark.parametrize(
    "name",
    [
        "textbook-fp32",
        "textbook-amp-nhwc",
        "eager-convolutions",
        "eager-returned-memory",
        "compiled-foreach-sgd",
        "compiled-joint-views",
        "compiled-aten-bn",
        "compiled-fused-bn",
        "compiled-padded-stem",
        "compiled-space-to-depth",
        "compiled-fused-stem",
        "compiled-fused-bn-sums",
    ],
)
def test_variants_are_exact(config: Config, name: str) -> None:
    losses, state = run(config, "eager")
    assert losses[0] != pytest.approx(losses[3], abs=1e-3)
    found, other = run(config, name)
    assert found == pytest.approx(losses, abs=1e-5)
    assert state.keys() == other.keys()
    for key, value in state.items():
        torch.testing.assert_close(other[key], value, atol=1e-4, rtol=1e-4, msg=key)


def test_the_table_has_rates_and_shares() -> None:
    config = config_of("resnet18", 64, 64)
    peak = {
        "bfloat16_flops_per_second": 1e12,
        "float32_flops_per_second": 1e11,
        "bytes_per_second": 1e10,
    }
    parts = [{"forward": 1.0, "backward": 1.9, "update": 0.1}]
    runs = [
        {"step_seconds": [2.0, 4.0, 3.0], "part_seconds": parts, "peak_mib": None, "loss": -0.5}
    ]
    variants = analyze(config, {"eager": runs}, peak)
    assert variants["eager"]["images_per_second"] == pytest.approx(64 / 3)
    # ResNet-18 at 64 pixels: 0.15 GMAC forward, and the heads.
    assert variants["eager"]["flops_per_second"] == pytest.approx(128 * 1.0e9 / 3, rel=0.1)
    shares = variants["eager"]["share_of_limit"]
    assert 0 < shares["epilogue"] < shares["fused"] < shares["separate"] < 1
    assert variants["eager"]["part_ms"]["backward"] == 1900
    limit = variants["eager"]["part_limit_ms"]
    assert sum(limit.values()) == pytest.approx(3000 * shares["fused"])
    assert limit["backward"] == pytest.approx(2 * limit["forward"], rel=0.1)
    result = {
        "arch": "resnet18",
        "image_size": 64,
        "batch_size": 64,
        "ceilings": peak,
        "variants": variants,
    }
    assert "| eager | 3,000.0 | 21 |" in table(result)


def test_every_layer_has_a_gradient_to_compare_and_the_weights_stay(config: Config) -> None:
    step = Step(config, replace(VARIANTS["eager"], dtype=torch.float32), CPU)
    before = {name: value.clone() for name, value in step.method.named_parameters()}
    assert any(not value.any() for value in before.values())  # the recipe's residual branches
    norms = step.gradient_norms(step.views(config, 0))
    assert norms.keys() == before.keys()
    assert min(norms.values()) > 0
    for name, value in step.method.named_parameters():
        assert torch.equal(value, before[name])
        assert value.grad is None


@pytest.mark.parametrize("variant", ["compiled-fused-1x1", "compiled-fused-1x1-early"])
def test_blocks_with_norms_in_their_convolutions_are_exact(variant: str) -> None:
    """ResNet-50, since smaller ones have no bottleneck blocks."""
    config = config_of("resnet50", 64, 8)
    method = SimSiamConfig(projector_layers=2, projector_dim=64, predictor_dim=16)
    config = replace(config, method=method)
    norms: list[dict[str, float]] = []
    for name in ("eager", variant):
        step = Step(config, replace(VARIANTS[name], dtype=torch.float32, compiled=False), CPU)
        norms.append(step.gradient_norms(step.views(config, 0)))
    assert norms[1].keys() == norms[0].keys()
    for name, norm in norms[0].items():
        assert norms[1][name] == pytest.approx(norm, rel=0.02), name
