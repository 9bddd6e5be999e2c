"""The pipeline of the loader `ffcv`. Imports FFCV, so it is imported only when it is used.

Shapes: B batch, V views, G distinct crop sizes, T threads.
"""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from queue import Empty
from typing import Any

import ffcv._libffcv
import numba
import numpy as np
import numpy.typing as npt
import torch
from ffcv.fields.rgb_image import SimpleRGBImageDecoder
from ffcv.loader import Loader
from ffcv.memory_managers.base import MemoryContext
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.pipeline_spec import PipelineSpec
from ffcv.pipeline.state import State
from ffcv.traversal_order.base import TraversalOrder
from ffcv.utils import cast_int_to_byte_ptr

from fastsimsiam.loaders.base import BATCHES_AHEAD, size_groups
from fastsimsiam.loaders.ffcv_epoch import EpochPlan
from fastsimsiam.loaders.resample import PADDING, resample_box, row_bytes
from fastsimsiam.storage.beton import Beton

_CLOSE_SECONDS = 30.0
_PIXEL_FORMAT_RGB = 0
_ACCURATE = 0
"""No flags: the accurate DCT and smooth chroma upsampling, as in PIL."""

# Training and evaluation run pipelines at the same time, which Numba's default threads cannot.
numba.config.THREADING_LAYER = "threadsafe"


def _turbojpeg() -> tuple[Callable[[], int], Callable[..., int], Callable[[int], int]]:
    """The functions init, decompress and destroy of the libturbojpeg that FFCV is linked against."""
    library = ctypes.CDLL(ffcv._libffcv.__file__)
    init, decompress, destroy = (library.tjInitDecompress, library.tjDecompress2, library.tjDestroy)
    init.restype = ctypes.c_uint64
    # Addresses as integers, which Numba passes on unchanged.
    decompress.argtypes = [ctypes.c_uint64] * 4 + [ctypes.c_int] * 5
    decompress.restype = ctypes.c_int
    destroy.argtypes = [ctypes.c_uint64]
    return init, decompress, destroy


class _DecodeOnce(SimpleRGBImageDecoder):  # type: ignore[misc]
    """Decodes an image into its thread's frame and cuts all boxes.

    The result is (B, 1) int32: 0, or the error code of libjpeg-turbo.
    """

    def __init__(self, view_sizes: tuple[int, ...]) -> None:
        super().__init__()
        self._groups = [(side, len(views)) for side, views in size_groups(view_sizes).items()]
        self._order = np.array(
            [view for views in size_groups(view_sizes).values() for view in views], np.int64
        )

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        dtype = np.dtype("<i4")
        state = replace(previous_state, jit_mode=True, shape=(1,), dtype=dtype)
        return state, AllocationQuery((1,), dtype)

    def generate_code(self) -> Callable[..., Any]:
        read, threads = self.memory_read, Compiler.get_iterator()
        decompress = _turbojpeg()[1]
        sides = np.array([side for side, _ in self._groups], np.int64)
        counts = np.array([count for _, count in self._groups], np.int64)
        order = self._order

        def decode(
            batch_indices: Any, status: Any, metadata: Any, storage_state: Any
        ) -> Any:  # pragma: no cover (compiled)
            inner, boxes, targets, order_of_rows, handles, frames, scratch = storage_state
            for turn in threads(len(batch_indices)):
                position = order_of_rows[turn]
                field = metadata[batch_indices[position]]
                data = read(field["data_ptr"], inner)
                width, height = np.int64(field["width"]), np.int64(field["height"])
                thread = numba.get_thread_id()
                frame = frames[thread].ctypes.data
                status[position, 0] = decompress(
                    handles[thread],
                    data.ctypes.data,
                    np.uint64(data.size),
                    frame,
                    np.int32(width),
                    np.int32(3 * width),
                    np.int32(height),
                    np.int32(_PIXEL_FORMAT_RGB),
                    np.int32(_ACCURATE),
                )
                if status[position, 0] != 0:
                    continue
                view = 0
                for group in range(len(sides)):
                    side, count = sides[group], counts[group]
                    size = side * side * 3
                    for number in range(count):
                        place = targets[group] + np.uint64((position * count + number) * size)
                        out = numba.carray(cast_int_to_byte_ptr(place), (side, side, 3))
                        resample_box(
                            frame,
                            frames.shape[1],
                            3 * width,
                            boxes[position, order[view]],
                            scratch[thread],
                            out,
                        )
                        view += 1
            return status[: len(batch_indices)]

        decode.is_parallel = True  # type: ignore[attr-defined]
        return decode


class _PlannedOrder(TraversalOrder):  # type: ignore[misc]
    """The order of the epoch that runs next."""

    def __init__(self) -> None:
        self.order: npt.NDArray[np.uint64] = np.zeros(1, np.uint64)

    def __call__(self, loader: Loader) -> "_PlannedOrder":
        """FFCV constructs a traversal order with the loader; this one exists already."""
        return self

    def sample_order(self, epoch: int) -> Sequence[int]:
        return self.order  # type: ignore[return-value]


class _PlannedMemory:
    """FFCV's memory manager, extended by our inputs of the compiled code."""

    def __init__(self, manager: Any, state: tuple[Any, ...]) -> None:
        self.manager = manager
        self.boxes, self.targets, self.rows, handles = state[:4]
        self.workers = len(handles)
        self.state = state
        self.epoch_plan: EpochPlan | None = None

    def schedule_epoch(self, batches: Any) -> MemoryContext:
        assert self.epoch_plan is not None
        return _PlannedContext(self.manager.schedule_epoch(batches), self, self.epoch_plan)


class _PlannedContext(MemoryContext):  # type: ignore[misc]
    def __init__(self, inner: MemoryContext, memory: _PlannedMemory, plan: EpochPlan) -> None:
        self._inner, self._memory, self._plan = inner, memory, plan

    @property
    def state(self) -> tuple[Any, ...]:
        return (self._inner.state, *self._memory.state)

    def __enter__(self) -> Any:
        return self._inner.__enter__()

    def __exit__(self, *details: Any) -> None:
        self._inner.__exit__(*details)

    def start_batch(self, batch: int) -> None:
        try:
            memory = self._memory
            self._plan.prepare(batch, memory.boxes, memory.targets, memory.rows, memory.workers)
        except BaseException as error:
            self._plan.error = error  # raised in the thread that waits for the batch
            raise SystemExit from error  # ends this thread without a traceback
        self._inner.start_batch(batch)


class FfcvPipeline:
    """A compiled pipeline for one batch size and one set of view sizes."""

    def __init__(
        self, storage: Beton, batch_size: int, view_sizes: tuple[int, ...], workers: int
    ) -> None:
        """Compiles the pipeline, which takes some seconds.

        Args:
            storage: the packed file.
            batch_size: samples per batch.
            view_sizes: side of each view's crop in pixels.
            workers: number of threads.
        """
        self._order = _PlannedOrder()
        threads = torch.get_num_threads()
        self._loader = Loader(
            str(storage.root),
            batch_size=batch_size,
            num_workers=workers,
            os_cache=True,
            order=self._order,
            pipelines={
                "image": PipelineSpec("image", decoder=_DecodeOnce(view_sizes)),
                "label": None,
            },
            drop_last=False,
            batches_ahead=BATCHES_AHEAD,
        )
        torch.set_num_threads(threads)  # FFCV has changed it to its own number
        init, _, self._destroy = _turbojpeg()
        self._handles = np.array([init() for _ in range(workers)], np.uint64)
        height = int(storage.sizes[:, 0].max())
        largest = int(storage.sizes.astype(np.int64).prod(axis=1).max()) * 3
        self._memory = _PlannedMemory(
            self._loader.memory_manager,
            (
                np.zeros((batch_size, len(view_sizes), 4), np.int32),
                np.zeros(len(size_groups(view_sizes)), np.uint64),
                np.zeros(batch_size, np.int64),
                self._handles,
                # As large as the largest image: pages that are never written take no memory.
                np.empty((workers, largest + PADDING), np.uint8),
                np.empty((workers, height, row_bytes(max(view_sizes))), np.uint8),
            ),
        )
        self._loader.memory_manager = self._memory

    def __del__(self) -> None:
        for handle in getattr(self, "_handles", ()):
            self._destroy(int(handle))

    def run(self, epoch_plan: EpochPlan) -> Iterator[npt.NDArray[np.int32]]:
        """Makes the batches of an epoch.

        Yields:
            (B,) int32, 0 where the image was decoded, for every batch.
        """
        self._memory.epoch_plan = epoch_plan
        self._order.order = self._loader.first_traversal_order = epoch_plan.order
        threads = torch.get_num_threads()
        iterator = iter(self._loader)
        torch.set_num_threads(threads)
        try:
            while (result := _next(iterator, epoch_plan)) is not None:
                yield result[1][0][:, 0]
        finally:
            # The thread first, then the file that it reads.
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
