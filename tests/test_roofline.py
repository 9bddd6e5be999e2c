"""Counting of arithmetic and bytes, against counts by hand."""

import pytest
import torch
from torch import Tensor, nn

from benchmarks.roofline import FUSIONS, step_cost
from fastsimsiam.methods.registry import build_method
from fastsimsiam.recipes import catalogue

SIDE, WIDTH = 8, 4


class Residual(nn.Module):
    """Convolution, BatchNorm, ReLU, convolution, BatchNorm, addition, ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTH)
        self.conv2 = nn.Conv2d(WIDTH, WIDTH, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(WIDTH)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + x)


class OneView(nn.Module):
    """The smallest method: a backbone and a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Residual()

    def forward(
        self, views: tuple[Tensor, ...], labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return self.backbone(views[0]).sum(), {}


def test_bytes_and_operations_are_those_counted_by_hand() -> None:
    cost = step_cost(OneView, SIDE, 1, torch.bfloat16)
    image, wide = SIDE * SIDE * 3, SIDE * SIDE * WIDTH
    # Forward: two products. Backward: two for each, but for the gradient of the images.
    products = SIDE * SIDE * (3 * WIDTH + WIDTH * WIDTH)
    assert cost.flops == 2 * (2 * products + SIDE * SIDE * WIDTH * WIDTH)
    # conv1: in, out; out, in. conv2: in, out; twice out, in, in. The last term of each sum is for the
    # ReLU's output, which has two users.
    convolutions = 2 * image + 2 * wide + 6 * wide
    assert (
        cost.bytes["separate"] / 2
        == convolutions + 2 * 8 * wide + 2 * 5 * wide + 3 * wide + 3 * wide
    )
    assert cost.bytes["fused"] / 2 == convolutions + 2 * 8 * wide + 2 * wide + wide
    assert cost.bytes["epilogue"] / 2 == convolutions + 2 * 3 * wide + 4 * wide + wide
    weights = 3 * WIDTH + WIDTH * WIDTH + 4 * WIDTH
    assert cost.parameter_bytes == weights * (2 * 2 + 6 * 4)


def test_resnet50_is_as_published() -> None:
    """24.3 GFLOP a view, backward included; and the order of the levels."""
    config = catalogue.recipe("imagenet-100ep")
    cost = step_cost(lambda: build_method(config), 224, 2, torch.bfloat16)
    assert cost.flops == pytest.approx(24.3e9, rel=0.01)
    # MB a view, as counted independently: 476, 369 and 258.
    for fusion, megabytes in zip(FUSIONS, (476, 369, 258), strict=True):
        assert cost.bytes[fusion] / 1e6 == pytest.approx(megabytes, rel=0.1)
    levels = [cost.bytes[fusion] for fusion in FUSIONS]
    assert levels == sorted(levels, reverse=True)
    half = step_cost(lambda: build_method(config), 224, 2, torch.float32)
    assert half.bytes["fused"] == 2 * cost.bytes["fused"]
    assert cost.seconds(512, "fused", 1e15, 1e12) < cost.seconds(512, "fused", 1e15, 0.5e12)


def test_what_cannot_be_traced_says_so() -> None:
    class Branching(OneView):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = _Branching()

    with pytest.raises(ValueError, match="cannot trace"):
        step_cost(Branching, SIDE, 1, torch.float32)


class _Branching(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.shape[0] > 1 and x.numel() > 5 else -x)
