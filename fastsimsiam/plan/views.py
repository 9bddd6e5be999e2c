"""Random view parameters (box, flip, color, blur), drawn for a whole batch at once.

Shapes: B batch, V views, N = B V. Parameters are functions of (seed, epoch, sample index, view number),
the image's size and the view's spec, so any loader on any machine shows the same views. They are
distributed as in torchvision's `RandomResizedCrop`, `ColorJitter` and `RandomGrayscale`, which the
official recipe uses.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fastsimsiam.config.views import ViewSpec
from fastsimsiam.plan.counter_rng import Floats, UInts, hash_words, keys, uniform

_VIEW_STREAM = 2

# Each parameter has its own slots, so changing one probability leaves all other draws as they are.
_FLIP, _JITTER, _BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(6)
_ORDER = slice(6, 10)
_GRAY, _BLUR, _SIGMA, _SOLARIZE = range(10, 14)
_SCALAR_SLOTS = np.arange(14)
_CROP_SLOT = 16  # the first; four slots for each attempt
_CROP_ATTEMPTS = 10

# Operation numbers in `ViewTable.order`.
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


_NOT_DRAWN = ("size", "interpolation", "grayscale_first")
"""Fields of a spec that hold for all images of a view."""


@dataclass(frozen=True, kw_only=True)
class ViewTable:
    """Parameters of a batch of views.

    Attributes:
        box: (B, V, 4) int32: top, left, height, width, in pixels of the upright image.
        flip: (B, V) bool: mirror left to right.
        brightness, contrast, saturation: (B, V) float32 factors; 1: unchanged.
        hue: (B, V) float32 rotation as a fraction of a turn; 0: unchanged.
        order: (B, V, 4) int64: order of the color operations, numbered as `BRIGHTNESS` etc.
        grayscale: (B, V) bool: remove color.
        blur_sigma: (B, V) float32 standard deviation in pixels of the crop; 0: no blur.
        solarize: (B, V) bool: invert pixels of 128 and more.
    """

    box: npt.NDArray[np.int32]
    flip: npt.NDArray[np.bool_]
    brightness: npt.NDArray[np.float32]
    contrast: npt.NDArray[np.float32]
    saturation: npt.NDArray[np.float32]
    hue: npt.NDArray[np.float32]
    order: npt.NDArray[np.int64]
    grayscale: npt.NDArray[np.bool_]
    blur_sigma: npt.NDArray[np.float32]
    solarize: npt.NDArray[np.bool_]

    def overwrite_row(self, row: int, other: "ViewTable") -> None:
        """Overwrites a row, in place, with the only row of `other`, a replacement sample's."""
        for field in fields(self):
            getattr(self, field.name)[row] = getattr(other, field.name)[0]

    def row(self, row: int) -> "ViewTable":
        """A table of one row; a copy."""
        return ViewTable(
            **{f.name: getattr(self, f.name)[row : row + 1].copy() for f in fields(self)}
        )

    @staticmethod
    def concatenate(tables: "Sequence[ViewTable]") -> "ViewTable":
        """One table of all rows of `tables`, in order."""
        return ViewTable(
            **{
                f.name: np.concatenate([getattr(table, f.name) for table in tables])
                for f in fields(ViewTable)
            }
        )

    def photometric(self) -> dict[str, npt.NDArray[np.generic]]:
        """All parameters except the box: the work that is left once crops are cut."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "box"}


def without_photometric(box: npt.NDArray[np.int32]) -> ViewTable:
    """A table of boxes (B, V, 4) that leaves their pixels unchanged: no flip, no color, no blur."""
    shape = box.shape[:2]
    # Separate arrays, because rows are overwritten in place when an image is replaced.
    return ViewTable(
        box=box,
        flip=np.zeros(shape, np.bool_),
        brightness=np.ones(shape, np.float32),
        contrast=np.ones(shape, np.float32),
        saturation=np.ones(shape, np.float32),
        hue=np.zeros(shape, np.float32),
        order=np.broadcast_to(np.arange(4), (*shape, 4)).copy(),
        grayscale=np.zeros(shape, np.bool_),
        blur_sigma=np.zeros(shape, np.float32),
        solarize=np.zeros(shape, np.bool_),
    )


@lru_cache(maxsize=16)
def _columns(specs: tuple[ViewSpec, ...]) -> dict[str, Floats]:
    """Each field of the specs as an array, (V,) or (V, 2); cached because every batch needs them."""
    names = [field.name for field in fields(ViewSpec) if field.name not in _NOT_DRAWN]
    return {name: np.array([getattr(spec, name) for spec in specs], np.float64) for name in names}


def draw_views(
    specs: Sequence[ViewSpec],
    *,
    seed: int,
    epoch: int,
    index: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int32],
) -> ViewTable:
    """Draws the views of a batch.

    Args:
        specs: one per view.
        seed: the run's seed.
        epoch: epoch number, from 0.
        index: (B,) sample indices.
        sizes: (B, 2) height and width of these samples' upright images, in pixels.

    Returns:
        The table of (B, V) parameters.
    """
    # All views at once: the cost of a table is the number of its NumPy calls, about a hundred.
    streams = [hash_words(_VIEW_STREAM, seed, epoch, view) for view in range(len(specs))]
    key = np.stack([keys(stream, index) for stream in streams], axis=1)
    u = uniform(key.ravel(), _SCALAR_SLOTS).reshape(*key.shape, -1)

    columns = _columns(tuple(specs))

    def happens(slot: int, name: str) -> npt.NDArray[np.bool_]:
        return u[..., slot] < columns[name]

    jitter, blur = happens(_JITTER, "jitter"), happens(_BLUR, "blur")

    def where(drawn: npt.NDArray[np.bool_], value: Floats, unchanged: float) -> Any:
        return np.where(drawn, value, unchanged).astype(np.float32)

    low, high = columns["blur_sigma"].T
    rows = np.repeat(np.arange(len(index)), len(specs))
    box = random_resized_crop(
        key.ravel(),
        sizes[rows],
        np.tile(columns["area"], (len(index), 1)),
        np.tile(columns["ratio"], (len(index), 1)),
    )
    return ViewTable(
        box=box.reshape(*key.shape, 4),
        flip=happens(_FLIP, "flip"),
        brightness=where(jitter, _factor(u[..., _BRIGHTNESS], columns["brightness"]), 1.0),
        contrast=where(jitter, _factor(u[..., _CONTRAST], columns["contrast"]), 1.0),
        saturation=where(jitter, _factor(u[..., _SATURATION], columns["saturation"]), 1.0),
        hue=where(jitter, (2.0 * u[..., _HUE] - 1.0) * columns["hue"], 0.0),
        order=np.argsort(u[..., _ORDER], axis=-1),
        grayscale=happens(_GRAY, "grayscale"),
        blur_sigma=where(blur, low + (high - low) * u[..., _SIGMA], 0.0),
        solarize=happens(_SOLARIZE, "solarize"),
    )


def _factor(u: Floats, strength: Floats) -> Floats:
    """Torchvision's ColorJitter range: uniform in [max(0, 1 - strength), 1 + strength]."""
    low = np.maximum(0.0, 1.0 - strength)
    return low + (1.0 + strength - low) * u


def random_resized_crop(
    key: UInts, sizes: npt.NDArray[np.int32], area: Floats, ratio: Floats
) -> npt.NDArray[np.int32]:
    """Boxes as `torchvision.transforms.RandomResizedCrop.get_params` draws them.

    Ten attempts to draw a uniform area and a log-uniform aspect ratio; if none fits the image, the
    largest centered box with a ratio in the range.

    Args:
        key: (N,) one key per view.
        sizes: (N, 2) height and width of the image in pixels.
        area: (N, 2) smallest and largest area of the box, relative to the image's.
        ratio: (N, 2) smallest and largest width / height.

    Returns:
        (N, 4) int32: top, left, height, width.
    """
    # A size of 0 marks a file without a readable header; the loader replaces or reports it.
    frames = np.maximum(sizes, 1).astype(np.int64)
    # The first attempt fits most images: the others are computed only where it does not.
    boxes, fits = _attempt(key, frames, area, ratio, np.arange(1))
    box = boxes[:, 0]
    rest = np.flatnonzero(~fits[:, 0])
    if len(rest):
        others = np.arange(1, _CROP_ATTEMPTS)
        boxes, fits = _attempt(key[rest], frames[rest], area[rest], ratio[rest], others)
        box[rest] = boxes[np.arange(len(rest)), fits.argmax(axis=1)]
        rest = rest[~fits.any(axis=1)]
        box[rest] = _fallback_boxes(*frames[rest].T, *ratio[rest].T)
    return box


def _attempt(
    key: UInts,
    frames: npt.NDArray[np.int64],
    area: Floats,
    ratio: Floats,
    attempts: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """Boxes (N, A, 4) of the attempts numbered `attempts` (A,), and whether they fit (N, A)."""
    slots = _CROP_SLOT + 4 * attempts[:, None] + np.arange(4)
    u = uniform(key, slots.ravel()).reshape(len(key), *slots.shape)
    height, width = frames[:, :1], frames[:, 1:]
    target = height * width * (area[:, :1] + (area[:, 1:] - area[:, :1]) * u[..., 0])
    low, high = np.log(ratio[:, :1]), np.log(ratio[:, 1:])
    aspect = np.exp(low + (high - low) * u[..., 1])
    w = np.rint(np.sqrt(target * aspect)).astype(np.int64)
    h = np.rint(np.sqrt(target / aspect)).astype(np.int64)
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    top, left = u[..., 2] * (height - h + 1), u[..., 3] * (width - w + 1)
    boxes = np.stack([top.astype(np.int64), left.astype(np.int64), h, w], axis=-1)
    return boxes.astype(np.int32), fits


def _fallback_boxes(
    height: npt.NDArray[np.int64], width: npt.NDArray[np.int64], narrowest: Floats, widest: Floats
) -> npt.NDArray[np.int32]:
    """Largest centered boxes (N, 4) of N images with a ratio from `narrowest` to `widest`."""
    w = np.where(width > height * widest, np.rint(height * widest).astype(np.int64), width)
    h = np.where(width < height * narrowest, np.rint(width / narrowest).astype(np.int64), height)
    h, w = np.clip(h, 1, height), np.clip(w, 1, width)
    return np.stack([(height - h) // 2, (width - w) // 2, h, w], axis=1).astype(np.int32)


def center_boxes(sizes: npt.NDArray[np.int32], fraction: float) -> npt.NDArray[np.int32]:
    """Centered squares, as evaluation crops them.

    Resizing the shorter side to 256 and cropping 224 from the center is the fraction 224/256.

    Args:
        sizes: (B, 2) height and width in pixels.
        fraction: side of the square, relative to the shorter side of the image.

    Returns:
        (B, 4) int32: top, left, height, width.
    """
    height, width = np.maximum(sizes[:, 0], 1), np.maximum(sizes[:, 1], 1)
    side = np.maximum(np.rint(np.minimum(height, width) * fraction), 1).astype(np.int32)
    box = np.stack([(height - side) // 2, (width - side) // 2, side, side], axis=1)
    return box.astype(np.int32)
