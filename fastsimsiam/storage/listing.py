"""Finds the image files in class folders, and counts what is passed over."""

import errno
import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from fastsimsiam.errors import UserError
from fastsimsiam.storage import passed_over as kinds
from fastsimsiam.storage.header_index import ListedFile
from fastsimsiam.storage.split_names import SPELLINGS
from fastsimsiam.storage.system_errors import reason_of, why_not_read

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"),
)
"""Suffixes of image files, in any case."""
_SYSTEM_NAMES = frozenset(
    {
        *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r", "__pycache__"),
        *("@eadir", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "~snapshot"),
        *("lost+found", "$recycle.bin", "recycler", "system volume information"),
    }
)
"""Entries that systems put into folders, in lower case; names that begin with a dot are hidden."""

_Identity = tuple[int, int]
"""Device and inode of a folder."""


@dataclass(kw_only=True)
class Listing:
    """What lies in class folders.

    Attributes:
        files: the image files in class folders, sorted by path; bytes and time are 0 for those in
            `out_of_reach`.
        loose: those that lie beside the class folders.
        out_of_reach: path -> the system's reason, of image files that cannot be read.
        folders: paths of all folders that hold image files.
        empty: names of class folders without images, sorted.
        passed_over: kind -> number, of entries that are not among the images.
    """

    files: list[ListedFile] = field(default_factory=list)
    loose: list[ListedFile] = field(default_factory=list)
    out_of_reach: dict[str, str] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)


def is_hidden(name: str) -> bool:
    """Whether an entry is hidden or a system's own: no data."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def list_images(root: Path) -> Listing:
    """Lists the image files in the class folders of `root`, at any depth.

    Links to files and folders are followed, so that an image that is linked to is listed twice. A
    folder is listed once per class: links cannot lead in circles. A link to nothing with the name of
    an image is an image that cannot be read.

    Raises:
        UserError: a folder cannot be read, or the file system is gone.
    """
    found = Listing()
    try:
        above = {_identity(folder) for folder in (root, *root.resolve().parents)}
    except OSError as error:
        raise UserError(why_not_read(error.filename or root, error)) from error
    for name, is_link in sorted(_scan(root, "", found)):
        _list_class(root, name, is_link, above, found)
    found.files.sort()
    found.loose.sort()
    return found


def beside_splits(data: Path) -> dict[str, int]:
    """Kind -> number, of folders and images that lie in `data` beside the folders of splits."""
    found: Counter[str] = Counter()
    splits = {name for names in SPELLINGS.values() for name in names}
    try:
        with os.scandir(data) as entries:
            for entry in entries:
                if entry.name.casefold() in splits or is_hidden(entry.name):
                    continue
                if _is_folder(entry):
                    found[kinds.FOLDERS_BESIDE_SPLITS] += 1
                elif is_image(entry.name):
                    found[kinds.IMAGES_BESIDE_SPLITS] += 1
    except OSError as error:
        raise UserError(why_not_read(error.filename or data, error)) from error
    return found


def _list_class(
    root: Path, name: str, is_link: bool, above: set[_Identity], found: Listing
) -> None:
    before = len(found.files)
    seen = set(above)
    # Links come last: a folder is listed under its own name, where it has one in the class.
    ready, linked = ([], [name]) if is_link else ([(name, False)], [])
    while ready or linked:
        if not ready:
            linked.sort(reverse=True)
            ready.append((linked.pop(), True))
        path, through_link = ready.pop()
        try:
            identity = _identity(os.path.join(root, path))
        except OSError as error:
            raise UserError(why_not_read(error.filename, error)) from error
        # Without a link nothing comes twice, whatever numbers a file system gives its folders.
        if through_link and identity in seen:
            found.passed_over[kinds.TWICE] += 1
            continue
        seen.add(identity)
        for child, child_is_link in _scan(root, path + "/", found):
            if child_is_link:
                linked.append(child)
            else:
                ready.append((child, through_link))
    if len(found.files) == before:
        found.empty.append(name)
        found.passed_over[kinds.EMPTY] += 1


def _scan(root: Path, prefix: str, found: Listing) -> list[tuple[str, bool]]:
    """Adds the images of a folder to `found`; returns its subfolders, and whether each is a link."""
    subfolders = []
    before = len(found.files)
    folder = os.path.join(root, prefix)
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    found.passed_over[kinds.HIDDEN] += 1
                elif _is_folder(entry):
                    subfolders.append((prefix + entry.name, entry.is_symlink()))
                elif is_image(entry.name):
                    _add_image(entry, prefix, found)
                else:
                    found.passed_over[_kind(entry)] += 1
    except OSError as error:
        raise UserError(why_not_read(error.filename or folder, error)) from error
    if prefix and len(found.files) > before:
        found.folders.append(prefix[:-1])
    return subfolders


def _add_image(entry: os.DirEntry[str], prefix: str, found: Listing) -> None:
    try:
        status = entry.stat()
    except OSError as error:
        reason = reason_of(entry.path, error)
        if isinstance(error, FileNotFoundError) and entry.is_symlink():
            reason = "a link to nothing"
        found.out_of_reach[prefix + entry.name] = reason
        listed = (prefix + entry.name, 0, 0)
    else:
        if not stat.S_ISREG(status.st_mode):
            found.passed_over[kinds.SPECIAL] += 1
            return
        listed = (prefix + entry.name, status.st_size, status.st_mtime_ns)
    (found.files if prefix else found.loose).append(listed)
    if not prefix:
        found.passed_over[kinds.IMAGES_BESIDE_CLASSES] += 1


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        # What leads nowhere is no folder; neither is what is called an image. Else a class may be lost.
        if error.errno == errno.ELOOP or is_image(entry.name):
            return False
        raise


def is_image(name: str) -> bool:
    """Whether a name has the suffix of an image file."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def _kind(entry: os.DirEntry[str]) -> str:
    """The kind of an entry that is neither an image nor a folder."""
    try:
        is_file = entry.is_file() if not entry.is_symlink() else stat.S_ISREG(entry.stat().st_mode)
    except OSError:
        return kinds.DEAD_LINKS
    return kinds.of_suffix(os.path.splitext(entry.name)[1]) if is_file else kinds.SPECIAL


def _identity(folder: str | Path) -> _Identity:
    status = os.stat(folder)
    return status.st_dev, status.st_ino
