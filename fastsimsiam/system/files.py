"""Files that are there whole or not at all."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastsimsiam.errors import UserError


@contextmanager
def written_whole(
    target: Path,
    what: str,
    *,
    fix: str = "make room, or choose another place",
    shared: bool = False,
    keep: bool = True,
) -> Iterator[Path]:
    """Gives a path beside the target to write to, syncs it to the disk and renames it at the end.

    Neither a killed process nor a power failure leaves half a file under the target's name.

    Args:
        target: the file; its folder is created.
        what: what the error calls it, the option of the command line for instance.
        fix: what the error tells the user to do.
        shared: several processes may write the target at the same time.
        keep: False: a trial, which leaves the target as it is.

    Yields:
        The path to write to.

    Raises:
        UserError: the file cannot be written, the disk is full for instance.
    """
    mark = f".{os.getpid()}.partial" if shared else ".partial"
    require_replaceable(target, what)
    partial = target.with_name(target.name + mark)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        _sync(partial)
        if not keep:
            return
        partial.replace(target)
        with suppress(OSError):  # not every file system can sync a folder
            _sync(target.parent)
    except OSError as error:
        raise UserError(
            f"cannot write {what} {target} ({error.strerror or error}): {fix}"
        ) from error
    finally:
        with suppress(OSError):  # mostly it is renamed already
            partial.unlink()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)
_ROOM = 64 << 10
"""Bytes that `require_writable` tries to write: more than most results have."""


def _special(path: Path) -> str | None:
    """What a path leads to instead of a regular file; None for a regular file, and for nothing."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return None
    return next((name for test, name in _KINDS if test(mode)), None)


def require_file(path: Path, what: str, fix: str) -> None:
    """Refuses what is no readable file: opening a named pipe would wait for a writer forever.

    Args:
        path: the file to read.
        what: what the error calls it: `checkpoint`.
        fix: what the error tells the user to do.

    Raises:
        UserError: there is nothing, something else than a file, or something that cannot be read.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"there is no {what} {path}: {fix}") from error
    except OSError as error:
        raise UserError(f"{what} {path} cannot be read ({error.strerror}): {fix}") from error
    if special := _special(path):
        raise UserError(f"{path} is {special}, no {what}: {fix}")
    try:
        os.close(os.open(path, os.O_RDONLY))
    except OSError as error:
        raise UserError(f"{what} {path} cannot be read ({error.strerror}): {fix}") from error


def require_replaceable(target: Path, what: str) -> None:
    """Refuses to write to what is no regular file: a folder, a pipe, /dev/null.

    Raises:
        UserError: names `what` and the kind of the target.
    """
    # Renaming a file to /dev/stdout would replace the link for all programs of the machine.
    in_system = target.absolute().parts[1:2] in (("dev",), ("proc",))
    special = _special(target) or (
        "of the system" if in_system and "shm" not in target.parts else None
    )
    if special:
        raise UserError(f"{what} {target} is {special}, not a file: pass the name of a file")


def require_writable(target: Path, what: str, *, make_folder: bool = False) -> None:
    """Refuses a file that cannot be written, before the work of which it will hold the result.

    Args:
        target: the file; nothing is changed in it.
        what: what the error calls it, the option of the command line for instance.
        make_folder: make the target's folder if there is none.

    Raises:
        UserError: the target is no file, its folder is missing or not writable, or the disk is full.
    """
    require_replaceable(target, what)
    if not make_folder and not target.parent.is_dir():
        raise UserError(f"{what} {target}: there is no folder {target.parent}")
    with written_whole(target, what, keep=False) as file:
        file.write_bytes(bytes(_ROOM))
