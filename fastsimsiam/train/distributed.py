"""The processes that torchrun started; one process is the common case.

Ranks meet in two ways. Collectives (`mean`, `maximum`, gradients) need all ranks at once and cannot be
left. Whoever may wait for long, for an evaluation or a data set, waits at the launcher's store instead:
there a rank notices signals, and that another one has ended.
"""

import itertools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from fastsimsiam.errors import UserError
from fastsimsiam.system.launcher import QUIET_SECONDS, Launch, read_launch, stay_quiet

_Made = TypeVar("_Made")
_START = timedelta(minutes=10)
"""How long the processes of a run wait for one another to start."""
_COLLECTIVE = timedelta(minutes=30)
"""Longer than any difference between ranks in loading and compiling a step."""
_SLOWEST_POLL = 0.05
_joined = itertools.count()
_ENDED, _LEFT, _REASON = "ended", "left", "reason"
_SIGNAL, _ERROR = "signal", "error"
"""Why the first rank that has ended did so."""
_LOST = ("onnection", "peer", "socket", "Broken pipe", "NCCL", "recv", "Timed out", "timed out")
"""Words in torch's errors of a connection between processes."""


class OtherRankEnded(SystemExit):
    """Another rank has ended the run and tells why: this one ends in silence, with exit code 2."""


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among the others.

    Attributes:
        rank: number of this process among all.
        local_rank: number of this process on its machine.
        size: number of processes.
        store: what the launcher's processes share; None for a process alone.
    """

    rank: int = 0
    local_rank: int = 0
    size: int = 1
    store: Store | None = None
    _meetings: Iterator[int] = field(default_factory=itertools.count)

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

    def united(self, texts: dict[str, str]) -> dict[str, str]:
        """The entries of all ranks."""
        if self.size == 1:
            return texts
        parts: list[dict[str, str] | None] = [None] * self.size
        dist.all_gather_object(parts, texts)
        return {key: text for part in parts for key, text in (part or {}).items()}

    def wait(self) -> None:
        """Waits for all ranks, as long as it takes.

        Raises:
            OtherRankEnded: one of them has ended the run.
        """
        if self.store is None:
            return
        meeting = f"meeting {next(self._meetings)}"
        present = self.store.add(meeting, 1)
        pause = 0.001
        while present < self.size:
            if self.another_ended():
                raise OtherRankEnded(2)
            time.sleep(pause)
            pause = min(2 * pause, _SLOWEST_POLL)
            present = self.store.add(meeting, 0)

    def another_ended(self) -> bool:
        """Whether a rank has ended the run before its end."""
        return self.store is not None and self.store.add(_ENDED, 0) > 0

    def stop(self) -> bool:
        """Ends the run on all ranks for a signal; False if another has ended it by an error."""
        if self.store is None:
            return True
        reason = self.store.compare_set(_REASON, "", _SIGNAL)
        self.store.add(_ENDED, 1)
        return reason == _SIGNAL.encode()

    def end(self) -> bool:
        """Ends the run on all ranks; returns whether this rank is the first that does."""
        if self.store is None:
            return True
        self.store.compare_set(_REASON, "", _ERROR)
        return self.store.add(_ENDED, 1) == 1


@contextmanager
def join(device_type: str) -> Iterator[World]:
    """Joins the processes that a launcher's environment variables describe, and leaves them at the end.

    An error of one rank ends the others: it is raised there, and `OtherRankEnded` elsewhere.

    Args:
        device_type: `cuda` (NCCL) or `cpu` (Gloo).

    Raises:
        UserError: the variables are incomplete, the processes do not find each other, one of them has
            died, or there are more than GPUs.
        OtherRankEnded: another rank has ended the run.
    """
    launch = read_launch()
    if launch.size == 1:
        yield World()
        return
    store = _find_the_others(launch)
    world = World(rank=launch.rank, local_rank=launch.local_rank, size=launch.size, store=store)
    silent = True
    try:
        if device_type == "cuda":
            _take_gpu(launch)
        backend = "nccl" if device_type == "cuda" else "gloo"
        dist.init_process_group(
            backend, store=store, rank=world.rank, world_size=world.size, timeout=_COLLECTIVE
        )
        yield world
        silent = False
    except OtherRankEnded:
        raise
    except BaseException as error:
        problem = _lost_rank(error)
        first = _is_first_to_end(world)
        if not first:
            raise OtherRankEnded(2) from error
        silent = False
        if problem:
            raise problem from error
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        _leave(world)
        if silent:
            stay_quiet()


def _find_the_others(launch: Launch) -> Store:
    where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        store, _, _ = next(rendezvous("env://", timeout=_START))
    except (RuntimeError, ValueError, OSError) as error:
        reason = str(error).partition("\n")[0][:160]
        raise UserError(
            f"process {launch.rank} of {launch.size} finds no others at {where} ({reason}): check "
            f"MASTER_ADDR and MASTER_PORT, or start with torchrun, which sets them"
        ) from error
    assert isinstance(store, Store)
    # A script may do several runs, each with keys of its own.
    return PrefixStore(f"fastsimsiam {next(_joined)}", store)


def _take_gpu(launch: Launch) -> None:
    if launch.local_rank >= torch.cuda.device_count():
        raise UserError(
            f"there are more processes than the {torch.cuda.device_count()} GPUs of this machine: "
            f"lower --nproc-per-node"
        )
    torch.cuda.set_device(launch.local_rank)


def _is_first_to_end(world: World) -> bool:
    """Claims the end of the run; where the store is gone, its process has ended before."""
    try:
        return world.end()
    except RuntimeError:
        return True


def _lost_rank(error: BaseException) -> UserError | None:
    """What an error of torch means if it comes from the connection to another process."""
    text = str(error)
    lost = isinstance(error, dist.DistError) or any(word in text for word in _LOST)
    if not isinstance(error, RuntimeError) or not lost:
        return None
    reason = text.partition("\n")[0][:160]
    return UserError(
        f"the connection to another process of the run is lost ({reason}): it was killed, or the "
        f"memory was too small for it; go on with --resume"
    )


def _leave(world: World) -> None:
    """Leaves the store; the process that holds it stays until the others have left."""
    assert world.store is not None
    held_by_launcher = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    deadline = time.monotonic() + 2 * QUIET_SECONDS
    with suppress(RuntimeError):  # the store is gone
        left = world.store.add(_LEFT, 1)
        while (
            world.is_main
            and not held_by_launcher
            and left < world.size
            and time.monotonic() < deadline
        ):
            time.sleep(_SLOWEST_POLL)
            left = world.store.add(_LEFT, 0)
