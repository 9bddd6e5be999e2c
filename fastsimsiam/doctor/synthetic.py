"""Synthetic photographs, for where there are none: as large to decode as real ones, and as rough."""

import os
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from fastsimsiam.storage.class_folder import ClassFolder

_CLASSES = ("ant", "bee")


def textured_image(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """A random image with structure at several scales, as photographs have."""
    total = np.zeros((height, width, 3))
    for cells in (2, 5, 13, 40):
        small = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)) / 4
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))


def photograph(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """A textured image with the noise of a camera, which is what takes long to decode."""
    smooth = np.asarray(textured_image(rng, height, width), dtype=np.float32)
    rough = (smooth + rng.normal(0, 12, smooth.shape)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(rough)


def synthetic_photographs(images: int = 64, height: int = 375, width: int = 500) -> Path:
    """A folder of class folders with as many JPEGs, written at the first call.

    Args:
        images: how many.
        height, width: in pixels.

    Returns:
        The folder, in the system's temporary folder; it is used again by later calls.
    """
    parent = Path(tempfile.gettempdir())
    root = parent / f"fastsimsiam-synthetic-{os.getuid()}-{images}-{height}x{width}"
    if root.is_dir():
        return root
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(dir=parent) as partial:
        whole = Path(partial) / "whole"
        for number in range(images):
            folder = whole / _CLASSES[number % len(_CLASSES)]
            folder.mkdir(parents=True, exist_ok=True)
            photograph(rng, height, width).save(folder / f"{number:04d}.jpg", quality=90)
        try:
            whole.rename(root)
        except OSError:  # another process was first
            assert root.is_dir()
    return root


def repeated(storage: ClassFolder, images: int) -> ClassFolder:
    """The same files again and again, until there are at least `images`."""
    times = -(-images // len(storage))
    return replace(
        storage,
        paths=list(storage.paths) * times,
        label=np.tile(storage.label, times),
        sizes=np.tile(storage.sizes, (times, 1)),
        orientation=np.tile(storage.orientation, times),
    )
