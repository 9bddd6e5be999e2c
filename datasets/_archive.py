"""What the data-set scripts share: find or fetch an archive, unpack it, check and publish it.

Standard library only. A data set is built in `DEST.partial` and renamed when it is whole, so a
folder called DEST is never half a data set. Each script ends in `run`, which turns a `DataError`
into one line and an exit code.
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
MARKER = "SOURCE"  # holds the archive's name, which alone tells the sizes of a data set apart

Splits = Mapping[str, tuple[int, int]]  # split -> (classes, images)


@dataclass(frozen=True)
class Source:
    """A published archive and what its data set must hold."""

    url: str
    md5: str
    splits: Splits

    @property
    def name(self) -> str:
        """The archive's file name."""
        return self.url.rsplit("/", 1)[-1]


@contextmanager
def opened(archive: Path) -> Iterator[tuple[tarfile.TarFile, Callable[[], None]]]:
    """Opens a tar file; yields it and a function that shows how far it has been read."""
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
            progress.update(size)  # what is left is padding
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{archive} is damaged or no tar archive ({error}): delete it and fetch it again"
        ) from error


def extract(
    tar: tarfile.TarFile, folder: Path, place: Callable[[str], str | None], tick: Callable[[], None]
) -> None:
    """Unpacks the regular files to `folder / place(member name)`, skipping where that is None."""
    with writing(folder):
        for member in tar:
            tick()
            target = None if member.isdir() else place(member.name)
            if target is None:
                continue
            if not member.isfile():  # the data filter admits some links; no data set needs one
                raise DataError(f"refused {member.name!r}, a link or special file: wrong archive")
            try:
                renamed = member.replace(name=target, deep=False)
                tar.extract(renamed, folder, set_attrs=False, filter="data")
            except tarfile.FilterError as error:
                raise DataError(f"refused unsafe {member.name!r}: wrong archive") from error


def strip_top(name: str) -> str | None:
    """Drops the archive's own top folder, and hidden files (desktop leftovers) altogether."""
    parts = PurePosixPath(name).parts
    return None if len(parts) < 2 or parts[-1].startswith(".") else "/".join(parts[1:])


def unpack_tar(archive: Path, folder: Path) -> None:
    """Unpacks an archive that is laid out as TOP/train/... and TOP/val/... already."""
    with opened(archive) as (tar, tick):
        extract(tar, folder, strip_top, tick)


def miscount(folder: Path, splits: Splits) -> str | None:
    """Says in which split the classes or images are not as many as expected, or None."""
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
    """Says whether `dest` holds the data set `name`; raises if it holds anything else."""
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
    """Renames the counted `partial` to `dest`, which may hold nothing but the archive."""
    with writing(dest):
        (partial / MARKER).write_text(f"{name}\n")
        if dest.exists():
            if (dest / name).exists():  # next to DEST it is found just as well by another run
                (dest / name).replace(dest.parent / name)
            dest.rmdir()
        partial.replace(dest)
    counts = ", ".join(f"{images} {split}" for split, (_, images) in splits.items())
    print(f"{dest}: {counts} images")


def _obtain(source: Source, url: str, dest: Path, archive: Path | None, verify: bool) -> Path:
    """Returns the archive: the one given, or found next to or in `dest`, or downloaded."""
    beside = dest.parent / source.name
    found = [path for path in (archive or beside, dest / source.name) if path.is_file()]
    if archive and archive not in found:
        raise DataError(f"{archive} is not a file: check --archive, or leave it out to download")
    path = found[0] if found else beside
    if not found:
        download(url, path)
    if verify and (got := md5_of(path)) != source.md5:
        kept = path if found else path.replace(path.with_name(path.name + ".corrupt"))
        raise DataError(
            f"{kept} is damaged or another version (MD5 {got}, not {source.md5}): delete it and "
            f"run again; if it was changed by its publisher, pass --archive {kept} --no-verify"
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
    """Lays a data set out in `dest`; does nothing if it is there already."""
    dest = dest.expanduser().resolve()
    if is_complete(dest, source.name, source.splits):
        return
    path = _obtain(source, url or source.url, dest, archive, verify)
    partial = dest.with_name(dest.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
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
    """Returns a parser with the options that all downloading scripts have."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n\n")[0])
    parser.add_argument("--dest", type=Path, default=Path(dest), help="default: %(default)s")
    parser.add_argument("--archive", type=Path, help="use this file, do not download")
    parser.add_argument("--url", help="download from this mirror")
    parser.add_argument(
        "--no-verify", dest="verify", action="store_false", help="do not check the archive's MD5"
    )
    return parser


def run(main: Callable[[], None]) -> int:
    """Runs a script's `main`; returns its exit code, after one line for what the user can mend."""
    try:
        main()
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}: check that path and its permissions", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # what was downloaded or unpacked so far serves the next run
        return 130
    return 0
