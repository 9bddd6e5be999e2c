"""What libjpeg-turbo warns of while it decodes a JPEG, and whether the pixels are concerned.

After a warning the decoder goes on, and guesses. Many intact JPEGs cause one: ImageNet holds some. So
images with warnings are used and counted, and `--on-bad-image error-strict` and `skip-strict` refuse
those whose warning is about the image's data.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import simplejpeg

from fastsimsiam.loaders.jpeg_header import without_extras

# Warnings of libjpeg-turbo (jerror.h); other texts are refusals, of it or of TurboJPEG.
_WARNING = re.compile(
    r"Corrupt JPEG data|Premature end|Warning: unknown JFIF|Unknown Adobe color transform"
    r"|Inconsistent progression|Invalid SOS parameters"
)
_LEFT_OVER = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
_END = b"\xff\xd9"
_HARMLESS = "harmless: "


@dataclass(frozen=True, kw_only=True)
class JpegWarning:
    """A warning of the decoder.

    Attributes:
        text: libjpeg-turbo's words.
        in_data: whether it is about the image's data, so that pixels may be wrong.
    """

    text: str
    in_data: bool

    def __str__(self) -> str:
        return self.text if self.in_data else f"{_HARMLESS}{self.text}"


def warned_line(warned_images: Mapping[str, str]) -> str:
    """One line that counts images with a warning."""
    inside = sum(not text.startswith(_HARMLESS) for text in warned_images.values())
    return (
        f"the decoder warned of {len(warned_images)} images, of the data of {inside}, whose pixels may "
        "be wrong"
    )


def jpeg_warning(data: memoryview) -> JpegWarning | None:
    """Decodes a JPEG once more, or twice, for the warning; None if there is none.

    Not about the image's data are warnings about
    - segments that are not needed to decode it: JFIF's version, Adobe's transform, bytes between
      segments, parameters of a scan that a sequential JPEG does not use
    - padding between the data and the end marker, all of one value. Other bytes there are what is left
      of data that the decoder could not follow.
    """
    text = _first_warning(data)
    if text is None:
        return None
    # libjpeg-turbo tells the first warning alone: without the extras it is one about the data.
    plain = without_extras(data)
    inner = _first_warning(plain) if plain is not None else text
    if inner is None or (plain is not None and _is_padding(inner, plain)):
        return JpegWarning(text=text, in_data=False)
    return JpegWarning(text=inner, in_data=True)


def _first_warning(data: bytes | memoryview) -> str | None:
    try:
        simplejpeg.decode_jpeg(data, "RGB")
    except ValueError as error:
        text = " ".join(str(error).split())
        return text if _WARNING.search(text) else None
    return None


def _is_padding(text: str, data: bytes) -> bool:
    left_over = _LEFT_OVER.search(text)
    end = data.rfind(_END)
    if left_over is None or end < 0:
        return False
    return len(set(data[max(0, end - int(left_over[1])) : end])) <= 1
