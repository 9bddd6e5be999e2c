"""Rows of all ranks, for losses that compare the images of the whole batch. Shapes: B batch of a rank.

Without torch.distributed, or with one rank, both functions return what they are given. Ranks average
their gradients, so a rank's loss is the mean over its own images.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_gather


def _alone() -> bool:
    return not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)


def rank() -> int:
    """Number of this process among the ranks; 0 without torch.distributed."""
    return 0 if _alone() else dist.get_rank()


def gather(rows: Tensor) -> Tensor:
    """The rows (B, ...) of all ranks in their order, (ranks B, ...), without gradient."""
    rows = rows.detach()
    if _alone():
        return rows
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


def gather_with_gradient(rows: Tensor) -> Tensor:
    """As `gather`; the gradient of a row is the sum of what all ranks' losses ask of it."""
    if _alone():
        return rows
    return torch.cat(all_gather(rows.contiguous()))  # type: ignore[no-untyped-call]
