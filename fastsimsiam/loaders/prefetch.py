"""Copies batches to the device on a side stream, ahead of the step that uses them."""

from collections import deque
from collections.abc import Iterator

import torch

from fastsimsiam.loaders.batch import Batch


def to_device(batches: Iterator[Batch], device: torch.device, depth: int = 2) -> Iterator[Batch]:
    """Yields `batches` on `device`; on a GPU `depth` copies are under way ahead of the consumer.

    Args:
        batches: batches in pinned host memory (for a GPU).
        device: where they go.
        depth: batches on their way or waiting on the device.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
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
        compute = torch.cuda.current_stream(device)
        compute.wait_event(arrived)
        for tensor in batch.tensors():
            # Tells the allocator that the compute stream uses memory of the copying stream.
            tensor.record_stream(compute)
        yield batch
