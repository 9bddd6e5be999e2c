"""The cost of a method's hooks, part of `make gate`; planted slow-downs make the checks fail."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from test_throughput import HostReads, check
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gate import best_of, cost_ratio, thresholds
from benchmarks.method_steps import recipe_of
from fastsimsiam.config.methods import MethodConfig
from fastsimsiam.config.views import view_sizes
from fastsimsiam.methods.base import Method, ParameterGroup, Progress
from fastsimsiam.methods.registry import METHODS, build_method, register_method

pytestmark = pytest.mark.throughput
LIMITS = thresholds()
IMAGES = 64
SHARE = 0.01
NAMES = [config.name for config in METHODS if config.__module__.startswith("fastsimsiam.")]


@dataclass(frozen=True, kw_only=True)
class FollowerConfig(MethodConfig):
    """Options of the method into which slow-downs are planted."""

    name: ClassVar[str] = "follower"


class Follower(Method):
    """A target network, and nothing else that costs."""

    def __init__(self, backbone: nn.Module, feature_dim: int, config: FollowerConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.target = copy.deepcopy(backbone).requires_grad_(False)
        self.register_buffer("share", torch.full((), SHARE))

    def forward(
        self, views: tuple[Tensor, ...], labels: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return (self.backbone(views[0]) - self.target(views[1])).square().mean(), {}

    def parameter_groups(self) -> list[ParameterGroup]:
        return [ParameterGroup(parameters=list(self.backbone.parameters()))]

    def pairs(self) -> tuple[list[Tensor], list[Tensor]]:
        return list(self.target.parameters()), list(self.backbone.parameters())

    def after_step(self) -> None:
        targets, onlines = self.pairs()
        torch._foreach_lerp_(targets, onlines, SHARE)


register_method(FollowerConfig, Follower)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads that spin while they wait would count as work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def method_after_a_batch(name: str) -> Method:
    """A method with a ResNet-18, whose hooks have a batch to work with."""
    config = recipe_of(name, "resnet18", 32, IMAGES)
    method = build_method(config)
    views = tuple(torch.randn(IMAGES, 3, size, size) for size in view_sizes(config.views, 32))
    method(views, torch.arange(IMAGES) % 2)
    return method


@torch.no_grad()
def hooks(method: Method) -> None:
    """All hooks of a step."""
    method.before_step(Progress(step=500, steps_per_epoch=10, total_steps=1000))
    method.after_part()
    method.after_step()


def target_of(method: Method) -> list[Tensor]:
    return [parameter for parameter in method.parameters() if not parameter.requires_grad]


@torch.no_grad()
def after_step_to_lerp(method: Method) -> float:
    """Time of `after_step`, over a foreach lerp of as many numbers as the target network has."""
    targets = [torch.zeros_like(parameter) for parameter in target_of(method)]
    onlines = [torch.ones_like(parameter) for parameter in targets]
    method.before_step(Progress(step=500, steps_per_epoch=10, total_steps=1000))
    return cost_ratio(
        lambda _: method.after_step(),
        lambda _: torch._foreach_lerp_(targets, onlines, SHARE),
        items=1,
        rounds=20,
    )


class Operations(TorchDispatchMode):
    """Counts operations: each is a launch or more on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += 1
        return func(*args, **(kwargs or {}))


def hook_operations_per_tensor(method: Method) -> float:
    """Operations of all hooks, over the parameters of the trained network."""
    with Operations() as operations:
        hooks(method)
    return operations.count / len(list(method.backbone.parameters()))


def host_reads_per_hook(method: Method) -> float:
    """Tensors that the hooks of a step read."""
    with HostReads() as reads:
        hooks(method)
    return reads.count


@pytest.mark.parametrize("name", [*NAMES, "follower"])
def test_the_hooks_of_every_method(name: str) -> None:
    method = method_after_a_batch(name)
    check("hook_operations_per_tensor", lambda: hook_operations_per_tensor(method))
    check("host_reads_per_hook", lambda: host_reads_per_hook(method))
    if type(method).after_step is not Method.after_step and target_of(method):
        check("after_step_to_lerp", lambda: after_step_to_lerp(method))


def looped(self: Follower) -> None:
    for target, online in zip(*self.pairs(), strict=True):
        target.lerp_(online, SHARE)


def in_three_passes(self: Follower) -> None:
    targets, onlines = self.pairs()
    torch._foreach_mul_(targets, 1 - SHARE)
    torch._foreach_add_(targets, torch._foreach_mul(onlines, SHARE))


def read(self: Follower) -> None:
    targets, onlines = self.pairs()
    torch._foreach_lerp_(targets, onlines, self.share.item())


MEASURES: dict[str, Callable[[Method], float]] = {
    "hook_operations_per_tensor": hook_operations_per_tensor,
    "host_reads_per_hook": host_reads_per_hook,
    "after_step_to_lerp": after_step_to_lerp,
}


@pytest.mark.parametrize(
    ("planted", "name"),
    [
        (looped, "hook_operations_per_tensor"),
        (in_three_passes, "after_step_to_lerp"),
        (read, "host_reads_per_hook"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_planted_slow_down_is_caught(
    planted: Callable[[Follower], None], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = method_after_a_batch("follower")
    limit = LIMITS[name].limit
    assert best_of(lambda: MEASURES[name](method), limit) < limit
    monkeypatch.setattr(Follower, "after_step", planted)
    ratio = best_of(lambda: MEASURES[name](method), limit)
    print(f"{name} with {planted.__name__}: {ratio:.3f}, the limit is {limit}")
    assert ratio > limit
