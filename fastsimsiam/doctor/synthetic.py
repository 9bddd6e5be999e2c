"""Synthetic photographs, for a machine without the data set: as costly to decode as real ones."""

import io
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from fastsimsiam.errors import UserError
from fastsimsiam.storage.image_files import ImageFiles

_CLASSES = ("ant", "bee")


def textured_image(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """Returns a random image with structure at several scales, as photographs have."""
    total = np.zeros((height, width, 3))
    for cells in (2, 5, 13, 40):
        small = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)) / 4
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))


def photograph(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """Returns a textured image with a camera's noise, which dominates the cost of decoding."""
    smooth = np.asarray(textured_image(rng, height, width), dtype=np.float32)
    noisy = (smooth + rng.normal(0, 12, smooth.shape)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(noisy)


def synthetic_photographs(images: int = 64, height: int = 375, width: int = 500) -> Path:
    """Writes JPEGs into class folders, once per number and size.

    Args:
        images: number of files.
        height: pixels.
        width: pixels.

    Returns:
        The folder, in the system's temporary directory; later calls reuse it.

    Raises:
        UserError: they cannot be written there.
    """
    parent = Path(tempfile.gettempdir())
    root = parent / f"fastsimsiam-synthetic-{os.getuid()}-{images}-{height}x{width}"
    if root.is_dir():
        return root
    rng = np.random.default_rng(0)
    try:
        with tempfile.TemporaryDirectory(dir=parent) as partial:
            whole = Path(partial) / "whole"
            for number in range(images):
                folder = whole / _CLASSES[number % len(_CLASSES)]
                folder.mkdir(parents=True, exist_ok=True)
                jpeg = io.BytesIO()  # PIL's own write of a JPEG to a file overlooks a full disk
                photograph(rng, height, width).save(jpeg, "JPEG", quality=90)
                (folder / f"{number:04d}.jpg").write_bytes(jpeg.getvalue())
            whole.rename(root)
    except OSError as error:
        if root.is_dir():  # another process was first
            return root
        raise UserError(
            f"cannot write photographs to {parent} ({error.strerror or error}): set TMPDIR to "
            "another folder, or pass --data"
        ) from error
    return root


def repeated(storage: ImageFiles, images: int) -> ImageFiles:
    """Repeats a storage's files until it has at least `images`."""
    times = -(-images // len(storage))
    return replace(
        storage,
        paths=list(storage.paths) * times,
        label=np.tile(storage.label, times),
        sizes=np.tile(storage.sizes, (times, 1)),
        orientation=np.tile(storage.orientation, times),
        bytes_total=storage.bytes_total * times,
    )
