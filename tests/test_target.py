"""The target network is a moving average of parameters, and of nothing else."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from fastsimsiam.methods.base import Progress
from fastsimsiam.methods.target import TargetNetwork, cosine_tau
from fastsimsiam.models.heads import mlp
from fastsimsiam.models.small_convolutions import SmallMapConv2d, use_matmul_for_small_maps


class Pair(nn.Module):
    """An online network and its target."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.projector = mlp([8, 10, 4])
        self.target = TargetNetwork(self.backbone, self.projector)

    def online(self) -> list[nn.Parameter]:
        return [*self.backbone.parameters(), *self.projector.parameters()]


def images(seed: int = 0) -> torch.Tensor:
    return torch.rand(4, 3, 9, 9, generator=torch.Generator().manual_seed(seed))


def wander(pair: Pair, generator: torch.Generator) -> None:
    """Changes the online network as an optimizer would, in place."""
    with torch.no_grad():
        for parameter in pair.online():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


def test_it_is_the_exact_recursion_over_many_steps() -> None:
    pair = Pair()
    expected = [p.detach().numpy().astype(np.float64) for p in pair.target.parameters()]
    generator = torch.Generator().manual_seed(1)
    steps = 25
    for step in range(steps):
        wander(pair, generator)
        tau = cosine_tau(0.9, Progress(step=step, steps_per_epoch=5, total_steps=steps))
        pair.target.update(tau)
        for number, online in enumerate(pair.online()):
            new = online.detach().numpy().astype(np.float64)
            expected[number] = tau * expected[number] + (1 - tau) * new
    for target, value in zip(pair.target.parameters(), expected, strict=True):
        np.testing.assert_allclose(target.numpy(), value, atol=1e-6)


def test_tau_0_copies_and_tau_1_keeps_to_the_bit() -> None:
    pair = Pair()
    before = [p.clone() for p in pair.target.parameters()]
    wander(pair, torch.Generator().manual_seed(1))
    pair.target.update(1.0)
    assert all(map(torch.equal, pair.target.parameters(), before))
    pair.target.update(0.0)
    assert all(map(torch.equal, pair.target.parameters(), pair.online()))


def test_it_is_written_in_place() -> None:
    pair = Pair()
    places = [p.data_ptr() for p in pair.target.parameters()]
    wander(pair, torch.Generator().manual_seed(1))
    pair.target.update(0.5)
    assert [p.data_ptr() for p in pair.target.parameters()] == places


def test_buffers_of_batch_norm_are_its_own() -> None:
    """Never averaged, never copied: the statistics are those of what the target was shown."""
    pair = Pair()
    alone = copy.deepcopy(pair.target)
    for step in range(3):
        pair.backbone(images(10 + step))  # statistics of other images
        pair.target(images(step))
        with torch.no_grad():
            alone(images(step))
        pair.target.update(0.5)  # of an online network that has not moved
    assert pair.target.backbone[1].num_batches_tracked == 3
    assert not torch.equal(pair.target.backbone[1].running_mean, pair.backbone[1].running_mean)
    buffers = dict(pair.target.named_buffers())
    for name, value in alone.named_buffers():
        assert torch.equal(buffers[name], value), name


def test_no_gradient_flows_into_it_or_through_it() -> None:
    pair = Pair()
    view = images().requires_grad_()
    projection = pair.target(view)
    assert not projection.requires_grad
    assert not any(p.requires_grad for p in pair.target.parameters())
    assert all(p.requires_grad for p in pair.online())


def test_the_online_network_is_in_the_state_once() -> None:
    pair = Pair()
    names = set(pair.state_dict())
    online = {name for name in names if not name.startswith("target.")}
    assert names - online == {f"target.{name}" for name in online}
    assert not any(name.startswith("backbone.") for name in names - online)


def test_it_follows_the_online_network_of_its_own_copy() -> None:
    """A copy of a method has an online network of its own, which its target follows."""
    pair = Pair()
    other = copy.deepcopy(pair)
    wander(other, torch.Generator().manual_seed(1))
    other.target.update(0.0)
    assert all(map(torch.equal, other.target.parameters(), other.online()))
    assert not any(
        torch.equal(mine, theirs)
        for mine, theirs in zip(pair.target.parameters(), other.target.parameters(), strict=True)
    )


def test_layout_and_convolutions_change_with_the_method() -> None:
    """What training does to a method after it is built: channels_last, products of small maps."""
    pair, plain = Pair(), Pair()
    pair = pair.to(memory_format=torch.channels_last)
    use_matmul_for_small_maps(pair)
    for network in (pair, plain):
        wander(network, torch.Generator().manual_seed(1))
        network.target.update(0.5)
    assert isinstance(pair.target.backbone[3], SmallMapConv2d)
    assert pair.target.backbone[3].weight.is_contiguous(memory_format=torch.channels_last)
    view = images()
    torch.testing.assert_close(pair.target(view), plain.target(view), atol=1e-5, rtol=1e-5)


def test_it_follows_layers_that_were_exchanged_for_several_gpus() -> None:
    pair = nn.SyncBatchNorm.convert_sync_batchnorm(Pair())
    assert isinstance(pair.target.backbone[1], nn.SyncBatchNorm)
    wander(pair, torch.Generator().manual_seed(1))
    pair.target.update(0.0)
    assert all(map(torch.equal, pair.target.parameters(), pair.online()))
    assert not any(p.requires_grad for p in pair.target.parameters())


@pytest.mark.parametrize(
    ("base", "step", "expected"),
    [
        (0.996, 0, 0.996),
        (0.996, 500, 0.998),
        (0.996, 1000, 1.0),
        (0.99, 250, 1 - 0.01 * (1 + math.sqrt(0.5)) / 2),
        (0.99, 750, 1 - 0.01 * (1 - math.sqrt(0.5)) / 2),
        (0.0, 0, 0.0),
    ],
)
def test_tau_rises_by_half_a_cosine(base: float, step: int, expected: float) -> None:
    at = Progress(step=step, steps_per_epoch=10, total_steps=1000)
    assert cosine_tau(base, at) == pytest.approx(expected, abs=1e-12)
