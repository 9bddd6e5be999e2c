"""`fastsimsiam pack --verify`: compares a packed file with its manifest, and decodes every image.

Works for packed files from elsewhere, too, which have no manifest: then there are no checksums to
compare, and everything else is checked.
"""

import hashlib
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastsimsiam.errors import BadImageError, UserError
from fastsimsiam.loaders.bad_images import BadImagePolicy
from fastsimsiam.storage.base import Report
from fastsimsiam.storage.beton import Beton, open_beton
from fastsimsiam.storage.manifest import Manifest, manifest_path, read_manifest
from fastsimsiam.storage.record_file import RecordFile
from fastsimsiam.system.resources import num_workers

_BLOCK = 1 << 22
"""Bytes that are read at a time for a checksum."""


@dataclass(frozen=True, kw_only=True)
class Verified:
    """A packed file without faults.

    Attributes:
        beton: the file.
        manifest: what it was compared with; None if it has no manifest.
        warned_images: image -> warning of the decoder, in the order of the file.
    """

    beton: Beton
    manifest: Manifest | None
    warned_images: dict[str, str]


def checksum(file: RecordFile) -> str:
    """The SHA-256 of a file, in hexadecimal digits; raises as `RecordFile.read` does."""
    digest = hashlib.sha256()
    for start in range(0, file.size, _BLOCK):
        digest.update(file.read(start, min(_BLOCK, file.size - start)))
    return digest.hexdigest()


def verify(
    file: Path,
    *,
    workers: int | None = None,
    on_bad_image: str = "error",
    report: Report | None = None,
) -> Verified:
    """Compares a packed file with its manifest, if it has one, and decodes every image.

    Args:
        file: .beton file.
        workers: threads; None: one per core.
        on_bad_image: see `Config.on_bad_image`; with `-strict`, a warning about an image's data is a
            fault.
        report: called with (images done, images in all).

    Raises:
        UserError: the file is damaged or differs from its manifest, or images are broken: the message
            names the first one and how many there are.
    """
    beton = open_beton(file)
    _require_apart(beton)
    manifest = read_manifest(file)
    if manifest is not None:
        _require_counts(beton, manifest)
    policy = BadImagePolicy(on_bad_image)
    faults = _faults(beton, manifest or Manifest(), policy, num_workers(workers), report)
    if faults:
        first, more = faults[0], f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise UserError(f"{first}{more}: pack the data set again")
    if manifest is not None and manifest.sha256 is not None:
        try:
            actual = checksum(beton.file)
        except (OSError, EOFError) as error:
            reason = getattr(error, "strerror", None) or "it became shorter"
            raise UserError(f"{file} cannot be read ({reason}): restore access to it") from error
        if actual != manifest.sha256:
            raise _differs(beton, "sha256", manifest.sha256, actual)
    names = filter(policy.warned_images.__contains__, map(beton.name, range(len(beton))))
    warned = {name: policy.warned_images[name] for name in names}
    return Verified(beton=beton, manifest=manifest, warned_images=warned)


def _differs(beton: Beton, what: str, expected: object, actual: object) -> UserError:
    return UserError(
        f"{beton.root} differs from its manifest in {what} ({actual}, not {expected}): pack the data "
        "set again"
    )


def _require_apart(beton: Beton) -> None:
    """Refuses records of which one begins within another one."""
    order = np.argsort(beton.pointer, kind="stable")
    start, end = beton.pointer[order], (beton.pointer + beton.length)[order]
    overlap = np.flatnonzero(end[:-1] > start[1:])
    if overlap.size:
        first, second = order[overlap[0]], order[overlap[0] + 1]
        raise UserError(
            f"{beton.root} is damaged (records {first} and {second} overlap): pack the data set again"
        )
    foreign = np.flatnonzero(beton.owner != np.arange(len(beton)))
    if foreign.size:
        index = int(foreign[0])
        raise UserError(
            f"{beton.root} is damaged (record {index} was written for image {beton.owner[index]}): "
            "pack the data set again"
        )


def _require_counts(beton: Beton, manifest: Manifest) -> None:
    """Refuses a manifest whose lists do not fit the labels and the number of images."""
    if manifest.images is None or manifest.classes is None or manifest.sha256 is None:
        raise UserError(
            f"{manifest_path(beton.root)} lists no images, classes or checksum: pack the data set again"
        )
    if manifest.crc32 is not None and len(manifest.crc32) != len(beton):
        raise _differs(beton, "checksums of images", len(manifest.crc32), len(beton))
    if manifest.images_of_class is not None:
        actual = np.bincount(beton.label, minlength=len(beton.classes)).tolist()
        if actual != list(manifest.images_of_class):
            raise UserError(
                f"{beton.root} differs from its manifest in the number of images of each class: pack "
                "the data set again"
            )


def _faults(
    beton: Beton, manifest: Manifest, policy: BadImagePolicy, workers: int, report: Report | None
) -> Sequence[str]:
    """Why images are broken or have changed, in their order."""

    def fault(index: int) -> str | None:
        if index in beton.unreadable:
            return f"{beton.name(index)} {beton.unreadable[index]}"
        try:
            crc32 = manifest.crc32[index] if manifest.crc32 is not None else None
            if crc32 is not None and zlib.crc32(beton.read(index)) != crc32:
                return f"{beton.name(index)} has changed since it was packed"
            policy.read_rgb(beton, index)
        except BadImageError as error:
            return str(error)
        return None

    faults = []
    with ThreadPoolExecutor(workers) as pool:
        try:
            for done, text in enumerate(pool.map(fault, range(len(beton))), start=1):
                if text is not None:
                    faults.append(text)
                if report:
                    report(done, len(beton))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return faults
