"""A look at a JPEG that does not decode it (ITU-T T.81, annex B)."""

from fastsimsiam.storage.base import Storage

_START_OF_IMAGE = b"\xff\xd8"
_END_OF_IMAGE = b"\xff\xd9"
_START_OF_SCAN = 0xDA
_ADOBE = 0xEE
# Frame headers: C0 to CF without DHT, JPG and DAC.
_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_TAIL = 64
"""Bytes that may lie behind the end marker; cameras pad."""


def is_plain_jpeg(storage: Storage, index: int, data: memoryview) -> bool:
    """Whether a sample may go to a decoder that is not libjpeg-turbo under our eyes.

    Args:
        storage: where it lies.
        index: its number.
        data: its bytes.

    Returns:
        True for a JPEG that every decoder reads alike, stands upright and is of the size it was
        indexed with.
    """
    height, width = storage.sizes[index].tolist()
    return bool(storage.orientation[index] == 1) and jpeg_size(data) == (height, width)


def jpeg_size(data: memoryview) -> tuple[int, int] | None:
    """Height and width of a JPEG that every decoder reads alike.

    Returns:
        None for what is no JPEG or has lost its end, and for colors other than gray and YCbCr.
    """
    if data[:2] != _START_OF_IMAGE or _END_OF_IMAGE not in bytes(data[-_TAIL:]):
        return None
    position, size = 2, None
    while position + 9 < len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        length = data[position + 2] << 8 | data[position + 3]
        if marker == _START_OF_SCAN:
            return size
        # An Adobe segment says how colors are coded; 1 is YCbCr, what everybody assumes.
        if marker == _ADOBE and length >= 14 and data[position + 15] != 1:
            return None
        if marker in _FRAMES:
            bits, components = data[position + 4], data[position + 9]
            if bits != 8 or components not in (1, 3):
                return None
            height = data[position + 5] << 8 | data[position + 6]
            size = (height, data[position + 7] << 8 | data[position + 8])
        position += 2 + length
    return None
