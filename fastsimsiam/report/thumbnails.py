"""Small pictures of a data set's images, as base64 text for a page."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from fastsimsiam.config.run import GRAY16_MAX
from fastsimsiam.loaders.decode import read_rgb
from fastsimsiam.plan.views import center_boxes
from fastsimsiam.storage.base import Storage
from fastsimsiam.system.progress import ImageProgress

JPEG = "data:image/jpeg;base64,"
"""Prefix of a picture's base64 text in a data URL."""
_QUALITIES = (75, 60, 45, 30)


def center(
    storage: Storage, index: int, *, side: int, fraction: float, gray16_max: int = GRAY16_MAX
) -> Image.Image:
    """Returns the centered square of an image that the network sees, `side` pixels wide.

    Args:
        storage: the images' storage.
        index: number of the image.
        side: width and height in pixels.
        fraction: see `plan.views.center_boxes`.
        gray16_max: see `Config.gray16_max`.

    Raises:
        BadImageError: the image cannot be decoded.
    """
    pixels = read_rgb(storage, index, gray16_max=gray16_max)
    sizes = np.array([pixels.shape[:2]], np.int32)
    top, left, height, width = center_boxes(sizes, fraction)[0].tolist()
    square = Image.fromarray(pixels[top : top + height, left : left + width])
    return square.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=3.0)


def jpeg(picture: Image.Image, quality: int = 80) -> str:
    """Returns a picture as the base64 text of a JPEG."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality, optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")


def thumbnails(
    storage: Storage,
    index: Sequence[int],
    *,
    side: int,
    fraction: float,
    gray16_max: int = GRAY16_MAX,
    most_letters: int,
) -> list[str]:
    """Returns small pictures in the best JPEG quality at which all fit, as base64 texts.

    Args:
        storage: the images' storage.
        index: numbers of the images.
        side: width and height of a picture in pixels.
        fraction: see `plan.views.center_boxes`.
        gray16_max: see `Config.gray16_max`.
        most_letters: length of all texts together; the lowest quality may exceed it.
    """
    pictures = []
    with ImageProgress("thumbnails") as progress:
        for number, sample in enumerate(index, start=1):
            pictures.append(
                center(storage, sample, side=side, fraction=fraction, gray16_max=gray16_max)
            )
            progress(number, len(index))
    texts: list[str] = []
    for quality in _QUALITIES:
        texts = [jpeg(picture, quality) for picture in pictures]
        if sum(map(len, texts)) <= most_letters:
            break
    return texts
