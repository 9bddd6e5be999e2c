"""Reads the header of a JPEG without decoding the image (ITU-T T.81, annex B)."""

from collections.abc import Iterator

from fastsimsiam.storage.base import Storage

_START_OF_IMAGE = b"\xff\xd8"
_END_OF_IMAGE = b"\xff\xd9"
_START_OF_SCAN = 0xDA
_EXIF = 0xE1
_ADOBE = 0xEE
_SKIPPED = 0xEF
"""Application segment that decoders ignore."""
# Frame headers: C0 to CF except DHT, JPG and DAC.
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_TAIL = 64
"""Bytes in which the end marker is searched: cameras append padding."""


def is_plain_jpeg(storage: Storage, index: int, data: memoryview) -> bool:
    """Whether an image may be decoded by another library than libjpeg-turbo, as DALI or nvJPEG.

    Args:
        storage: the images.
        index: number of the image.
        data: its encoded bytes.

    Returns:
        True for an upright JPEG that all decoders read alike and that has the size in the storage.
    """
    height, width = storage.sizes[index].tolist()
    return bool(storage.orientation[index] == 1) and jpeg_size(data) == (height, width)


def jpeg_size(data: memoryview) -> tuple[int, int] | None:
    """Height and width of a JPEG that all decoders read alike.

    Returns:
        None for data that is no JPEG, lacks its end, or has colors other than gray and YCbCr.
    """
    if data[:2] != _START_OF_IMAGE or _END_OF_IMAGE not in bytes(data[-_TAIL:]):
        return None
    size = None
    for marker, start, length in _segments(data):
        if marker == _START_OF_SCAN:
            return size
        # An Adobe segment states the color transform; 1 is YCbCr, which is also the default.
        if marker == _ADOBE and length >= 14 and data[start + 13] != 1:
            return None
        if marker in _FRAMES:
            bits, components = data[start + 2], data[start + 7]
            if bits != 8 or components not in (1, 3):
                return None
            height = data[start + 3] << 8 | data[start + 4]
            size = (height, data[start + 5] << 8 | data[start + 6])
    return None


def hide_exif(data: memoryview) -> None:
    """Makes the EXIF segments of a JPEG, in place, segments that decoders ignore.

    For decoders that turn images by their EXIF orientation: only the storage's orientation counts.
    """
    for marker, start, _ in _segments(data):
        if marker == _EXIF:
            data[start - 1] = _SKIPPED


def _segments(data: memoryview) -> Iterator[tuple[int, int, int]]:
    """Marker, position after the marker, and length of each complete segment up to the first scan."""
    position = 2
    while position + 9 < len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        start = position + 2
        length = data[start] << 8 | data[start + 1]
        if start + length > len(data):
            return
        yield marker, start, length
        if marker == _START_OF_SCAN:
            return
        position = start + length
