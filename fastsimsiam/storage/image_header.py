"""The header of an image file: its upright size and its orientation."""

import os
import re
import stat
import struct
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from fastsimsiam.errors import BadImageError
from fastsimsiam.storage.image_file import OpenImage, open_image

_ORIENTATION = 0x0112
_EXIF_PREFIX = b"Exif\0\0"
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_RAW_PROFILE = "Raw profile type exif"
# EXIF types: bytes of a value, and the format of whole numbers, with `struct`.
_TYPE_SIZE = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
}
_TYPE_FORMAT = {3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q"}


def read_header(path: Path) -> tuple[int, int, int]:
    """Height and width in pixels of the upright image, and its EXIF orientation, 1 to 8.

    The orientation is that by which loaders turn the pixels which PIL decodes: 1 for TIFF, whose pixels
    PIL turns itself.

    Raises:
        BadImageError: the content of the file is no image; the message is the reason alone, and
            completes "FILE is".
        OSError: the system cannot read the file now; says nothing about its content.
    """
    # A named pipe would wait for a writer.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise BadImageError("not a regular file")
        with open(handle, "rb", closefd=False) as file:
            return header_of(file)
    finally:
        os.close(handle)


def header_of(file: BinaryIO) -> tuple[int, int, int]:
    """`read_header` for an open file, at its start; raises as it does."""
    with open_image(file) as image:
        return upright_size(image)


def upright_size(image: OpenImage) -> tuple[int, int, int]:
    """Height and width of the upright image, and the orientation of its decoded pixels; see above."""
    width, height = image.pil.size
    orientation = _orientation(image.pil)
    if image.format == "TIFF":
        # PIL turns the pixels in `load`. Until then the size is that of the upright image if the
        # orientation is a tag of the file, but not if it is in the XMP data.
        if orientation >= 5 and _ORIENTATION not in image.pil.tag_v2:  # type: ignore[attr-defined]
            width, height = height, width
        return height, width, 1
    # Orientations 5 to 8 swap height and width.
    return (width, height, orientation) if orientation >= 5 else (height, width, orientation)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, or that of the XMP data; 1 if there is none, or none that is valid.

    As PIL's `getexif`, which raises errors and warnings for damaged EXIF data.
    """
    tags = getattr(image, "tag_v2", None)
    found = exif_orientation(_exif(image)) if tags is None else tags.get(_ORIENTATION)
    if found is None:
        xmp = image.info.get("XML:com.adobe.xmp") or image.info.get("xmp") or b""
        match = _XMP_ORIENTATION.search(xmp.encode() if isinstance(xmp, str) else bytes(xmp))
        found = int(match[1]) if match else 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _exif(image: Image.Image) -> bytes:
    exif = image.info.get("exif")
    if exif is None and _RAW_PROFILE in image.info:  # written by ImageMagick: hexadecimal text
        lines = str(image.info[_RAW_PROFILE]).split("\n")[3:]
        try:
            exif = bytes.fromhex("".join(lines))
        except ValueError:
            exif = None
    return exif if isinstance(exif, bytes) else b""


def exif_orientation(exif: bytes) -> int | None:
    """The orientation in EXIF data, as far as they are readable.

    Returns:
        None where there is none; 0 for one that is not a whole number.
    """
    while exif.startswith(_EXIF_PREFIX):
        exif = exif[len(_EXIF_PREFIX) :]
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or exif[2:4] not in (b"\0*", b"*\0") or len(exif) < 8:
        return None
    (position,) = struct.unpack_from(order + "I", exif, 4)
    if position + 2 > len(exif):
        return None
    (count,) = struct.unpack_from(order + "H", exif, position)
    found = None
    for entry in range(position + 2, position + 2 + 12 * count, 12):
        if entry + 12 > len(exif):
            break
        tag, kind, values = struct.unpack_from(order + "HHI", exif, entry)
        size = _TYPE_SIZE.get(kind, 0) * values
        if tag != _ORIENTATION or size == 0:
            continue
        (offset,) = (entry + 8,) if size <= 4 else struct.unpack_from(order + "I", exif, entry + 8)
        if offset + size <= len(exif):
            number = _TYPE_FORMAT.get(kind)
            found = struct.unpack_from(order + number, exif, offset)[0] if number else 0
    return found
