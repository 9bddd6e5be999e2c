"""Permutations that are functions of a number: the same on every device, and after a resume."""

import torch
from torch import Tensor

_MASK = 2**31 - 1


def permutation(seed: Tensor, count: int, stream: int = 0) -> Tensor:
    """A random order of `count` things; compiled, a change of the seed compiles nothing again.

    Consecutive numbers are hashed to different numbers of 31 bits, whose products fit into 64, and
    these are sorted.

    Args:
        seed: 0-d int64 tensor in [0, 2^31).
        count: length of the permutation, B.
        stream: number of the permutation among those of a seed.

    Returns:
        (B,) int64 on the seed's device.
    """
    start = stream * count
    x = (seed + torch.arange(start, start + count, device=seed.device)) & _MASK
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = ((x ^ (x >> shift)) * factor) & _MASK
    return torch.argsort(x ^ (x >> 16))
