"""Decodes images on the CPU to upright RGB pixels, exactly as PIL does, into reused memory."""

import io

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from fastsimsiam.errors import BadImageError
from fastsimsiam.storage.base import IMAGE_FORMATS, Storage
from fastsimsiam.system.scratch import scratch

Pixels = npt.NDArray[np.uint8]
_JPEG_MAGIC = b"\xff\xd8"


def read_rgb(storage: Storage, index: int) -> Pixels:
    """Decodes an image.

    libjpeg-turbo decodes JPEGs with the accurate DCT and smooth chroma upsampling, which gives the same
    bits as PIL. PIL decodes what libjpeg-turbo refuses (CMYK, a PNG named .jpg, recoverable damage), so
    an image is broken if and only if PIL cannot read all of it.

    Args:
        storage: the images.
        index: number of the image.

    Returns:
        (H, W, 3) uint8, upright, in memory that this thread's next call overwrites.

    Raises:
        BadImageError: the image cannot be decoded, or has another size than the storage says.
    """
    height, width = storage.sizes[index].tolist()
    orientation = int(storage.orientation[index])
    data = storage.read(index)
    pixels = decode_jpeg(data, height * width)
    if pixels is None:
        pixels = _decode_with_pil(storage, index, data)
    if orientation != 1:
        pixels = upright(pixels, orientation)
    if pixels.shape[:2] != (height, width):
        raise BadImageError(
            f"{storage.name(index)} is {pixels.shape[1]}x{pixels.shape[0]} pixels, but was "
            f"{width}x{height} when the data set was opened: do not change files during a run"
        )
    return pixels


def decode_jpeg(data: memoryview, pixels: int) -> Pixels | None:
    """Decodes a JPEG of about `pixels` pixels with libjpeg-turbo; None if it refuses the data."""
    if data[:2] != _JPEG_MAGIC:
        return None
    buffer = scratch("frame", 3 * pixels)
    try:
        decoded: Pixels = simplejpeg.decode_jpeg(data, "RGB", buffer=buffer)
    except ValueError:
        return None
    return decoded


def _decode_with_pil(storage: Storage, index: int, data: memoryview) -> Pixels:
    try:
        with Image.open(io.BytesIO(data), formats=IMAGE_FORMATS) as image:
            return np.array(to_rgb(image))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = str(error).splitlines()[0].replace("<_io.BytesIO object", "<data")
        raise BadImageError(f"{storage.name(index)} cannot be decoded ({reason})") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB; transparency is dropped, as in torchvision's ImageFolder."""
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # PIL warns about a direct conversion
    return image.convert("RGB")


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Turns an (H, W, 3) image with EXIF orientation 1 to 8 upright; a view, not a copy."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
