"""`fastsimsiam pack`: writes class folders to one file of FFCV's format, and checks every image.

FFCV's own loader ignores the decoder's return code: a packed file must contain only intact JPEGs. So
each image is decoded before it is written, and its copy is compared with it afterwards. One thread
writes; decoding and encoding run on all workers.
"""

import json
import zlib
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from fastsimsiam.config.fields import require_gray16_max
from fastsimsiam.config.run import GRAY16_MAX
from fastsimsiam.errors import BadImageError, UserError
from fastsimsiam.loaders.bad_images import BadImagePolicy
from fastsimsiam.loaders.decode import Pixels, decode_jpeg
from fastsimsiam.loaders.jpeg_header import plain_size
from fastsimsiam.storage.base import Report, Storage
from fastsimsiam.storage.beton import SUFFIX, open_beton
from fastsimsiam.storage.beton_writer import LARGEST_RECORD, BetonWriter
from fastsimsiam.storage.manifest import FORMAT, manifest_path
from fastsimsiam.storage.record_file import RecordFile
from fastsimsiam.system.files import written_whole
from fastsimsiam.system.resources import num_workers
from fastsimsiam.system.text import printable
from fastsimsiam.tools.verify import checksum
from fastsimsiam.version import __version__

_LARGEST_SIDE = 65_500
"""Pixels of a JPEG's side that libjpeg-turbo writes and reads; the format has room for more."""
_AHEAD = 8
"""Images per worker that may be encoded ahead of writing."""


@dataclass(frozen=True, kw_only=True)
class PackOptions:
    """How images are stored.

    Attributes:
        max_side: longest side of an image in pixels, larger images are scaled down; None: no limit.
        short_side: shortest side, likewise.
        quality: JPEG quality, 1 to 100, of images that have to be encoded again.
        gray16_max: largest gray level of 16-bit images, see `decode.to_rgb`.
    """

    max_side: int | None = None
    short_side: int | None = None
    quality: int = 90
    gray16_max: int = GRAY16_MAX

    def __post_init__(self) -> None:
        if self.max_side is not None and self.short_side is not None:
            raise UserError("--max-side and --short-side are both given: drop one of them")
        for name, side in (("--max-side", self.max_side), ("--short-side", self.short_side)):
            if side is not None and not 1 <= side <= _LARGEST_SIDE:
                raise UserError(f"{name} is {side}: give 1 to {_LARGEST_SIDE}")
        if not 1 <= self.quality <= 100:
            raise UserError(f"--quality is {self.quality}: give 1 to 100")
        require_gray16_max(self.gray16_max)

    def bounded(self, height: int, width: int) -> tuple[int, int]:
        """The height and width in pixels with which an image is stored."""
        scale = 1.0
        if self.max_side is not None:
            scale = self.max_side / max(height, width)
        elif self.short_side is not None:
            scale = self.short_side / min(height, width)
        if scale >= 1:
            return height, width
        return max(1, round(height * scale)), max(1, round(width * scale))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Record:
    """An encoded image, or the reason why it is broken.

    Attributes:
        source: sample index in the storage.
        data: the JPEG.
        height, width: size in pixels.
        copied: whether the data are the bytes of the source file.
        broken, warned: reason why the image is broken, and warning of the decoder; or empty.
    """

    source: int
    data: bytes = b""
    height: int = 0
    width: int = 0
    copied: bool = False
    broken: str = ""
    warned: str = ""


def pack(
    storage: Storage,
    target: Path,
    options: PackOptions,
    *,
    workers: int | None = None,
    on_bad_image: str = "error",
    report: Report | None = None,
) -> dict[str, Any]:
    """Writes a packed file and its manifest.

    JPEGs that are small enough, upright, without a warning of the decoder, and read alike by all
    decoders (`jpeg_header.plain_size`) are copied; all other images are decoded, turned upright, scaled
    down and encoded. The manifest keeps the warnings: packed, the decoder's guess causes none.

    Args:
        storage: the images to pack.
        target: .beton file to write; it appears when it is complete, and replaces an older one.
        options: how images are stored.
        workers: threads; None: one per core.
        on_bad_image: see `Config.on_bad_image`; skipped images are left out and listed in the manifest.
        report: called with (images done, images in all).

    Returns:
        The manifest.

    Raises:
        UserError: the file cannot be written, or an image is broken and not skipped.
    """
    workers = num_workers(workers)
    require_target(target)
    policy = BadImagePolicy(on_bad_image, options.gray16_max)
    policy.require_readable(storage)
    with written_whole(target, "DST") as file:
        manifest = _write(storage, file, options, workers, policy, report)
        manifest |= {"file": target.name}
        with written_whole(manifest_path(target), "the manifest") as manifest_file:
            manifest_file.write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def require_target(target: Path) -> None:
    """Refuses a file that cannot be packed to, before the work.

    Raises:
        UserError: its name does not end in .beton.
    """
    if target.suffix != SUFFIX:
        raise UserError(f"DST is {target}: give a name that ends in {SUFFIX}")


def _write(
    storage: Storage,
    file: Path,
    options: PackOptions,
    workers: int,
    policy: BadImagePolicy,
    report: Report | None,
) -> dict[str, Any]:
    records: list[_Record] = []
    checksums: list[int] = []
    broken: dict[str, str] = {}
    # How many images are intact is known only after all are decoded: the table, which comes before
    # their data, has room for all of them.
    with BetonWriter(file, len(storage)) as writer:
        for record in _records(storage, options, workers, policy, report):
            if record.broken:
                broken[printable(storage.paths[record.source])] = record.broken
                continue
            label = int(storage.label[record.source])
            writer.add(record.data, record.height, record.width, label)
            records.append(replace(record, data=b""))
            checksums.append(zlib.crc32(record.data))
        if not records:
            raise UserError(f"{storage.root} has no intact image: choose another folder")
        writer.finish()
    beton = open_beton(file)
    for position, crc32 in enumerate(checksums):
        if zlib.crc32(beton.read(position)) != crc32:
            raise OSError(None, "the copy differs from what was written; is the disk full?")
    return _manifest(storage, file, options, records, checksums, broken)


def _manifest(
    storage: Storage,
    file: Path,
    options: PackOptions,
    records: list[_Record],
    checksums: list[int],
    broken: dict[str, str],
) -> dict[str, Any]:
    label = storage.label[[record.source for record in records]]
    count = Counter(label.tolist())
    return {
        "format": FORMAT,
        "images_total": len(records),
        "bytes": file.stat().st_size,
        "sha256": checksum(RecordFile(file)),
        "crc32": checksums,
        "images_with_their_own_bytes": sum(record.copied for record in records),
        "largest": [max(r.height for r in records), max(r.width for r in records)],
        "options": {
            "max_side": options.max_side,
            "short_side": options.short_side,
            "quality": options.quality,
            "gray16_max": options.gray16_max,
        },
        "versions": {"fastsimsiam": __version__},
        "left_out": broken,
        "warned": {printable(storage.paths[r.source]): r.warned for r in records if r.warned},
        "classes": list(map(printable, storage.classes)),
        "images_of_class": [count[i] for i in range(len(storage.classes))],
        "images": [printable(storage.paths[record.source]) for record in records],
    }


def _records(
    storage: Storage,
    options: PackOptions,
    workers: int,
    policy: BadImagePolicy,
    report: Report | None,
) -> Iterator[_Record]:
    """Yields every image in order; threads encode a bounded number of images ahead."""
    pending: deque[Future[_Record]] = deque()
    indices = iter(range(len(storage)))
    done = 0
    pool = ThreadPoolExecutor(workers, thread_name_prefix="pack")
    try:
        while True:
            while len(pending) < _AHEAD * workers and (index := next(indices, None)) is not None:
                pending.append(pool.submit(_encode, storage, index, options, policy))
            if not pending:
                return
            yield pending.popleft().result()
            done += 1
            if report:
                report(done, len(storage))
    finally:
        pool.shutdown(cancel_futures=True)


def _encode(storage: Storage, index: int, options: PackOptions, policy: BadImagePolicy) -> _Record:
    """Decodes an image, and encodes it again unless its bytes can be copied."""
    height, width = storage.sizes[index].tolist()
    try:
        if (
            height
            and storage.orientation[index] == 1
            and options.bounded(height, width) == (height, width)
        ):
            data = storage.read(index)
            plain = plain_size(data) == (height, width)
            fits = len(data) <= LARGEST_RECORD  # a JPEG may drag along any number of bytes
            pixels = decode_jpeg(data, height * width) if plain and fits else None
            if pixels is not None and pixels.shape[:2] == (height, width):
                return _Record(
                    source=index, data=bytes(data), height=height, width=width, copied=True
                )
        pixels = policy.read_rgb(storage, index)
    except BadImageError as error:
        if not policy.skip:
            raise policy.refuse(error) from error
        return _Record(source=index, broken=str(error))
    height, width = options.bounded(*pixels.shape[:2])
    if max(height, width) > _LARGEST_SIDE:
        raise UserError(f"{storage.name(index)} is too large for the format: pass --max-side")
    pixels = _resized(pixels, (height, width))
    data = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), options.quality, "RGB", colorsubsampling="420"
    )
    warned = policy.warned_images.get(storage.name(index), "")
    return _Record(source=index, data=data, height=height, width=width, warned=warned)


def _resized(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    if pixels.shape[:2] == size:
        return pixels
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize(size[::-1], Image.Resampling.BICUBIC))
