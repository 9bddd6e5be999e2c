"""Decodes images on the CPU to upright RGB pixels, exactly as PIL does, into reused memory."""

import io
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from fastsimsiam.config.run import GRAY16_MAX
from fastsimsiam.errors import BadImageError
from fastsimsiam.loaders.jpeg_warning import JpegWarning, jpeg_warning
from fastsimsiam.storage.base import Storage
from fastsimsiam.storage.beton import as_beton
from fastsimsiam.storage.image_file import MAX_PIXELS, OpenImage, open_image, reason_not_decoded
from fastsimsiam.system.scratch import scratch

Pixels = npt.NDArray[np.uint8]
OnWarning = Callable[[JpegWarning], None]
_JPEG_MAGIC = b"\xff\xd8"
_FOUR_CHANNELS = ("CMYK", "YCCK")


def read_rgb(
    storage: Storage,
    index: int,
    *,
    gray16_max: int = GRAY16_MAX,
    on_warning: OnWarning | None = None,
) -> Pixels:
    """Decodes an image.

    libjpeg-turbo decodes JPEGs with the accurate DCT and smooth chroma upsampling, which gives the same
    bits as PIL. PIL decodes what libjpeg-turbo refuses or warns of, and all other formats, so an image
    is broken if and only if PIL cannot read all of it, or `on_warning` refuses it.

    Args:
        storage: the images.
        index: number of the image.
        gray16_max: see `to_rgb`.
        on_warning: receives the decoder's warning, if there is one; may raise `BadImageError`.

    Returns:
        (H, W, 3) uint8, upright, in memory that this thread's next call overwrites.

    Raises:
        BadImageError: the image cannot be decoded, or has another size than the storage says.
    """
    height, width = storage.sizes[index].tolist()
    orientation = int(storage.orientation[index])
    data = storage.read(index)
    pixels = decode_jpeg(data, height * width)
    warning = None
    if pixels is None:
        pixels = np.array(decode_with_pil(storage.name(index), data, gray16_max))
        warning = jpeg_warning_of(data) if on_warning else None
    if orientation != 1:
        pixels = upright(pixels, orientation)
    if pixels.shape[:2] != (height, width):
        raise other_size(storage, index, pixels.shape[0], pixels.shape[1])
    if on_warning and warning:
        on_warning(warning)
    return pixels


def other_size(storage: Storage, index: int, height: int, width: int) -> BadImageError:
    """The error for a decoded, upright image that has another size than the storage says."""
    expected_height, expected_width = storage.sizes[index].tolist()
    if storage.is_packed:
        known, fix = "index of its file", "run fastsimsiam index PATH --again"
        if as_beton(storage) is not None:
            known, fix = "table of the file", "pack the data set again"
        return BadImageError(
            f"{storage.name(index)} is {width}x{height} pixels, not what the {known} says", fix=fix
        )
    if expected_height == 0:
        return BadImageError(
            f"{storage.name(index)} could not be read when the data set was opened, and can be now",
            fix="start again",
        )
    return BadImageError(
        f"{storage.name(index)} is {width}x{height} pixels, but was "
        f"{expected_width}x{expected_height} when the data set was opened: do not change files during "
        "a run"
    )


def decode_jpeg(data: memoryview, pixels: int) -> Pixels | None:
    """Decodes a JPEG of about `pixels` pixels with libjpeg-turbo.

    Returns:
        None for other data, for CMYK, and where libjpeg-turbo refuses the data or warns of it.
    """
    if data[:2] != _JPEG_MAGIC or pixels > MAX_PIXELS:
        return None
    try:
        if simplejpeg.decode_jpeg_header(data)[2] in _FOUR_CHANNELS:
            return None  # its conversion of CMYK is not PIL's
        buffer = scratch("frame", 3 * pixels)
        decoded: Pixels = simplejpeg.decode_jpeg(data, "RGB", buffer=buffer)
    except (ValueError, IndexError):
        return None
    return decoded


def decode_with_pil(name: str, data: memoryview, gray16_max: int = GRAY16_MAX) -> Image.Image:
    """Decodes an image of any format by PIL to RGB; not turned, but for TIFF.

    Args:
        name: name of the image in errors.
        data: the encoded image.
        gray16_max: see `to_rgb`.

    Raises:
        BadImageError: PIL cannot read all of it.
    """
    try:
        with open_image(io.BytesIO(data)) as image:
            return to_rgb(image, gray16_max)
    except BadImageError as error:
        reason = reason_not_decoded(error)
        raise BadImageError(f"{name} cannot be decoded ({reason})", fix=error.fix) from error


def jpeg_warning_of(data: memoryview) -> JpegWarning | None:
    """The decoder's warning about an image of any format; None if there is none."""
    return jpeg_warning(data) if data[:2] == _JPEG_MAGIC else None


def to_rgb(image: OpenImage, gray16_max: int = GRAY16_MAX) -> Image.Image:
    """An image of any mode as RGB, the pixels of its first frame.

    Transparency is dropped, as in torchvision's ImageFolder: the colors stay that the file has below
    it. Gray levels of 16 bits are scaled so that `gray16_max` becomes 255, and rounded; PIL would clip
    them at 255. Of 16 bits in several channels PIL keeps the upper 8.

    Args:
        image: the image.
        gray16_max: largest gray level of 16-bit images; 65535 also stands for 4095 in 12-bit TIFF.

    Raises:
        BadImageError: a gray level is above `gray16_max`, or it is given for an image in color.
    """
    if image.gray_max > 255:
        return Image.fromarray(_scaled(image, gray16_max)).convert("RGB")
    if image.deep_color and gray16_max != GRAY16_MAX:
        reason = f"16 bits in several channels, of which --gray16-max {gray16_max} says nothing"
        raise BadImageError(reason, fix="convert it to 8 bits")
    pil = image.pil
    if pil.mode == "P" and "transparency" in pil.info:
        return pil.convert("RGBA").convert("RGB")  # PIL warns about a direct conversion
    return pil.convert("RGB")


def _scaled(image: OpenImage, gray16_max: int) -> Pixels:
    """Gray levels (H, W) of 16 bits, scaled to 8."""
    most = image.gray_max if gray16_max == GRAY16_MAX else gray16_max
    level = np.asarray(image.pil).astype(np.uint32)
    highest = int(level.max())
    if highest > most:
        reason = f"it has gray levels up to {highest}, above --gray16-max {most}"
        raise BadImageError(reason, fix=f"start with --gray16-max {highest} or more")
    if image.white_is_zero:
        level = most - level
    scaled: Pixels = ((level * 510 + most) // (2 * most)).astype(np.uint8)
    return scaled


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Turns an (H, W, 3) image with EXIF orientation 1 to 8 upright; a view, not a copy."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
