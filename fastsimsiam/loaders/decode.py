"""From file bytes to upright RGB pixels, exactly as PIL decodes them, in reused memory."""

import io

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from fastsimsiam.errors import BadImageError
from fastsimsiam.storage.base import Storage
from fastsimsiam.system.scratch import scratch

Pixels = npt.NDArray[np.uint8]
_JPEG_MAGIC = b"\xff\xd8"


def read_rgb(storage: Storage, index: int) -> Pixels:
    """Decodes an image.

    JPEGs go through libjpeg-turbo with the accurate DCT and smooth chroma upsampling, which gives
    PIL's pixels bit for bit; what it refuses (CMYK, a PNG named .jpg, recoverable damage) is left
    to PIL, so that an image is good if and only if PIL can read it whole.

    Args:
        storage: where it lies.
        index: its number.

    Returns:
        (H, W, 3) uint8, upright. The memory is this thread's and is overwritten by its next call.

    Raises:
        BadImageError: the file cannot be decoded whole, or is not of the size it was indexed with.
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
        found = pixels.shape
        raise BadImageError(
            f"{storage.name(index)} is {found[1]}x{found[0]} pixels, but was {width}x{height} when the "
            f"data set was opened: do not change files during a run"
        )
    return pixels


def decode_jpeg(data: memoryview, pixels: int) -> Pixels | None:
    """What libjpeg-turbo makes of a JPEG of about `pixels` pixels; None if it is not to its liking."""
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
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG")) as image:
            return np.array(to_rgb(image))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = str(error).splitlines()[0].replace("<_io.BytesIO object", "<data")
        raise BadImageError(f"{storage.name(index)} cannot be decoded ({reason})") from error


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
