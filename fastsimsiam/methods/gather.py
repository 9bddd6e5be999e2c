"""Rows of all ranks, for losses that compare the images of the whole batch. Shapes: B batch of a rank.

Without torch.distributed, or with one rank, both functions return what they are given. Ranks average
their gradients, so a rank's loss is the mean over its own images.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def _alone() -> bool:
    return not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)


def rank() -> int:
    """Number of this process among the ranks; 0 without torch.distributed."""
    return 0 if _alone() else dist.get_rank()


def world_size() -> int:
    """Number of ranks; 1 without torch.distributed."""
    return 1 if _alone() else dist.get_world_size()


def gather(rows: Tensor) -> Tensor:
    """The rows (B, ...) of all ranks in their order, (ranks B, ...), without gradient."""
    rows = rows.detach()
    if _alone():
        return rows
    everyone = rows.new_empty((dist.get_world_size() * len(rows), *rows.shape[1:]))
    dist.all_gather_into_tensor(everyone, rows.contiguous())
    return everyone


def gather_with_gradient(rows: Tensor) -> Tensor:
    """As `gather`; the gradient of a row is the sum of what all ranks' losses ask of it."""
    return rows if _alone() else _Gather.apply(rows)


class _Gather(torch.autograd.Function):
    """Unlike `torch.distributed.nn`, whose functions cannot be compiled."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        """See `gather`."""
        return gather(rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """The sum over ranks, of which each takes the part of its own rows."""
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        share = len(total) // dist.get_world_size()
        return total[rank() * share : (rank() + 1) * share]
