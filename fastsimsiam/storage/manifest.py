"""The manifest of a packed file, FILE.json: names of classes and images, and checksums."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastsimsiam.errors import UserError
from fastsimsiam.storage.record_file import RecordFile
from fastsimsiam.storage.system_errors import why_not_read

FORMAT = 1
_LARGEST = 1 << 32
"""Bytes: about 50 million images."""


def manifest_path(file: Path) -> Path:
    """The path of a packed file's manifest."""
    return file.with_name(file.name + ".json")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a manifest says of a packed file; None where it says nothing.

    Attributes:
        classes: names of the classes.
        images: names of the images.
        images_of_class: number of images of each class.
        bytes: size of the packed file.
        sha256: checksum of the packed file, 64 hexadecimal digits.
        crc32: checksum of each record.
        warned: image -> warning of the decoder when it was packed.
    """

    classes: Sequence[str] | None = None
    images: Sequence[str] | None = None
    images_of_class: Sequence[int] | None = None
    bytes: int | None = None
    sha256: str | None = None
    crc32: Sequence[int] | None = None
    warned: Mapping[str, str] = field(default_factory=dict)


def read_manifest(file: Path) -> Manifest | None:
    """The manifest of a packed file; None if it has none.

    Raises:
        UserError: the manifest is damaged, or of another version.
    """
    path = manifest_path(file)
    try:
        opened = RecordFile(path)
    except FileNotFoundError:
        return None
    if opened.size > _LARGEST:
        raise _unusable(path, f"it has {opened.size} bytes")
    try:
        content = json.loads(opened.read_new(0, opened.size).decode())
    except OSError as error:
        raise UserError(why_not_read(path, error)) from error
    except (EOFError, MemoryError, RecursionError) as error:
        raise _unusable(path, type(error).__name__) from error
    except ValueError as error:
        raise _unusable(path, str(error)) from error
    if not isinstance(content, dict):
        raise _unusable(path, "it is no JSON object")
    if content.get("format", FORMAT) != FORMAT:
        raise _unusable(path, f"its format is {str(content['format'])[:20]!r}, not {FORMAT}")
    return Manifest(
        classes=_list(path, content, "classes", str),
        images=_list(path, content, "images", str),
        images_of_class=_list(path, content, "images_of_class", int),
        bytes=_value(path, content, "bytes", int),
        sha256=_value(path, content, "sha256", str),
        crc32=_list(path, content, "crc32", int),
        warned=_texts(path, content, "warned"),
    )


def _value(path: Path, content: dict[str, Any], key: str, kind: type) -> Any:
    value = content.get(key)
    if value is not None and type(value) is not kind:
        raise _unusable(path, f"{key} is no {'text' if kind is str else 'number'}")
    return value


def _list(path: Path, content: dict[str, Any], key: str, kind: type) -> Any:
    value = content.get(key)
    if value is None:
        return None
    if not isinstance(value, list) or any(type(item) is not kind for item in value):
        raise _unusable(path, f"{key} is no list of {'names' if kind is str else 'numbers'}")
    return value


def _texts(path: Path, content: dict[str, Any], key: str) -> dict[str, str]:
    value = content.get(key) or {}
    if not isinstance(value, dict) or any(not isinstance(text, str) for text in value.values()):
        raise _unusable(path, f"{key} is no object of texts")
    return value


def _unusable(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path} cannot be read ({reason}): pack the data set again, or remove this file to use the "
        "images without their names"
    )
