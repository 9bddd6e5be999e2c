"""Notices data of fewer bits in files of 16 bits: such images are nearly black, and nobody says so."""

import io
from itertools import islice

import numpy as np

from fastsimsiam.config.run import GRAY16_MAX
from fastsimsiam.errors import BadImageError
from fastsimsiam.storage.base import Storage
from fastsimsiam.storage.image_file import open_image
from fastsimsiam.system.text import printable

_LOOKED_AT = 8
_SEARCHED = 1 << 21
"""Names among which files of these formats are looked for."""
_SUFFIXES = (".png", ".tif", ".tiff")
_BITS = (10, 12, 14)
"""Of the data that instruments write into files of 16 bits."""


def dark_gray_warning(storage: Storage, gray16_max: int) -> str | None:
    """A line if the 16-bit gray levels of a data set end far below the level that is shown as white.

    Decodes up to eight PNG and TIFF files, none of a data set without such files.

    Args:
        storage: the images.
        gray16_max: the level that is shown as white; the line is for its default alone.
    """
    if gray16_max != GRAY16_MAX:
        return None
    searched = islice(storage.paths, _SEARCHED)
    deep = [i for i, path in enumerate(searched) if path.lower().endswith(_SUFFIXES)]
    chosen = deep[:: max(1, len(deep) // _LOOKED_AT)][:_LOOKED_AT]
    highest = [level for index in chosen if (level := _highest_level(storage, index)) is not None]
    bits = next((bits for bits in _BITS if highest and max(highest) < 2**bits), None)
    if bits is None:
        return None
    return (
        f"the 16-bit gray images of {printable(storage.root)} are dark, with levels up to "
        f"{max(highest)} in the {len(highest)} looked at: if these are data of {bits} bits, pass "
        f"--gray16-max {2**bits - 1}"
    )


def _highest_level(storage: Storage, index: int) -> int | None:
    """The highest gray level of an image; None unless it is an intact one of 16 bits."""
    try:
        with open_image(io.BytesIO(storage.read(index))) as image:
            return int(np.asarray(image.pil).max()) if image.gray_max == GRAY16_MAX else None
    except BadImageError:
        return None  # the loaders tell what is wrong
