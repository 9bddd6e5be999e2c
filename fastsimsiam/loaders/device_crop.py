"""Crops of a whole batch, cut and resampled on the device.

On a GPU by the kernels of `crop_kernels.py`; elsewhere, and where Triton is missing or cannot compile,
by two batched matrix products.

Shapes: B batch, V views, S crop side, P pixels of all frames. The filters are PIL's antialiased ones: a
triangle, or Keys' cubic with a = -0.5, as wide as the scale, normalized, zero outside the box. Nothing
is rounded between the two products, and to 1/256 between the kernels. The cubic overshoots, and is
clipped there, as PIL clips; PIL does the horizontal pass first, and the clipped pixels differ by that.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastsimsiam.config.views import Interpolation
from fastsimsiam.loaders.base import ViewGroup
from fastsimsiam.loaders.crop_table import crop_table
from fastsimsiam.system.compiler import runs_triton

KERNELS = True
"""Whether kernels are used where they can be; False for comparison with the matrix products."""

_PIECE_PIXELS = 1 << 25
"""Pixels of boxes that are resampled at a time: limits the memory of their float32 copies."""


def crop_views(
    frames: Tensor,
    offset: npt.NDArray[np.int64],
    width: npt.NDArray[np.int64],
    box: npt.NDArray[np.int32],
    groups: Sequence[ViewGroup],
) -> tuple[Tensor, ...]:
    """Cuts the views of a batch.

    Args:
        frames: (P, 3) uint8 pixels of all frames, concatenated row by row.
        offset: (B,) position of the first pixel of each sample's frame.
        width: (B,) width of each sample's frame in pixels.
        box: (B, all views, 4) top, left, height, width of each box.
        groups: the views by size.

    Returns:
        The crops of a `loaders.base.Batch`.
    """
    if KERNELS and runs_triton(frames.device):
        return by_kernels(frames, offset, width, box, groups)
    places = _send(offset, frames.device), _send(width, frames.device)
    return tuple(_crop_group(frames, *places, box[:, group.views], group) for group in groups)


def by_kernels(
    frames: Tensor,
    offset: npt.NDArray[np.int64],
    width: npt.NDArray[np.int64],
    box: npt.NDArray[np.int32],
    groups: Sequence[ViewGroup],
) -> tuple[Tensor, ...]:
    """As `crop_views`, by two kernels for each size and filter."""
    from fastsimsiam.loaders import crop_kernels

    device = frames.device
    plan = crop_table(offset, width, box, groups)
    table = _send(plan.table, device)
    between = torch.empty(plan.between, dtype=torch.uint16, device=device)
    sides = [(len(box), len(group.views), group.side, group.side, 3) for group in groups]
    crops = tuple(torch.empty(shape, dtype=torch.uint8, device=device) for shape in sides)
    for launch in plan.launches:
        crop_kernels.crop_resize(
            frames,
            table[launch.rows],
            between,
            crops[launch.group].flatten(0, 1),
            launch.interpolation,
        )
    return crops


def _send(array: npt.NDArray[np.int64], device: torch.device) -> Tensor:
    """An array on the device; the copy is asynchronous."""
    tensor = torch.from_numpy(array)
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def _crop_group(
    frames: Tensor, offset: Tensor, width: Tensor, box: npt.NDArray[np.int32], group: ViewGroup
) -> Tensor:
    batch, views = box.shape[:2]
    side = group.side
    flat = box.reshape(-1, 4).astype(np.int64)
    offset = offset[:, None].expand(-1, views).flatten()
    width = width[:, None].expand(-1, views).flatten()
    crops = torch.empty((len(flat), side, side, 3), dtype=torch.uint8, device=frames.device)
    for interpolation in dict.fromkeys(group.interpolations):
        alike = np.array([name == interpolation for name in group.interpolations])
        mine = np.flatnonzero(np.tile(alike, batch))
        # Boxes are padded to the largest of their piece, so boxes of similar size share a piece.
        order = mine[np.argsort(flat[mine, 2] * flat[mine, 3], kind="stable")]
        position, boxes = _send(order, frames.device), _send(flat[order], frames.device)
        starts, widths = offset[position], width[position]
        for rows, largest in _pieces(flat[order, 2:]):
            piece = crop_resize(
                frames, starts[rows], widths[rows], boxes[rows], largest, side, interpolation
            )
            crops.index_copy_(0, position[rows], piece)
    return crops.view(batch, views, side, side, 3)


def _pieces(extent: npt.NDArray[np.int64]) -> Iterator[tuple[slice, tuple[int, int]]]:
    """Splits boxes with heights and widths (N, 2) into pieces of `_PIECE_PIXELS` or less.

    Yields:
        The boxes of a piece, and its largest height and width.
    """
    first = 0
    while first < len(extent):
        largest = np.maximum.accumulate(extent[first:], axis=0)
        pixels = np.arange(1, len(largest) + 1) * largest[:, 0] * largest[:, 1]
        count = max(1, int(np.searchsorted(pixels, _PIECE_PIXELS, side="right")))
        height, width = largest[count - 1].tolist()
        yield slice(first, first + count), (height, width)
        first += count


def _weights(side: int, length: Tensor, longest: int, interpolation: Interpolation) -> Tensor:
    """Resampling matrices (B, side, longest) from `length` (B,) pixels to `side`."""
    device = length.device
    scale = (length.float() / side)[:, None, None]
    center = (torch.arange(side, device=device) + 0.5)[None, :, None] * scale
    tap = (torch.arange(longest, device=device) + 0.5)[None, None, :]
    distance = (tap - center).abs() / scale.clamp(min=1.0)
    weight = _cubic(distance) if interpolation == "bicubic" else (1.0 - distance).clamp(min=0.0)
    weight = weight * (tap < length[:, None, None])
    return weight / weight.sum(dim=2, keepdim=True)


def _cubic(x: Tensor) -> Tensor:
    """Keys' filter with a = -0.5 at distances of 0 and more."""
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = -0.5 * (((x - 5.0) * x + 8.0) * x - 4.0)
    return torch.where(x < 1.0, near, torch.where(x < 2.0, far, 0.0))


def crop_resize(
    frames: Tensor,
    offset: Tensor,
    width: Tensor,
    box: Tensor,
    largest: tuple[int, int],
    side: int,
    interpolation: Interpolation,
) -> Tensor:
    """Cuts one box from each of B frames and resamples it to a square.

    Args:
        frames: (P, 3) uint8 pixels of all frames, concatenated row by row.
        offset: (B,) int64 position of each frame's first pixel.
        width: (B,) int64 width of each frame in pixels.
        box: (B, 4) int64 top, left, height, width of each box.
        largest: largest height and width, as Python numbers: reading them from `box` would wait.
        side: side of the crops in pixels.
        interpolation: the filter.

    Returns:
        (B, side, side, 3) uint8.
    """
    top, left, box_height, box_width = box.unbind(1)
    rows = torch.arange(largest[0], device=box.device).minimum(box_height[:, None] - 1)
    columns = torch.arange(largest[1], device=box.device).minimum(box_width[:, None] - 1)
    start = offset[:, None] + (top[:, None] + rows) * width[:, None] + left[:, None]
    patch = frames[start[:, :, None] + columns[:, None, :]].float()
    vertical = _weights(side, box_height, largest[0], interpolation)
    horizontal = _weights(side, box_width, largest[1], interpolation)
    patch = torch.bmm(vertical, patch.flatten(2)).view(-1, side, largest[1], 3)
    if interpolation == "bicubic":
        patch.clamp_(0, 255)
    # Not a product broadcast over rows, for which torch would copy the matrices once per row.
    patch = torch.bmm(horizontal, patch.transpose(1, 2).reshape(-1, largest[1], side * 3))
    patch = patch.view(-1, side, side, 3).transpose(1, 2)
    return patch.round().clamp_(0, 255).to(torch.uint8)
