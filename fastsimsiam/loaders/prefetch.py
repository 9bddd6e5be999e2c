"""Prepares the next batches on a side stream while the step uses the current one."""

import functools
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, nullcontext
from queue import Full, Queue
from typing import Any

import torch

from fastsimsiam.loaders.base import BATCHES_AHEAD, Batch


@functools.cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """The one stream of all loaders: the allocator keeps freed memory for the stream that used it.

    Of high priority: its short kernels would otherwise queue behind all blocks of a convolution, and a
    decoder that waits for its stream would wait for as long.
    """
    return torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]


def to_device(
    batches: Iterator[Batch], device: torch.device, depth: int = BATCHES_AHEAD
) -> Iterator[Batch]:
    """Yields `batches` on `device`; to a GPU they are copied asynchronously, ahead of use.

    Args:
        batches: batches in host memory, pinned for a GPU.
        device: the target.
        depth: batches that are copied ahead of use.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream = side_stream(device)
    waiting: deque[tuple[Batch, torch.cuda.Event]] = deque()
    source = iter(batches)
    exhausted = False
    while True:
        while not exhausted and len(waiting) < depth:
            host = next(source, None)
            if host is None:
                exhausted = True
                break
            with torch.cuda.stream(stream):
                batch = host.to(device)
                arrived: torch.cuda.Event = torch.cuda.Event()  # type: ignore[no-untyped-call]
                arrived.record(stream)
            waiting.append((batch, arrived))
        if not waiting:
            return
        batch, arrived = waiting.popleft()
        _hand_over(batch, arrived, device)
        yield batch


def _hand_over(batch: Batch, ready: torch.cuda.Event, device: torch.device) -> None:
    """Makes the current stream wait for a batch that the side stream has made."""
    compute = torch.cuda.current_stream(device)
    compute.wait_event(ready)
    for tensor in batch.tensors():
        # Tells the allocator that the compute stream, too, uses this memory of the side stream.
        tensor.record_stream(compute)


def ahead(
    make: Callable[[], Iterator[Batch]], device: torch.device, depth: int = BATCHES_AHEAD
) -> Iterator[Batch]:
    """Yields the batches of `make()`, which runs in another thread and on the side stream.

    Args:
        make: a generator function that makes batches on `device`.
        device: the device of the batches.
        depth: finished batches that wait for use.
    """
    queue: Queue[Any] = Queue(depth)
    stop = threading.Event()

    def put(item: object) -> None:
        while not stop.is_set():
            try:
                return queue.put(item, timeout=0.1)
            except Full:
                continue

    def run() -> None:
        # All of it: an error that did not arrive would leave the other thread waiting for ever.
        try:
            gpu = device.type == "cuda"
            stream = side_stream(device) if gpu else None
            batches = make()
            assert isinstance(batches, Generator)
            with torch.cuda.stream(stream) if gpu else nullcontext(), closing(batches):
                for batch in batches:
                    ready = torch.cuda.Event() if gpu else None  # type: ignore[no-untyped-call]
                    if ready:
                        ready.record(stream)
                    put((batch, ready))
                    if stop.is_set():
                        return
                put(None)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=run, name="ahead", daemon=True)
    thread.start()
    try:
        while (item := queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            batch, ready = item
            if ready:
                _hand_over(batch, ready, device)
            yield batch
    finally:
        stop.set()
        thread.join()
