"""The header of an image file: its upright size and its orientation, without decoding pixels."""

import warnings
from pathlib import Path

from PIL import Image

from fastsimsiam.errors import BadImageError
from fastsimsiam.storage.base import IMAGE_FORMATS

_EXIF_ORIENTATION = 0x0112
# PIL warns about images over 89 megapixels and refuses those over 179: the refusal is enough.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def read_header(path: Path) -> tuple[int, int, int]:
    """Height and width in pixels of the upright image, and its EXIF orientation, 1 to 8.

    Raises:
        BadImageError: the content of the file is no image; the message is the reason alone.
        OSError: the system cannot read the file now; says nothing about its content.
    """
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            width, height = image.size
            orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    # PIL raises these for files that are no images, broken headers or EXIF data, and huge sizes.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise BadImageError("not a readable JPEG or PNG image") from error
    if orientation not in range(1, 9):
        orientation = 1
    # Orientations 5 to 8 swap height and width.
    return (width, height, orientation) if orientation >= 5 else (height, width, orientation)
