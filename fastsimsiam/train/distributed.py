"""The processes that torchrun started; one process is the common case."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist

from fastsimsiam.errors import UserError

_Made = TypeVar("_Made")
# Longer than an evaluation, for which the other ranks wait.
_TIMEOUT = timedelta(hours=2)


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among the others.

    Attributes:
        rank: number of this process among all.
        local_rank: number of this process on its machine.
        size: number of processes.
    """

    rank: int = 0
    local_rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean of a tensor over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def maximum(self, value: int, device: torch.device) -> int:
        """The largest value of all ranks; with several ranks, waits for the device."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, device=device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return int(tensor.item())

    def from_main(self, make: Callable[[], _Made]) -> _Made:
        """What `make` returns on the main rank, where alone it is called, on all ranks.

        Raises:
            UserError: raised by `make`; on all ranks.
        """
        if self.size == 1:
            return make()
        shared: list[object] = [None, None]
        if self.is_main:
            try:
                shared = [make(), None]
            except UserError as error:
                shared = [None, str(error)]
                dist.broadcast_object_list(shared)
                raise
        dist.broadcast_object_list(shared)
        made, problem = shared
        if problem is not None:
            raise UserError(str(problem))
        return cast(_Made, made)

    def wait(self) -> None:
        """Waits for all ranks."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def join(device_type: str) -> Iterator[World]:
    """Joins the processes that torchrun's environment variables describe, and leaves them at the end.

    Args:
        device_type: `cuda` (NCCL) or `cpu` (Gloo).

    Raises:
        UserError: there are more processes than GPUs.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    world = World(rank=int(os.environ["RANK"]), local_rank=int(os.environ["LOCAL_RANK"]), size=size)
    if device_type == "cuda":
        if world.local_rank >= torch.cuda.device_count():
            raise UserError(
                f"there are more processes than the {torch.cuda.device_count()} GPUs of this "
                f"machine: lower --nproc-per-node"
            )
        torch.cuda.set_device(world.local_rank)
    dist.init_process_group("nccl" if device_type == "cuda" else "gloo", timeout=_TIMEOUT)
    try:
        yield world
    finally:
        dist.destroy_process_group()
