"""Shared by the data-set scripts: find or download an archive, unpack, check and publish it.

Standard library only. A data set is built in `DEST.partial` and renamed when it is complete: a folder
DEST never holds half a data set. Each script ends in `run`, which turns a `DataError` into one line
and an exit code.
"""

import argparse
import gzip
import os
import shutil
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from _download import DataError, Progress, download, md5_of, writing

IMAGE_SUFFIXES = {".jpeg", ".jpg", ".png"}
MARKER = "SOURCE"  # holds the archive's name: sizes of a data set differ in nothing else

Splits = Mapping[str, tuple[int, int]]  # split -> (classes, images)


@dataclass(frozen=True)
class Source:
    """A published archive, and the classes and images of its splits."""

    url: str
    md5: str
    splits: Splits

    @property
    def name(self) -> str:
        """The archive's file name."""
        return self.url.rsplit("/", 1)[-1]


@contextmanager
def opened(archive: Path) -> Iterator[tuple[tarfile.TarFile, Callable[[], None]]]:
    """Opens a tar file; yields it and a function that updates the progress of reading."""
    if not hasattr(tarfile, "data_filter"):
        raise DataError("this Python cannot unpack tar files safely: use Python 3.11.4 or newer")
    try:
        size = archive.stat().st_size
        with (
            archive.open("rb") as raw,
            Progress(f"unpacking {archive.name}", size) as progress,
            tarfile.open(fileobj=raw) as tar,
        ):
            yield tar, lambda: progress.update(raw.tell())
            progress.update(size)  # the rest is padding
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{archive} is damaged or no tar archive ({error}): delete it and download it again"
        ) from error


def extract(
    tar: tarfile.TarFile, folder: Path, place: Callable[[str], str | None], tick: Callable[[], None]
) -> None:
    """Unpacks regular files to `folder / place(member name)`; skips members where that is None."""
    with writing(folder):
        for member in tar:
            tick()
            target = None if member.isdir() else place(member.name)
            if target is None:
                continue
            if not member.isfile():  # the data filter allows some links; no data set needs one
                raise DataError(f"refused {member.name!r}, a link or special file: wrong archive")
            try:
                renamed = member.replace(name=target, deep=False)
                tar.extract(renamed, folder, set_attrs=False, filter="data")
            except tarfile.FilterError as error:
                raise DataError(f"refused unsafe {member.name!r}: wrong archive") from error


def strip_top(name: str) -> str | None:
    """Returns a name without the archive's top folder; None for hidden files (desktop leftovers)."""
    parts = PurePosixPath(name).parts
    return None if len(parts) < 2 or parts[-1].startswith(".") else "/".join(parts[1:])


def unpack_tar(archive: Path, folder: Path) -> None:
    """Unpacks an archive with the layout TOP/train/... and TOP/val/..."""
    with opened(archive) as (tar, tick):
        extract(tar, folder, strip_top, tick)


def miscount(folder: Path, splits: Splits) -> str | None:
    """Returns a text on the first split with a wrong number of classes or images, or None."""
    for split, expected in splits.items():
        root = folder / split
        classes = [item for item in root.iterdir() if item.is_dir()] if root.is_dir() else []
        images = sum(
            os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
            for item in classes
            for name in os.listdir(item)
        )
        if (len(classes), images) != expected:
            return (
                f"{root} holds {images} images in {len(classes)} classes, "
                f"not {expected[1]} in {expected[0]}"
            )
    return None


def is_complete(dest: Path, name: str, splits: Splits) -> bool:
    """Returns whether `dest` holds the data set `name`.

    Raises:
        DataError: `dest` holds something else.
    """
    if not dest.exists() or {item.name for item in dest.iterdir()} <= {name}:
        return False
    marker = dest / MARKER
    held = marker.read_text().strip() if marker.is_file() else name
    if held != name:
        raise DataError(f"{dest} already holds {held}, not {name}: pass another --dest")
    if problem := miscount(dest, splits):
        raise DataError(f"{problem}: move {dest} away or pass another --dest, then run again")
    print(f"{dest} is complete: nothing to do")
    return True


def publish(partial: Path, dest: Path, name: str, splits: Splits) -> None:
    """Renames `partial`, which is complete, to `dest`, which is missing or holds only the archive."""
    with writing(dest):
        (partial / MARKER).write_text(f"{name}\n")
        if dest.exists():
            if (dest / name).exists():  # the next run finds it beside DEST too
                (dest / name).replace(dest.parent / name)
            dest.rmdir()
        partial.replace(dest)
    counts = ", ".join(f"{images} {split}" for split, (_, images) in splits.items())
    print(f"{dest}: {counts} images")


def _obtain(source: Source, url: str, dest: Path, archive: Path | None, verify: bool) -> Path:
    """Returns the archive: the given one, one found beside or in `dest`, or a download."""
    beside = dest.parent / source.name
    archives = [path for path in (archive or beside, dest / source.name) if path.is_file()]
    if archive and archive not in archives:
        raise DataError(f"{archive} is not a file: check --archive, or leave it out to download")
    path = archives[0] if archives else beside
    if not archives:
        download(url, path)
    if verify and (got := md5_of(path)) != source.md5:
        kept = path if archives else path.replace(path.with_name(path.name + ".corrupt"))
        raise DataError(
            f"{kept} is damaged or another version (MD5 {got}, not {source.md5}): delete it and "
            f"run again; if its publisher changed it, pass --archive {kept} --no-verify"
        )
    return path


def install(
    source: Source,
    dest: Path,
    *,
    url: str | None = None,
    archive: Path | None = None,
    verify: bool = True,
    unpack: Callable[[Path, Path], None] = unpack_tar,
) -> None:
    """Installs a data set in `dest`; does nothing if it is complete already."""
    dest = dest.expanduser().resolve()
    if is_complete(dest, source.name, source.splits):
        return
    path = _obtain(source, url or source.url, dest, archive, verify)
    partial = dest.with_name(dest.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a run that was killed
    try:
        with writing(partial):
            partial.mkdir(parents=True)
        unpack(path, partial)
        if problem := miscount(partial, source.splits):
            raise DataError(f"{problem}: {path} is not the right archive; delete it and run again")
        publish(partial, dest, source.name, source.splits)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def arguments(description: str | None, dest: str) -> argparse.ArgumentParser:
    """Returns a parser with the options of all scripts that download."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n\n")[0])
    parser.add_argument("--dest", type=Path, default=Path(dest), help="default: %(default)s")
    parser.add_argument("--archive", type=Path, help="use this file instead of downloading")
    parser.add_argument("--url", help="download from this mirror")
    parser.add_argument(
        "--no-verify", dest="verify", action="store_false", help="do not check the archive's MD5"
    )
    return parser


def run(main: Callable[[], None]) -> int:
    """Runs a script's `main`; returns the exit code, after one line on a problem the user can fix."""
    try:
        main()
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}: check that path and its permissions", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # the next run continues the download
        return 130
    return 0
