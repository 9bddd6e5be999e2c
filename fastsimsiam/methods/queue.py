"""A queue of keys of many batches, for MoCo and SwAV. Shapes: B batch, K size, D dimensions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastsimsiam.methods.gather import gather


class KeyQueue(nn.Module):
    """The newest K keys, in a ring; new ones replace the oldest.

    It is written outside of the compiled graph, after the backward pass, which needs the old keys. So
    the loss reads `keys` themselves, not a copy.

    Attributes:
        keys: (K, D) float32, random unit vectors at first; in checkpoints.
        pointer: row of the oldest key, where the next one goes; int64 on the device, in checkpoints.
    """

    keys: Tensor
    pointer: Tensor

    def __init__(self, size: int, dim: int) -> None:
        """Fills the queue from torch's generator.

        Args:
            size: number of keys, K.
            dim: dimensions of a key, D.
        """
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Replaces the oldest keys by those of all ranks, in the order of the ranks.

        Nothing waits for the device, and the queue is equal on all ranks.

        Args:
            keys: (B, D), any number of them; of more than K the last K remain.
        """
        new = gather(keys)
        size, count = len(self.keys), len(new)
        rows = torch.arange(max(0, count - size), count, device=new.device)
        self.keys.index_copy_(0, (self.pointer + rows) % size, new[-size:].to(self.keys.dtype))
        self.pointer.add_(count).remainder_(size)
