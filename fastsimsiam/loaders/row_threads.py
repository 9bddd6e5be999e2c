"""Threads that read the images of a batch, each the next one that no other has taken."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from fastsimsiam.loaders.bad_images import BadImagePolicy
from fastsimsiam.plan.batches import BatchPlan, Plan

Result = TypeVar("Result")


class RowThreads(Generic[Result]):
    """Threads for the rows of batches."""

    def __init__(
        self,
        policy: BadImagePolicy,
        name: Callable[[int], str],
        workers: int,
        enter: Callable[[], None] | None = None,
    ) -> None:
        """Starts the threads.

        Args:
            policy: what happens to broken images.
            name: name of a sample in reports.
            workers: number of threads.
            enter: called in each thread before its first image.
        """
        self._policy, self._name, self._workers = policy, name, workers
        self._closed = False
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="frames", initializer=enter)

    def submit(
        self, plan: Plan, batch: BatchPlan, read: Callable[[int], Result]
    ) -> "PendingBatch[Result]":
        """Begins to read a batch.

        Args:
            plan: the source of replacements for broken images.
            batch: the plan of the batch, changed where an image is replaced.
            read: reads a sample; called from all threads.
        """
        # Threads take rows from one iterator (its `next` is atomic), with one task per thread: a task
        # per image would cost the lock of all threads 50 us.
        rows = iter(range(len(batch.index)))
        images: dict[int, Result] = {}
        futures = [
            self._pool.submit(self._read_rows, plan, batch, rows, images, read)
            for _ in range(min(self._workers, len(batch.index)))
        ]
        return PendingBatch(batch=batch, images=images, rows=rows, futures=futures)

    def close(self) -> None:
        """Ends the threads, after the images that are being read."""
        self._closed = True
        self._pool.shutdown(cancel_futures=True)

    def _read_rows(
        self,
        plan: Plan,
        batch: BatchPlan,
        rows: Iterator[int],
        images: dict[int, Result],
        read: Callable[[int], Result],
    ) -> None:
        try:
            for row in rows:
                if self._closed:  # whoever iterates may be held by an exception for a while
                    break
                images[row] = self._policy.run(plan, batch, row, read, self._name)
        except BaseException:
            deque(rows, maxlen=0)  # the batch is lost: stops the other threads
            raise


@dataclass(frozen=True, kw_only=True)
class PendingBatch(Generic[Result]):
    """A batch whose images (by row) are being read, or whose tasks wait for a thread."""

    batch: BatchPlan
    images: dict[int, Result]
    rows: Iterator[int]
    futures: list[Future[None]]

    def results(self) -> list[Result]:
        """All images in order, once they are read.

        Raises:
            BadImageError: an image is broken and is not to be skipped.
        """
        for future in self.futures:
            future.result()
        return [self.images[row] for row in range(len(self.batch.index))]

    def abandon(self) -> None:
        """Stops the work after the images that are being read."""
        deque(self.rows, maxlen=0)
        for future in self.futures:
            future.cancel()
