"""From file bytes to upright RGB pixels, exactly as PIL decodes them, in reused memory."""

import io
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from fastsimsiam.errors import BadImageError
from fastsimsiam.loaders.buffers import scratch

Pixels = npt.NDArray[np.uint8]
_JPEG_MAGIC = b"\xff\xd8"


def read_rgb(path: Path, size: tuple[int, int], orientation: int) -> Pixels:
    """Decodes an image file.

    JPEGs go through libjpeg-turbo with the accurate DCT and smooth chroma upsampling, which gives
    PIL's pixels bit for bit; what it refuses (CMYK, a PNG named .jpg, recoverable damage) is left
    to PIL, so that an image is good if and only if PIL can read it whole.

    Args:
        path: the file.
        size: height and width of the upright image, from the storage.
        orientation: EXIF orientation, 1 to 8.

    Returns:
        (H, W, 3) uint8. The memory is this thread's and is overwritten by its next call.

    Raises:
        BadImageError: the file cannot be decoded whole, or is not of the size it was indexed with.
    """
    data = read_file(path)
    pixels = _decode_jpeg(data, size) if data[:2] == _JPEG_MAGIC else None
    if pixels is None:
        pixels = _decode_with_pil(path, data)
    if orientation != 1:
        pixels = upright(pixels, orientation)
    if pixels.shape[:2] != size:
        height, width = pixels.shape[:2]
        raise BadImageError(
            f"{path} is {width}x{height} pixels, but was {size[1]}x{size[0]} when the data set was "
            f"opened: do not change files during a run"
        )
    return pixels


def read_file(path: Path) -> memoryview:
    """The bytes of a file, in this thread's memory: the next call overwrites them.

    Raises:
        BadImageError: the file cannot be read.
    """
    try:
        file = os.open(path, os.O_RDONLY)
        try:
            length = os.fstat(file).st_size
            buffer = scratch("file", length)
            length = os.readv(file, [buffer[:length].data]) if length else 0
        finally:
            os.close(file)
    except OSError as error:
        raise BadImageError(f"{path} cannot be read ({error.strerror})") from error
    return buffer[:length].data


def _decode_jpeg(data: memoryview, size: tuple[int, int]) -> Pixels | None:
    buffer = scratch("frame", 3 * size[0] * size[1])
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB", buffer=buffer)
    except ValueError:
        return None
    return pixels


def _decode_with_pil(path: Path, data: memoryview) -> Pixels:
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            return np.array(to_rgb(image))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = str(error).splitlines()[0].replace("<_io.BytesIO object", "<data")
        raise BadImageError(f"{path} cannot be decoded ({reason})") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB; transparency is dropped, as torchvision's ImageFolder does."""
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # PIL warns of the direct way
    return image.convert("RGB")


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undoes an EXIF orientation (1 to 8) of an (H, W, 3) image; a view, not a copy."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
