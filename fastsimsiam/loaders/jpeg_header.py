"""Reads the header of a JPEG without decoding the image (ITU-T T.81, annex B)."""

from collections.abc import Iterator

from fastsimsiam.storage.base import Storage

_START_OF_IMAGE = b"\xff\xd8"
_END_OF_IMAGE = b"\xff\xd9"
_START_OF_SCAN = 0xDA
_EXIF = 0xE1
_JFIF = 0xE0
_ADOBE = 0xEE
_SKIPPED = 0xEF
"""Application segment that decoders ignore."""
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Frame headers: C0 to CF except DHT, JPG and DAC."""
_HUFFMAN_FRAMES = (0xC0, 0xC1, 0xC2)
"""Sequential and progressive with Huffman codes; the others are rare, and lossless or arithmetic."""
_TABLES = (0xC4, 0xDB, 0xDD)
_NUMBERED = (b"\x01\x02\x03", b"\x00\x01\x02")
"""Component numbers of JPEGs that do not say what they are: YCbCr for every decoder."""
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
    """Height and width of a complete JPEG that all decoders read alike.

    Returns:
        None for data for which `plain_size` is None, or that lack their end.
    """
    return plain_size(data) if _END_OF_IMAGE in bytes(data[-_TAIL:]) else None


def plain_size(data: memoryview) -> tuple[int, int] | None:
    """Height and width of a JPEG whose colors all decoders read alike.

    Returns:
        None for data that is no JPEG, or one that is not of 8 bits, of Huffman codes, and of colors
        gray or YCbCr.
    """
    if data[:2] != _START_OF_IMAGE:
        return None
    size, components, said = None, b"", False
    for marker, start, length in _segments(data):
        if marker == _START_OF_SCAN:
            # Decoders guess by the numbers where no segment says what the components are.
            guessed = len(components) == 3 and not said and components not in _NUMBERED
            return None if guessed else size
        if marker == _JFIF and bytes(data[start + 2 : start + 6]) == b"JFIF":
            said = True
        # An Adobe segment states the color transform; 1 is YCbCr, which is also the default.
        if marker == _ADOBE and length >= 14:
            if data[start + 13] != 1:
                return None
            said = True
        if marker in _FRAMES:
            count = data[start + 7]
            if marker not in _HUFFMAN_FRAMES or data[start + 2] != 8 or count not in (1, 3):
                return None
            components = bytes(data[start + 8 : start + length : 3])
            height = data[start + 3] << 8 | data[start + 4]
            size = (height, data[start + 5] << 8 | data[start + 6])
    return None


def without_extras(data: memoryview) -> bytes | None:
    """A JPEG of the tables, the frame header and the scans alone, whatever lies between them.

    Decoders ignore the parameters of a sequential JPEG's first scan: they get their only valid values.

    Returns:
        None for data without a scan.
    """
    kept = [_START_OF_IMAGE]
    sequential = False
    position = 2
    while True:
        # As libjpeg does: what precedes the next marker is skipped.
        while position + 3 < len(data) and (
            data[position] != 0xFF or data[position + 1] in (0x00, 0xFF)
        ):
            position += 1
        if position + 3 >= len(data):
            return None
        marker, start = data[position + 1], position + 2
        length = data[start] << 8 | data[start + 1]
        if marker == _START_OF_SCAN:
            scan = bytearray(data[position:])
            if sequential and length >= 6:
                scan[length - 1 : length + 2] = b"\x00\x3f\x00"
            return b"".join([*kept, bytes(scan)])
        if marker in _FRAMES or marker in _TABLES:
            sequential = sequential or marker in (0xC0, 0xC1)
            kept.append(bytes(data[position : start + length]))
        position = start + length


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
