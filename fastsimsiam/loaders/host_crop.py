"""Crops from a frame in host memory, for all loaders that crop on the CPU."""

import numpy as np
import numpy.typing as npt

from fastsimsiam.loaders.decode import Pixels
from fastsimsiam.loaders.resample import resample_boxes, row_bytes
from fastsimsiam.system.scratch import scratch


def crop_views(pixels: Pixels, boxes: npt.NDArray[np.int32], out: Pixels) -> None:
    """Cuts boxes from a frame and resamples them; releases the GIL.

    Args:
        pixels: (H, W, 3) uint8 frame.
        boxes: (V, 4): top, left, height, width.
        out: (V, S, S, 3) uint8, contiguous; receives the crops.
    """
    row = row_bytes(out.shape[1])
    rows = scratch("rows", len(pixels) * row)[: len(pixels) * row].reshape(-1, row)
    resample_boxes(np.ascontiguousarray(pixels), np.ascontiguousarray(boxes), rows, out)
