"""Batches made in processes: the threads of one share an interpreter lock with the training step.

On a GPU server 16 threads keep seven cores busy, because each image needs the lock for a tenth of a
millisecond, and the step, which needs it for each of a thousand kernels, takes half as long again
(benchmarks/LOG.md). Some processes with a few threads each use all cores and leave the step alone.

A process writes its pixels into a slot, see slots.py. The rest of a batch comes through a pipe.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from fastsimsiam.errors import BadImageError, UserError
from fastsimsiam.loaders.bad_images import BadImagePolicy
from fastsimsiam.loaders.base import LoaderOptions
from fastsimsiam.loaders.slots import SLOTS, Filled, Slots
from fastsimsiam.plan.batches import BatchPlan, Plan
from fastsimsiam.storage.base import Storage
from fastsimsiam.system.buffers import BufferPool
from fastsimsiam.system.processes import InProcesses
from fastsimsiam.system.resources import num_workers

_NICENESS = 5
"""Processes give way to the thread that feeds the GPU."""
Content = TypeVar("Content")
Fill = Callable[[Plan, BatchPlan, Tensor], Content]
"""Writes the pixels of a batch to the bytes (N,) of a slot, and tells where they are. The batch plan is
changed where an image is replaced."""
StartThreads = Callable[[BadImagePolicy, int], Fill[Content]]
"""Starts, in a process, that many threads for a `Fill`."""


@dataclass(frozen=True, kw_only=True)
class Made(Generic[Content]):
    """A batch whose pixels are in a slot.

    Attributes:
        batch: the plan of the batch, after replacements.
        content: what `Fill` has told; None if there was an error.
        bad_images, warned_images: those of this batch, see `loaders.base.Loader`.
        error: the reason why there is no such batch.
    """

    batch: BatchPlan
    content: Content | None
    bad_images: dict[str, str]
    warned_images: dict[str, str]
    error: UserError | None = None


class _Maker(Generic[Content]):
    """What the processes run; each has a number, and threads of its own."""

    def __init__(
        self,
        plan: Plan,
        epoch: int,
        start: int,
        policy: BadImagePolicy,
        start_threads: StartThreads[Content],
        slots: list[Slots],
        threads: list[int],
    ) -> None:
        self._plan, self._epoch, self._start = plan, epoch, start
        self._policy, self._start_threads = policy, start_threads
        self._slots, self._threads = slots, threads
        self._parent = os.getpid()
        self._fill: Fill[Content] | None = None

    def make(self, step: int) -> Made[Content]:
        """Makes a batch in the next slot of this process."""
        turn, process = divmod(step - self._start, len(self._slots))
        if self._fill is None:
            os.nice(_NICENESS)
            self._fill = self._start_threads(self._policy, self._threads[process])
        slots = self._slots[process]
        slots.acquire(self._parent)
        batch = self._plan.batch(self._epoch, step)
        content: Content | None = None
        error: UserError | None = None
        try:
            content = self._fill(self._plan, batch, slots.memory[turn % SLOTS])
        except BadImageError as problem:
            error = BadImageError(str(problem))
        except UserError as problem:
            error = UserError(str(problem))
        made = Made(
            batch=batch,
            content=content,
            bad_images=dict(self._policy.bad_images),
            warned_images=dict(self._policy.warned_images),
            error=error,
        )
        self._policy.bad_images.clear()
        self._policy.warned_images.clear()
        return made


class SlotProcesses(Generic[Content]):
    """Processes that make batches in slots, with some threads in each.

    Attributes:
        bad_images, warned_images: see `loaders.base.Loader`.
        count: number of processes.
    """

    def __init__(
        self,
        storage: Storage,
        options: LoaderOptions,
        processes: int,
        start_threads: StartThreads[Content],
    ) -> None:
        """Starts none; processes start with each epoch.

        Args:
            storage: the images.
            options: device, threads of all processes together, broken images.
            processes: number of processes.
            start_threads: starts the threads of a process.

        Raises:
            UserError: a file has no readable header and is not to be skipped.
        """
        BadImagePolicy(options.on_bad_image).require_readable(storage)
        self.bad_images: dict[str, str] = {}
        self.warned_images: dict[str, str] = {}
        self._options, self._start_threads = options, start_threads
        workers = num_workers(options.workers)
        self.count = max(1, min(processes, workers))
        self._threads = [
            workers // self.count + (p < workers % self.count) for p in range(self.count)
        ]
        self._buffers = BufferPool(options.device)
        self._slots: list[Slots] = []

    @contextmanager
    def run(
        self, plan: Plan, epoch: int, start: int, size: int
    ) -> Iterator[Iterator[tuple[Made[Content], Filled]]]:
        """Starts the processes, from the thread that calls this, and ends them.

        Args:
            plan: the batches.
            epoch: number of the epoch.
            start: the first batch.
            size: bytes of each slot.

        Returns:
            The batches in order; each is to be sent before the next is asked for.
        """
        steps = range(start, plan.num_batches)
        processes = min(self.count, len(steps))
        if not processes:
            yield iter(())
            return
        slots = self._slots_of(size)[:processes]
        options = self._options
        policy = BadImagePolicy(options.on_bad_image, options.gray16_max)
        maker = _Maker(plan, epoch, start, policy, self._start_threads, slots, self._threads)
        made = InProcesses(maker.make, steps, processes, "loader process", start_method="fork")
        with closing(made):
            yield self._received(made, len(steps), slots)

    def close(self) -> None:
        """Frees the memory; processes end with each epoch."""
        for slots in self._slots:
            slots.close()
        self._slots.clear()
        self._buffers.clear()

    def _received(
        self, results: InProcesses[Made[Content]], count: int, slots: list[Slots]
    ) -> Iterator[tuple[Made[Content], Filled]]:
        arrived = iter(results)
        for number in range(count):
            turn, process = divmod(number, len(slots))
            self._poll(slots)
            slots[process].require_one()
            made = next(arrived)
            self._poll(slots)  # the step may keep this thread until the next batch is asked for
            if made.error is not None:
                raise made.error
            self.bad_images.update(made.bad_images)
            self.warned_images.update(made.warned_images)
            yield made, Filled(slots=slots[process], number=turn % SLOTS)

    def _poll(self, slots: list[Slots]) -> None:
        for own in slots:
            own.poll()

    def _slots_of(self, size: int) -> list[Slots]:
        """Free slots of `size` bytes or more, used again: fresh pages cost a tenth of the decoding."""
        if self._slots and self._slots[0].size < size:
            for slots in self._slots:
                slots.close()
            self._slots.clear()
        if not self._slots:
            device = self._options.device
            self._slots = [Slots(size, device, self._buffers) for _ in range(self.count)]
        for slots in self._slots:
            slots.restart()
        return self._slots
