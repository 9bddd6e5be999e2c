"""Bytes of files, damaged as disks, networks and people damage them."""

import io
import random

import numpy as np
from PIL import Image

from fastsimsiam.doctor.synthetic import textured_image


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Some bytes of a file flipped, cut off, lost, doubled, zeroed or overwritten by noise."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        if not changed:
            break
        # Headers are a small part of a file and hold most of what a reader relies on.
        end = len(changed) if rng.random() < 0.6 else min(len(changed), 200)
        at = rng.randrange(end)
        length = rng.choice((1, 2, 4, 16, 64, 512))
        kind = rng.randrange(7)
        if kind == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at] = rng.choice((0, 1, 127, 128, 254, 255))
        elif kind == 2:
            del changed[at:]
        elif kind == 3:
            del changed[at : at + length]
        elif kind == 4:
            changed[at:at] = changed[at : at + length]
        elif kind == 5:
            changed[at : at + length] = bytes(len(changed[at : at + length]))
        else:
            changed[at : at + length] = rng.randbytes(len(changed[at : at + length]))
    return bytes(changed)


def encoded_images() -> dict[str, bytes]:
    """Suffix and kind -> bytes of an intact image of every kind that is read."""
    image = textured_image(np.random.default_rng(0), 60, 80)
    gray16 = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    kinds: dict[str, tuple[Image.Image, str, dict[str, object]]] = {
        "plain.jpg": (image, "JPEG", {"quality": 90}),
        "progressive.jpg": (image, "JPEG", {"progressive": True}),
        "gray.jpg": (image.convert("L"), "JPEG", {}),
        "restarts.jpg": (image, "JPEG", {"restart_marker_blocks": 4}),
        "cmyk.jpg": (image.convert("CMYK"), "JPEG", {}),
        "rgb.png": (image, "PNG", {}),
        "palette.png": (image.quantize(16), "PNG", {}),
        "gray16.png": (gray16, "PNG", {}),
        "photo.webp": (image, "WEBP", {}),
        "lossless.webp": (image, "WEBP", {"lossless": True}),
        "plain.bmp": (image, "BMP", {}),
        "still.gif": (image, "GIF", {}),
        "plain.tif": (image, "TIFF", {}),
        "packed.tif": (image, "TIFF", {"compression": "tiff_lzw"}),
    }
    result = {}
    for name, (picture, form, options) in kinds.items():
        file = io.BytesIO()
        picture.save(file, form, **options)
        result[name] = file.getvalue()
    return result
