"""What a data set holds that is not among its images: kinds, and what a user is told of them."""

from collections.abc import Mapping
from pathlib import Path

from fastsimsiam.storage.base import Storage
from fastsimsiam.system.text import printable

IMAGES_BESIDE_CLASSES = "images beside the class folders"
IMAGES_BESIDE_SPLITS = "images beside train/ and val/"
FOLDERS_BESIDE_SPLITS = "folders beside train/ and val/"
EMPTY = "class folders without images"
NO_IMAGE = "files without an image suffix"
HIDDEN = "hidden or system entries"
SPECIAL = "pipes, sockets and devices"
DEAD_LINKS = "links to nothing"
TWICE = "links to folders that are listed already"
FURTHER_IMAGES = "further images of samples"
TAR_LINKS = "links and other entries of tars that are no files"
OTHER_LABELS = "labels in columns of another type or name"
OTHER_FILES = "files of other splits"
CUT_OFF = "cut off: the end of its tar is missing"
"""The reason for which an image cannot be used, which completes "NAME is"."""
CUT_OFF_TARS = "tars without an end: images may be missing"
_PICTURES = (
    *(".heic", ".heif", ".jp2", ".j2k", ".jpx", ".jxl", ".svg", ".psd", ".tga", ".ico", ".icns"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".exr", ".hdr", ".dcm", ".dicom", ".dng", ".cr2", ".cr3"),
    *(".nef", ".arw", ".orf", ".rw2", ".raf", ".raw", ".pcx", ".eps", ".mpo", ".apng", ".wdp"),
)
"""Suffixes of image formats that are not read."""
_CONTAINERS = (
    *(".tar", ".tgz", ".gz", ".zip", ".7z", ".rar", ".parquet", ".arrow", ".tfrecord", ".beton"),
    *(".npy", ".npz", ".h5", ".hdf5", ".mat", ".mdb", ".pt", ".pkl"),
    *(".mp4", ".mov", ".avi", ".mkv", ".webm", ".pdf"),
)
"""Suffixes of files that may hold many images."""
_told: dict[Path, list[str]] = {}
"""Folder -> lines that the next `notes` of a storage in it begin with."""


def of_suffix(suffix: str) -> str:
    """The kind of a file by its suffix, which is none of an image file that is read."""
    suffix = suffix.lower()
    return f"{suffix} files" if suffix in _PICTURES + _CONTAINERS else NO_IMAGE


def pictures(passed_over: Mapping[str, int]) -> int:
    """Number of files of image formats that are not read."""
    return sum(passed_over.get(f"{suffix} files", 0) for suffix in _PICTURES)


def listed(passed_over: Mapping[str, int]) -> str:
    """Kinds and numbers on one line."""
    return ", ".join(f"{kind}: {number}" for kind, number in sorted(passed_over.items()) if number)


def tell(folder: Path, lines: list[str]) -> None:
    """Leaves lines for the log about a data set in a folder, for whoever opens it and asks `notes`."""
    _told[folder] = lines


def notes(storage: Storage) -> list[str]:
    """Lines for the log about what lies in a data set and is not used; none where all is used.

    What `tell` has left comes first, once. What is probably wanted, images in the wrong place or of a
    format that is not read, begins with WARNING.
    """
    root, counts = printable(storage.root), dict(storage.passed_over)
    folders = (storage.root, *storage.root.parents)
    lines = [line for folder in folders for line in _told.pop(folder, ())]
    move = "and not used: move them into a class folder to use them, or list all images in a .txt"
    if number := counts.pop(IMAGES_BESIDE_CLASSES, 0):
        lines.append(f"WARNING: {_images(number)} beside the class folders of {root} {move}")
    if number := counts.pop(IMAGES_BESIDE_SPLITS, 0):
        lines.append(f"WARNING: {_images(number)} beside {root} {move}")
    for suffix in _PICTURES:
        if number := counts.pop(f"{suffix} files", 0):
            files, them = ("file", "it") if number == 1 else ("files", "them")
            lines.append(
                f"WARNING: {number} {suffix} {files} in {root} not used: convert to JPEG or PNG to use "
                f"{them}"
            )
    if nested := _folders_of_the_only_class(storage):
        lines.append(
            f"WARNING: {root} has a single class, whose images lie in {nested} folders within it: if "
            f"these are the classes, they are one level too deep"
        )
    if number := counts.pop(FOLDERS_BESIDE_SPLITS, 0):
        lines.append(f"not used beside {root}: {number} other folder{'s' if number > 1 else ''}")
    if number := counts.pop(FURTHER_IMAGES, 0):
        lines.append(
            f"WARNING: {_images(number)} not used in {root}: up to the first dot they have the names "
            "of others, as NAME.mask.png beside NAME.jpg"
        )
    if number := counts.pop(CUT_OFF_TARS, 0):
        tars = "tars end" if number > 1 else "tar ends"
        lines.append(
            f"WARNING: {number} {tars} without the mark of an end in {root}: compare the size or "
            "checksum with that of its source"
        )
    if counts:
        lines.append(f"not used in {root}: {listed(counts)}")
    return lines


def _images(number: int) -> str:
    return f"{number} images are" if number > 1 else "1 image is"


def _folders_of_the_only_class(storage: Storage) -> int:
    """Number of folders below a data set's only class folder; 0 if it holds images itself."""
    if storage.is_packed or len(storage.classes) != 1:
        return 0
    parts = [path.split("/", 2) for path in storage.paths]
    if any(len(part) < 3 for part in parts):
        return 0
    folders = {part[1] for part in parts}
    return len(folders) if len(folders) > 1 else 0
