"""SwAV on half of a batch, in one of two processes, which import this and nothing slow."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastsimsiam.config.methods import SwAVConfig
from fastsimsiam.methods.base import Progress
from fastsimsiam.methods.swav import SwAV

STEPS = 5


def build() -> SwAV:
    """A small SwAV with a queue that is full after three steps; in eval mode.

    BatchNorm's statistics of a half would differ from those of the whole batch.
    """
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 6))
    config = SwAVConfig(projection_dim=5, prototypes=9, queue_size=24, queue_start_epoch=0)
    return SwAV(backbone, 6, config).eval()


def views(step: int, rows: slice) -> tuple[Tensor, ...]:
    """Two large views and a small one of eight images, of which some are taken."""
    generator = torch.Generator().manual_seed(step)
    return tuple(torch.rand(8, 3, side, side, generator=generator)[rows] for side in (4, 4, 2))


def step(method: SwAV, number: int, rows: slice) -> tuple[Tensor, list[Tensor]]:
    """The loss and the gradients of a step, after which the queue is filled."""
    method.before_step(Progress(step=number, steps_per_epoch=9, total_steps=9))
    method.zero_grad()
    loss, _ = method(views(number, rows), torch.zeros(8))
    loss.backward()
    method.after_part()
    return loss.detach(), [p.grad for p in method.parameters() if p.grad is not None]


def compare(rank: int, folder: str) -> None:
    """Both ranks together do what one does with the whole batch."""
    torch.set_num_threads(1)
    whole = build()
    expected = [step(whole, number, slice(0, 8)) for number in range(STEPS)]
    assert whole.queue_used == 1
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    method = build()
    for number, (loss, gradients) in enumerate(expected):
        own, parts = step(method, number, slice(4 * rank, 4 * rank + 4))
        for mine, reference in zip([own, *parts], [loss, *gradients], strict=True):
            total = mine.clone()
            dist.all_reduce(total)  # as DistributedDataParallel does
            torch.testing.assert_close(total / 2, reference, atol=1e-6, rtol=1e-5)
    for name, buffer in method.named_buffers():
        torch.testing.assert_close(buffer, whole.get_buffer(name))
    dist.destroy_process_group()
