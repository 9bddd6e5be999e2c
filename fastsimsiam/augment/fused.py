"""The photometric part of views as one operator, on a GPU.

It is a few Triton kernels (`kernels.py`) that read a crop twice and write a view once.
Shapes: B batch, V views of one size, N = B V images, S side of a crop.
"""

import torch
from torch import Tensor

from fastsimsiam.augment.table import TILES


@torch.library.custom_op("fastsimsiam::photometric_views", mutates_args=())
def photometric_views(
    crops: Tensor, table: Tensor, dtype: torch.dtype, jitter: bool, solarize: bool, radius: int
) -> Tensor:
    """Applies a table of coefficients to crops, and normalizes.

    Args:
        crops: (B, V, S, S, 3) uint8.
        table: (N, COLUMNS) float32, see `table.coefficients`.
        dtype: dtype of the views; the arithmetic is float32, the blur's products are of float16.
        jitter, solarize: whether there are such operations.
        radius: of the blur's kernel in pixels, which `fits`; 0: no image is blurred.

    Returns:
        (V, B, S, S, 3): each view's channels_last memory.
    """
    from fastsimsiam.augment import kernels

    return kernels.photometric_views(crops, table, dtype, jitter, solarize, radius, TILES)


@photometric_views.register_fake
def _(
    crops: Tensor, table: Tensor, dtype: torch.dtype, jitter: bool, solarize: bool, radius: int
) -> Tensor:
    batch, count, side = crops.shape[:3]
    return crops.new_empty((count, batch, side, side, 3), dtype=dtype)
