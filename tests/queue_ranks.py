"""What one of two processes does in test_moco.py; it imports little, since each process imports it."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from fastsimsiam.config.methods import MoCoConfig
from fastsimsiam.methods.base import Progress
from fastsimsiam.methods.moco import MoCo

STEPS = 3


def fill(rank: int, folder: str) -> None:
    """Trains on four images of its own; the queues of both ranks hold the keys of all eight."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.BatchNorm1d(6))
    config = MoCoConfig(projection_dim=5, queue_size=20, bn_group_size=2, symmetric="sum")
    method = MoCo(backbone, 6, config)
    expected = method.queue.keys.clone()
    for step in range(STEPS):
        generator = torch.Generator().manual_seed(10 * step + rank)
        views = tuple(torch.rand(4, 3, 4, 4, generator=generator) for _ in range(2))
        method.before_step(Progress(step=step, steps_per_epoch=9, total_steps=9))
        method(views, torch.zeros(4))[0].backward()
        own = method.fresh_keys
        both = [torch.empty_like(own) for _ in range(2)]
        dist.all_gather(both, own)
        assert not torch.equal(*both)
        method.after_part()
        for row, key in enumerate(torch.cat(both)):
            expected[(16 * step + row) % 20] = key
        torch.testing.assert_close(method.queue.keys, F.normalize(expected, dim=1))
        assert torch.equal(method.queue.keys, expected)
        assert method.queue.pointer == 16 * (step + 1) % 20
        for buffer in (method.queue.keys, method.queue.pointer):
            of_both = [torch.empty_like(buffer) for _ in range(2)]
            dist.all_gather(of_both, buffer)
            assert torch.equal(*of_both)
    dist.destroy_process_group()
