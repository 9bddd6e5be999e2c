"""The pipeline of the loader `ffcv`. Imports FFCV, so it is imported only when it is used.

FFCV's compiler, threads and queue of finished batches; its reader and its memory manager, which map the
file and trust its tables, are replaced by ours.

Shapes: B batch, V views, T threads, N images.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from queue import Empty
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from ffcv.fields import RGBImageField
from ffcv.loader.epoch_iterator import EpochIterator
from ffcv.memory_managers.base import MemoryContext
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.graph import Graph
from ffcv.pipeline.pipeline_spec import PipelineSpec

from fastsimsiam.config.views import Interpolation
from fastsimsiam.errors import UserError
from fastsimsiam.loaders.base import BATCHES_AHEAD, size_groups
from fastsimsiam.loaders.ffcv_decode import HEADER_NUMBERS, DecodeOnce, Inputs, functions
from fastsimsiam.loaders.ffcv_epoch import EpochPlan
from fastsimsiam.loaders.resample import PADDING, row_bytes
from fastsimsiam.storage.beton import Beton

_CLOSE_SECONDS = 30.0
_LARGEST_FRAME = 3 << 27
_LARGEST_RECORD = 1 << 28
"""Bytes of memory that a thread reserves at most for a frame, 134 megapixels, and for a record."""

# Training and evaluation run pipelines at the same time, which Numba's default threads cannot.
numba.config.THREADING_LAYER = "threadsafe"


class _Context(MemoryContext):  # type: ignore[misc]
    """What FFCV calls a memory manager's state of an epoch: prepares each batch before it is made."""

    def __init__(self, inputs: Inputs, plan: EpochPlan) -> None:
        self._inputs, self._plan = inputs, plan

    @property
    def state(self) -> tuple[Any, ...]:
        return tuple(vars(self._inputs).values())

    def __enter__(self) -> None:
        pass

    def __exit__(self, *details: Any) -> None:
        pass

    def start_batch(self, batch: int) -> None:
        inputs = self._inputs
        try:
            self._plan.prepare(
                batch, inputs.boxes, inputs.targets, inputs.rows, len(inputs.handles)
            )
        except BaseException as error:
            self._plan.error = error  # raised in the thread that waits for the batch
            raise SystemExit from error  # ends this thread without a traceback


@dataclass
class _Reader:
    """What FFCV's iterator asks of a reader: N rows with the fields of the images."""

    metadata: npt.NDArray[np.void]


@dataclass
class _Loader:
    """What FFCV's iterator asks of a loader, and of its memory manager."""

    reader: _Reader
    graph: Graph
    code: Any
    batch_size: int
    num_workers: int
    inputs: Inputs
    epoch_plan: EpochPlan | None = None
    batches_ahead: int = BATCHES_AHEAD
    traversal_order: None = None

    @property
    def memory_manager(self) -> "_Loader":
        return self

    def schedule_epoch(self, batches: Sequence[Sequence[int]]) -> _Context:
        assert self.epoch_plan is not None
        return _Context(self.inputs, self.epoch_plan)


_ROW = np.dtype([("f0", [(name, "<i8") for name in ("pointer", "length", "height", "width")])])
"""What the compiled code knows of an image, in a field named as FFCV expects it."""


def _metadata(storage: Beton) -> npt.NDArray[np.void]:
    """(N,) rows of all images."""
    rows = np.empty(len(storage), _ROW)
    images = rows["f0"]
    images["pointer"], images["length"] = storage.pointer, storage.length
    images["height"], images["width"] = storage.sizes.T
    return rows


@cache
def _compiled(
    view_sizes: tuple[int, ...], interpolations: tuple[Interpolation, ...], parallel: bool
) -> tuple[Graph, Any]:
    """FFCV's graph and code of a set of views: the same for all files, compiled at first use."""
    spec = PipelineSpec("image", decoder=DecodeOnce(view_sizes, interpolations))
    threads, torch_threads = numba.get_num_threads(), torch.get_num_threads()
    Compiler.set_num_threads(2 if parallel else 1)  # torch's too; which code it is depends on it
    try:
        no_rows = np.empty(0, _ROW)
        graph = Graph({"image": spec}, {"image": RGBImageField()}, {"image": 0}, no_rows, None)
        return graph, graph.codegen_all(graph.collect_requirements()[1])
    finally:
        Compiler.set_num_threads(threads)
        torch.set_num_threads(torch_threads)


class FfcvPipeline:
    """A compiled pipeline for one batch size and one set of views."""

    def __init__(
        self,
        storage: Beton,
        batch_size: int,
        view_sizes: tuple[int, ...],
        interpolations: tuple[Interpolation, ...],
        workers: int,
    ) -> None:
        """Prepares the pipeline; the first one of its views is compiled, which takes some seconds.

        Args:
            storage: the packed file.
            batch_size: samples per batch.
            view_sizes: side of each view's crop in pixels.
            interpolations: filter of each view.
            workers: number of threads.

        Raises:
            UserError: the memory for a frame of each thread cannot be reserved.
        """
        self._file = storage.file  # stays open as long as the compiled code may read it
        c = functions()
        self._destroy = c.destroy
        self._handles = np.array([c.init() for _ in range(workers)], np.uint64)
        height = int(storage.sizes[:, 0].max())
        frame = min(int(storage.sizes.astype(np.int64).prod(axis=1).max()) * 3, _LARGEST_FRAME)
        record = min(int(storage.length.max()), _LARGEST_RECORD)
        try:
            inputs = Inputs(
                boxes=np.zeros((batch_size, len(view_sizes), 4), np.int32),
                targets=np.zeros(len(size_groups(view_sizes)), np.uint64),
                rows=np.zeros(batch_size, np.int64),
                file=np.array([storage.file.descriptor], np.int32),
                handles=self._handles,
                # As large as the largest image: pages that are never written take no memory.
                records=np.empty((workers, record), np.uint8),
                headers=np.zeros((workers, HEADER_NUMBERS), np.int32),
                frames=np.empty((workers, frame + PADDING), np.uint8),
                scratch=np.empty((workers, height, row_bytes(max(view_sizes))), np.uint8),
            )
        except MemoryError as error:
            raise UserError(
                f"{storage.root} has images of {frame / 1e6:.0f} MB, too large for the memory of "
                f"{workers} threads: pass a smaller --workers"
            ) from error
        graph, code = _compiled(view_sizes, interpolations, workers > 1)
        self._loader = _Loader(
            reader=_Reader(_metadata(storage)),
            graph=graph,
            code=code,
            batch_size=batch_size,
            num_workers=workers,
            inputs=inputs,
        )

    def __del__(self) -> None:
        for handle in getattr(self, "_handles", ()):
            self._destroy(int(handle))

    def run(self, epoch_plan: EpochPlan) -> Iterator[npt.NDArray[np.int32]]:
        """Makes the batches of an epoch.

        Yields:
            (B,) int32 statuses, DECODED or LEFT, for every batch.
        """
        self._loader.epoch_plan = epoch_plan
        threads = torch.get_num_threads()
        iterator = EpochIterator(self._loader, epoch_plan.order)
        torch.set_num_threads(threads)
        try:
            while (result := _next(iterator, epoch_plan)) is not None:
                yield result[1][0][:, 0]
        finally:
            # The thread first, then the memory that it uses.
            iterator.terminate_event.set()
            iterator.join(_CLOSE_SECONDS)
            iterator.close()


def _next(iterator: Any, epoch_plan: EpochPlan) -> Any:
    """The next batch; FFCV's iterator would wait forever for a thread that has died."""
    while True:
        try:
            return iterator.output_queue.get(timeout=0.5)
        except Empty:
            if not iterator.is_alive() and iterator.output_queue.empty():
                raise epoch_plan.error or RuntimeError("FFCV's thread has died") from None
