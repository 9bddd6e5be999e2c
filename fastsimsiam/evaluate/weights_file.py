"""Reads the content of a file of weights, or says what the file is instead. No code in it is run."""

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastsimsiam.errors import UserError
from fastsimsiam.runs.archive import DamagedCheckpointError, read_stored
from fastsimsiam.system.files import require_file
from fastsimsiam.system.optional import require

_HEAD = 1024
_BEGINNINGS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: run git lfs pull"),
    (b"\x1f\x8b", "compressed by gzip: unpack it first"),
    (b"BZh", "compressed by bzip2: unpack it first"),
    (b"\xfd7zXZ", "compressed by xz: unpack it first"),
    (b"7z\xbc\xaf", "a 7-Zip archive: unpack it first"),
    (b"\x89HDF", "an HDF5 file, as Keras writes: pass weights that torch.save wrote"),
    (b"\x93NUMPY", "a NumPy array: pass weights that torch.save wrote"),
    (b"\xff\xd8\xff", "an image: pass a file of weights"),
    (b"\x89PNG", "an image: pass a file of weights"),
)
_AGAIN = "download or copy it again"


def read_weights(path: Path) -> tuple[dict[str, Any], Mapping[str, str]]:
    """Reads a file by its content, whatever its name is.

    Args:
        path: a file that `torch.save` wrote, or a .safetensors file.

    Returns:
        The content, and the metadata of a .safetensors file; that of others is in the content.

    Raises:
        DamagedCheckpointError: the file is cut off, or holds something else.
        UserError: the file cannot be read.
    """
    require_file(path, "checkpoint", "pass a file of weights, or the folder of a run")
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    if what := _something_else(path, head):
        raise DamagedCheckpointError(f"{path} is {what}")
    if head[8:9] == b"{" or path.suffix == ".safetensors":
        return _read_safetensors(path, head, size)
    return read_stored(path), {}


def _something_else(path: Path, head: bytes) -> str | None:
    """What a file holds instead of weights, and what to do; None if it may be weights."""
    if not head:
        return f"empty: {_AGAIN}"
    if head.startswith(b"PK\x03\x04"):
        return _zip_of_others(path)
    for beginning, what in _BEGINNINGS:
        if head.startswith(beginning):
            return what
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml")):
        return (
            "a web page (HTML), not weights: the download failed; open the address in a browser, "
            "then download again"
        )
    if path.suffix == ".onnx" and head[8:9] != b"{":
        return "an ONNX graph, which is not evaluated: pass the checkpoint, or a .safetensors file"
    if _is_text(head):
        return "damaged or no checkpoint: it is a text file; pass a file of weights"
    return None


def _zip_of_others(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError):
        return f"cut off or damaged (its end, the list of a zip archive, is missing): {_AGAIN}"
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner:  # torch.save writes none
        return (
            "TorchScript, which holds code: save its weights with "
            f"torch.save(torch.jit.load({str(path)!r}).state_dict(), 'weights.pth')"
        )
    if not {"data.pkl", ".data/version"} & inner and any(n.endswith(".npy") for n in names):
        return "an archive of NumPy arrays: pass weights that torch.save wrote"
    return None


def _is_text(head: bytes) -> bool:
    """Whether a file begins with letters; pickles of torch begin with bytes above them."""
    return all(byte in b"\t\n\r\f\x1b" or 32 <= byte < 127 for byte in head)


def _read_safetensors(
    path: Path, head: bytes, size: int
) -> tuple[dict[str, Any], Mapping[str, str]]:
    require("safetensors", str(path), "pip install 'fastsimsiam[export]'")
    from safetensors import SafetensorError, safe_open

    if len(head) < 8 or int.from_bytes(head[:8], "little") + 8 > size:
        raise UserError(
            f"{path} is damaged or cut off (its header is longer than its {size} bytes): {_AGAIN}"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        reason = " ".join(str(error).split())[:120]
        if "not fully covered" in reason:
            reason = f"cut off: {size} bytes are not all of it"
        raise UserError(f"{path} is damaged or not a checkpoint ({reason}): {_AGAIN}") from error
    return tensors, metadata
