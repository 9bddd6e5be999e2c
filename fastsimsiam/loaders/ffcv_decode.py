"""The compiled code of the loader `ffcv`: reads, decodes and crops a batch. Imports FFCV and Numba.

Shapes: B batch, V views, G distinct crop sizes, T threads.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import ffcv._libffcv
import numba
import numpy as np
import numpy.typing as npt
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.operation import Operation
from ffcv.pipeline.state import State
from ffcv.utils import cast_int_to_byte_ptr

from fastsimsiam.config.views import Interpolation
from fastsimsiam.loaders.base import size_groups
from fastsimsiam.loaders.resample import PADDING, resample_box

DECODED = 0
LEFT = 1
"""Statuses of an image. LEFT: no crops; the record cannot be read, is not an RGB or gray JPEG of the
size that the file claims, is damaged, or is too large for the memory reserved."""
HEADER_NUMBERS = 16
"""int32 of a thread's header, a cache line; width, height, subsampling and colorspace are used."""

_PIXEL_FORMAT_RGB = 0
_LAST_PLAIN_COLORSPACE = 2
"""RGB, YCbCr and gray come before CMYK and YCCK."""
_ACCURATE = 0
"""No flags: the accurate DCT and smooth chroma upsampling, as in PIL."""


@dataclass(frozen=True)
class Inputs:
    """What the compiled code gets besides rows of images, in its order: a batch, and threads' memory.

    Attributes:
        boxes: (B, V, 4) int32 boxes.
        targets: (G,) uint64 addresses of the crop tensors.
        rows: (B,) int64 rows in the order in which the threads take them.
        file: (1,) int32 the system's number of the open file.
        handles: (T,) uint64 libturbojpeg's decompressors.
        records: (T, bytes) uint8 the record that is decoded.
        headers: (T, 16) int32 its header.
        frames: (T, bytes) uint8 its pixels.
        scratch: (T, rows, bytes) uint8 memory of `resample_box`.
    """

    boxes: npt.NDArray[np.int32]
    targets: npt.NDArray[np.uint64]
    rows: npt.NDArray[np.int64]
    file: npt.NDArray[np.int32]
    handles: npt.NDArray[np.uint64]
    records: npt.NDArray[np.uint8]
    headers: npt.NDArray[np.int32]
    frames: npt.NDArray[np.uint8]
    scratch: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Functions:
    """Functions of C, of the libturbojpeg that FFCV is linked against and of the system."""

    init: Callable[[], int]
    header: Callable[..., int]
    decompress: Callable[..., int]
    destroy: Callable[[int], int]
    pread: Callable[..., int]


def functions() -> Functions:
    """Loads the functions, with types for which Numba can call them."""
    library, system = ctypes.CDLL(ffcv._libffcv.__file__), ctypes.CDLL(None)
    init, destroy, pread = library.tjInitDecompress, library.tjDestroy, system.pread
    header, decompress = library.tjDecompressHeader3, library.tjDecompress2
    # Addresses as integers, which Numba passes on unchanged.
    address, number = ctypes.c_uint64, ctypes.c_int
    init.restype = address
    destroy.argtypes = [address]
    header.argtypes = [address] * 7
    decompress.argtypes = [address] * 4 + [number] * 5
    pread.argtypes = [number, address, ctypes.c_uint64, ctypes.c_int64]
    pread.restype = ctypes.c_int64
    return Functions(init, header, decompress, destroy, pread)


class DecodeOnce(Operation):  # type: ignore[misc]
    """Reads a record, decodes its image into the thread's frame and cuts all boxes.

    The image is decoded only if its JPEG's header has the size for which memory is reserved. The result
    is (B, 1) int32, the status.
    """

    def __init__(
        self, view_sizes: tuple[int, ...], interpolations: tuple[Interpolation, ...]
    ) -> None:
        """Takes the side of each view's crop in pixels, and its filter."""
        super().__init__()
        self._interpolations = interpolations
        self._groups = [(side, len(views)) for side, views in size_groups(view_sizes).items()]
        self._order = np.array(
            [view for views in size_groups(view_sizes).values() for view in views], np.int64
        )

    def declare_state_and_memory(self, previous_state: State) -> tuple[State, AllocationQuery]:
        """The result's shape and type, without B."""
        dtype = np.dtype("<i4")
        state = replace(previous_state, jit_mode=True, shape=(1,), dtype=dtype)
        return state, AllocationQuery((1,), dtype)

    def generate_code(self) -> Callable[..., Any]:
        """The function that FFCV compiles, for rows of images and the fields of `Inputs`."""
        c, threads = functions(), Compiler.get_iterator()
        pread, read_header, decompress = c.pread, c.header, c.decompress
        sides = np.array([side for side, _ in self._groups], np.int64)
        counts = np.array([count for _, count in self._groups], np.int64)
        order = self._order
        # Of the second filter only what a view needs is compiled.
        kinds = sorted(set(self._interpolations))
        second = np.array([name == kinds[-1] for name in self._interpolations], np.bool_)
        cut, cut_second = resample_box[kinds[0]], resample_box[kinds[-1]]
        two_kinds = len(kinds) > 1

        def decode(
            batch_indices: Any, status: Any, metadata: Any, state: Any
        ) -> Any:  # pragma: no cover (compiled)
            boxes, targets, order_of_rows, file, handles, records, headers, frames, scratch = state
            room = frames.shape[1] - PADDING
            for turn in threads(len(batch_indices)):
                position = order_of_rows[turn]
                status[position, 0] = LEFT
                image = metadata[batch_indices[position]]
                width, height, length = image["width"], image["height"], image["length"]
                if 3 * width * height > room or length > records.shape[1]:
                    continue
                thread = numba.get_thread_id()
                handle, data = handles[thread], records[thread].ctypes.data
                if pread(file[0], data, np.uint64(length), image["pointer"]) != length:
                    continue
                header = headers[thread].ctypes.data
                failed = read_header(
                    handle,
                    data,
                    np.uint64(length),
                    header,
                    header + np.uint64(4),
                    header + np.uint64(8),
                    header + np.uint64(12),
                )
                if (
                    failed != 0
                    or headers[thread, 0] != width
                    or headers[thread, 1] != height
                    or headers[thread, 3] > _LAST_PLAIN_COLORSPACE
                ):
                    continue
                frame = frames[thread].ctypes.data
                failed = decompress(
                    handle,
                    data,
                    np.uint64(length),
                    frame,
                    np.int32(width),
                    np.int32(3 * width),
                    np.int32(height),
                    np.int32(_PIXEL_FORMAT_RGB),
                    np.int32(_ACCURATE),
                )
                if failed != 0:
                    continue
                view = 0
                for group in range(len(sides)):
                    side, count = sides[group], counts[group]
                    size = side * side * 3
                    for number in range(count):
                        place = targets[group] + np.uint64((position * count + number) * size)
                        out = numba.carray(cast_int_to_byte_ptr(place), (side, side, 3))
                        box, rows = boxes[position, order[view]], scratch[thread]
                        if two_kinds and second[order[view]]:
                            cut_second(frame, frames.shape[1], 3 * width, box, rows, out)
                        else:
                            cut(frame, frames.shape[1], 3 * width, box, rows, out)
                        view += 1
                status[position, 0] = DECODED
            return status[: len(batch_indices)]

        decode.is_parallel = True  # type: ignore[attr-defined]
        return decode
