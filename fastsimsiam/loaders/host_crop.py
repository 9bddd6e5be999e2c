"""Crops from a frame in host memory, for all loaders that crop on the CPU."""

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import numpy.typing as npt

from fastsimsiam.config.views import Interpolation
from fastsimsiam.loaders.decode import Pixels
from fastsimsiam.loaders.resample import resample_boxes, row_bytes
from fastsimsiam.system.scratch import scratch

_BILINEAR: tuple[Interpolation, ...] = ("bilinear",)


def crop_views(
    pixels: Pixels,
    boxes: npt.NDArray[np.int32],
    out: Pixels,
    interpolations: Sequence[Interpolation] = (),
) -> None:
    """Cuts boxes from a frame and resamples them; releases the GIL.

    Args:
        pixels: (H, W, 3) uint8 frame.
        boxes: (V, 4): top, left, height, width.
        out: (V, S, S, 3) uint8, contiguous; receives the crops.
        interpolations: filter of each box; none given: bilinear.
    """
    row = row_bytes(out.shape[1])
    rows = scratch("rows", len(pixels) * row)[: len(pixels) * row].reshape(-1, row)
    frame, boxes = np.ascontiguousarray(pixels), np.ascontiguousarray(boxes)
    first = 0
    for interpolation, alike in groupby(interpolations or _BILINEAR * len(boxes)):
        last = first + len(list(alike))
        resample_boxes[interpolation](frame, boxes[first:last], rows, out[first:last])
        first = last
