"""MoCo v3 on half of a batch, in one of two processes, which import this and nothing slow.

And small networks that other tests share.
"""

from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastsimsiam.config.methods import MoCoV3Config
from fastsimsiam.methods.byol import BYOL
from fastsimsiam.methods.moco_v3 import MoCoV3

LABELS = torch.zeros(6, dtype=torch.int64)
M = TypeVar("M", BYOL, MoCoV3)


def backbone() -> nn.Sequential:
    """A small network with BatchNorm, images to 12 features."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, stride=2),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def some_views(seed: int = 1) -> tuple[Tensor, Tensor]:
    """Two views of six images."""
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.rand(6, 3, 12, 12, generator=generator) for _ in range(2))
    return first, second


def moco_v3(**options: object) -> MoCoV3:
    """A small MoCo v3 with fixed weights."""
    torch.manual_seed(0)
    small = {"hidden_dim": 24, "projection_dim": 8}
    return MoCoV3(backbone(), 12, MoCoV3Config(**(small | options)))


def different_target(method: M) -> M:
    """Gives the target other weights than the online network's."""
    with torch.no_grad():
        for number, parameter in enumerate(method.target.parameters()):
            wave = torch.sin(torch.arange(parameter.numel()).view_as(parameter) + number)
            parameter.add_(0.3 * wave)
    return method


def gradients(method: MoCoV3) -> list[Tensor]:
    """Gradients of all trained parameters."""
    return [p.grad for group in method.parameter_groups() for p in group.parameters]


def train_half(rank: int, folder: str) -> None:
    """One of two processes with half of the batch each; the second runs one graph."""
    torch.set_num_threads(1)
    views = some_views()
    # In eval mode, since statistics of a half would differ from those of the whole batch.
    whole = different_target(moco_v3(temperature=0.3)).eval()
    expected, _ = whole(views, LABELS)
    expected.backward()
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    method = different_target(moco_v3(temperature=0.3)).eval()
    if rank == 1:
        method.compile(fullgraph=True, backend="eager")
    loss, _ = method(tuple(view[3 * rank : 3 * rank + 3] for view in views), LABELS[:3])
    loss.backward()
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    torch.testing.assert_close(mean / 2, expected.detach())
    for gradient, reference in zip(gradients(method), gradients(whole), strict=True):
        dist.all_reduce(gradient)  # as DistributedDataParallel does
        torch.testing.assert_close(gradient / 2, reference, atol=1e-6, rtol=1e-5)
    dist.destroy_process_group()
