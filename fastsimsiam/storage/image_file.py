"""Opens image files by their content: the one judgement of what is an image.

All that read images ask this file: headers, loaders, `pack`, reports. PIL's own `Image.open` is not
used: it tells no reason, shows memory addresses, warns about harmless EXIF data, and has limits that
only a change of its global state lifts.
"""

import math
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import BinaryIO

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from fastsimsiam.errors import BadImageError
from fastsimsiam.storage.base import IMAGE_FORMATS

try:
    from PIL import AvifImagePlugin
except ImportError:  # Pillow before 11.3
    _AVIF = None
else:
    _AVIF = AvifImagePlugin.AvifImageFile

MAX_PIXELS = 179_000_000
"""Larger images are refused, as by PIL: a small file can claim a size that exhausts the memory."""

# What PIL raises for damaged content, found by reading its plugins and by mutating files. Its decoders
# take lengths, offsets and types from the file, and not all of them are checked. `Warning` is raised
# where Python runs with -W error.
DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    MemoryError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Warning,
)
# Their messages say what is wrong; those of the others are about PIL's code.
_TELLING = (OSError, SyntaxError, ValueError, RuntimeError, zlib.error, EOFError)


class _Jpeg(JpegImagePlugin.JpegImageFile):
    """A JPEG without its EXIF data, from which PIL reads the resolution, and warns if it cannot."""

    def getexif(self) -> Image.Exif:
        """No EXIF data; the bytes are in `info`, see image_header.py."""
        return Image.Exif()


# Classes rather than PIL's registered factories: of an MPO file, the JPEG class reads the first picture
# without parsing the others.
_CLASSES = {
    "JPEG": _Jpeg,
    "PNG": PngImagePlugin.PngImageFile,
    "WEBP": WebPImagePlugin.WebPImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "AVIF": _AVIF,
}
_SPELLED = {"WEBP": "WebP"}
_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB")
_GRAY16_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
_NOT_TELLING = "not identified by this driver"
_ADDRESS = re.compile(r"\s*<[^<>]*\bat 0x[0-9a-fA-F]+>|\b0x[0-9a-f]{8,}\b")
_PNG_SIGNATURE = 8
_PNG_KEPT = (b"tRNS", b"eXIf")
LFS_POINTER = b"version https://git-lfs"


class _OpenError(BadImageError):
    """The message completes "FILE is"; `detail` completes "FILE cannot be decoded"."""

    def __init__(self, message: str, detail: str, fix: str | None = None) -> None:
        super().__init__(message, fix=fix)
        self.detail = detail


@dataclass(frozen=True, kw_only=True)
class OpenImage:
    """An image whose header has been read.

    Attributes:
        pil: the image; `load` decodes its pixels, of the first frame or page.
        format: one of `IMAGE_FORMATS`.
        deep_color: whether the file has 16 bits in each of several channels; PIL keeps the upper 8.
        gray_max: largest value of a gray level in `pil`: 255, 65535, or 4095 in TIFF with 12 bits.
        white_is_zero: whether 0 is white in 16-bit gray levels; PIL inverts those of 8 bits itself.
    """

    pil: ImageFile.ImageFile
    format: str
    deep_color: bool
    gray_max: int
    white_is_zero: bool


@contextmanager
def open_image(file: BinaryIO) -> Iterator[OpenImage]:
    """Opens an encoded image, and translates what PIL raises inside the `with` block.

    Args:
        file: the encoded image, at its start.

    Raises:
        BadImageError: the content is no image, damaged, or beyond a limit. The message is the reason
            alone, so that it completes "FILE is"; see also `reason_not_decoded`.
        OSError: the system cannot read the file; says nothing about its content.
    """
    name = "image"
    try:
        name = _format(file.read(32))
        file.seek(0)
        image = _opened(file, name)
        try:
            yield image
        finally:
            image.pil.close()
    except BadImageError:
        raise
    except DECODER_ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        if isinstance(error, Image.DecompressionBombError):  # some plugins check by themselves
            raise _too_large(None) from error
        raise _unreadable(f"{_spelled(name)} image", _words(error, name)) from error


def reason_not_decoded(error: BadImageError) -> str:
    """The reason in an error of `open_image`, so that it completes "FILE cannot be decoded"."""
    return error.detail if isinstance(error, _OpenError) else str(error)


def _unreadable(what: str, detail: str) -> _OpenError:
    return _OpenError(f"not a readable {what} ({detail})", detail)


def _format(start: bytes) -> str:
    """The format of a file from its first bytes."""
    if not start:
        raise _unreadable("image", "the file is empty")
    if start.startswith(LFS_POINTER):
        raise _OpenError(
            "a Git LFS pointer, not the image", "it is a Git LFS pointer", fix="run git lfs pull"
        )
    for name in IMAGE_FORMATS:
        accept = Image.OPEN[name][1] if name in Image.OPEN else None
        accepted = accept(start[:16]) if accept else False
        if isinstance(accepted, str):
            raise _unreadable("image", f"this Pillow cannot read {_spelled(name)}")
        if accepted and _CLASSES[name]:
            return name
    known = ", ".join(map(_spelled, IMAGE_FORMATS))
    raise _unreadable("image", f"the content is none of {known}")


def _spelled(name: str) -> str:
    return _SPELLED.get(name, name)


def _opened(file: BinaryIO, name: str) -> OpenImage:
    if name != "PNG":
        return _checked(file, name)
    try:
        image = _checked(file, name)
        # EXIF data and text may follow the pixels of a PNG: both come with `load` alone.
        image.pil.load()
    except BadImageError:
        raise
    except ValueError:
        # Text or a color profile beyond PIL's limit of a megabyte, which says nothing of the pixels.
        file.seek(0)
        image = _checked(BytesIO(_without_text(file.read())), name)
        image.pil.load()
    return image


def _checked(file: BinaryIO, name: str) -> OpenImage:
    """Opens an image and refuses sizes and modes that cannot be shown."""
    kind = _CLASSES[name]
    assert kind is not None
    image = kind(file, "")
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _too_large(width * height)
    if width < 1 or height < 1:
        raise _unreadable(f"{_spelled(name)} image", "it has no pixels")
    raw = " ".join(str(tile[3]) for tile in image.tile)  # the layout of the pixels in the file
    mode, gray_max = image.mode, 255
    if mode in _GRAY16_MODES or (mode == "I" and name == "PNG"):  # "I" in Pillow before 11
        gray_max = 4095 if "I;12" in raw else 65535
    elif mode not in _MODES:
        depth = "floating-point" if mode == "F" else "32-bit or signed" if mode == "I" else mode
        raise _OpenError(
            f"a {_spelled(name)} image of {depth} values, which have no range that could be shown",
            f"{depth} values have no range that could be shown",
            fix="convert it to 8 or 16 bits",
        )
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    return OpenImage(
        pil=image,
        format=name,
        deep_color=gray_max == 255 and ";16" in raw,
        gray_max=gray_max,
        white_is_zero=gray_max > 255 and tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0,
    )


def _too_large(pixels: int | None) -> _OpenError:
    size = "an image" if pixels is None else f"{math.ceil(pixels / 1e6)} megapixels,"
    limit = f"more than the limit of {MAX_PIXELS // 1_000_000}"
    return _OpenError(
        f"{size} {limit}" + (" megapixels" if pixels is None else ""),
        f"{size} {limit}" if pixels else f"it has {limit} megapixels",
        fix="scale it down",
    )


def _without_text(png: bytes) -> bytes:
    """A PNG without text, color profile and further frames."""
    kept = [png[:_PNG_SIGNATURE]]
    position = _PNG_SIGNATURE
    while position + 12 <= len(png):
        length, kind = struct.unpack_from(">I4s", png, position)
        end = position + 12 + length
        # The chunks that are needed to show the pixels have names in capitals.
        if kind[:1].isupper() or kind in _PNG_KEPT:
            kept.append(png[position:end])
        position = end
    return b"".join(kept)


def _words(error: BaseException, name: str) -> str:
    """What PIL says, on one line and without memory addresses."""
    text = _ADDRESS.sub("", " ".join(str(error).split()))
    # PIL passes errors of its own code on as SyntaxError.
    cause = error.__cause__ if isinstance(error, SyntaxError) and error.__cause__ else error
    if text and text != _NOT_TELLING and isinstance(cause, _TELLING):
        return text
    if isinstance(error, MemoryError):
        return "there is not enough memory to decode it"
    return f"malformed {_spelled(name)} data"
