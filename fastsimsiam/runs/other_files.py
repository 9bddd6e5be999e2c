"""Says what a file is that is taken for weights and is not."""

import zipfile
from pathlib import Path

AGAIN = "download or copy it again"
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


def what_else(path: Path, head: bytes) -> str | None:
    """Says what a file is instead of weights.

    Args:
        path: the file.
        head: its first bytes, a kilobyte or less.

    Returns:
        What it is and what to do, to complete "FILE is"; None if it may be weights.
    """
    if not head:
        return f"empty: {AGAIN}"
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
        return f"cut off or damaged (its end, the list of a zip archive, is missing): {AGAIN}"
    inner = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inner:  # torch.save writes none
        return torch_script(path)
    if not {"data.pkl", ".data/version"} & inner and any(n.endswith(".npy") for n in names):
        return "an archive of NumPy arrays: pass weights that torch.save wrote"
    return None


def _is_text(head: bytes) -> bool:
    """Whether a file begins with letters; pickles of torch begin with bytes above them."""
    return all(byte in b"\t\n\r\f\x1b" or 32 <= byte < 127 for byte in head)


def torch_script(path: Path) -> str:
    """What a TorchScript archive is, and what to do."""
    return (
        "TorchScript, which holds code: save its weights with "
        f"torch.save(torch.jit.load({str(path)!r}).state_dict(), 'weights.pth')"
    )
