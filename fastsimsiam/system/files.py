"""Files that are there whole or not at all, and files of strangers that are read with care."""

import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fastsimsiam.errors import UserError

_TOKEN = re.compile(r"[0-9a-f]{8}")
# Leaves room for the token in the 255 bytes that a name may have.
_LONGEST_NAME = 230
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISLNK, "a link"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_ADVICE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space of your quota",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f)",
    errno.EACCES: "get permission to write there, or choose another place",
    errno.EPERM: "get permission to write there, or choose another place",
    errno.EROFS: "choose a place that can be written",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}


def advice(error: OSError) -> str:
    """What the user can do about a file or folder that cannot be written, by the system's reason."""
    return _ADVICE.get(error.errno or 0, "choose another place")


def kind_of(mode: int) -> str:
    """What a file's mode (`st_mode`) says it is, for messages; `a file` for a regular file."""
    return next((kind for is_kind, kind in _KINDS if is_kind(mode)), "a file")


@contextmanager
def written_whole(target: Path, what: str, *, then: str = "", keep: bool = True) -> Iterator[Path]:
    """Gives a path beside the target to write to, syncs it to the disk and renames it at the end.

    Neither a killed process nor a power failure leaves half a file under the target's name. Several
    processes may write one target at the same time: each writes a file of its own, and the last one to
    finish wins. What killed processes have left beside the target is removed. A target that is a link
    stays one: the file that it leads to is written.

    Args:
        target: the file; its folder is created.
        what: what the error calls it, the option of the command line for instance.
        then: what the error tells the user to do after the reason is gone.
        keep: False: a trial, which leaves the target as it is.

    Yields:
        The path to write to; an empty file is there.

    Raises:
        UserError: the file cannot be written, the disk is full for instance.
    """
    try:
        require_replaceable(target, what)
        real = Path(os.path.realpath(target))
        real.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(real.parent, re.escape(real.name))
        partial, claim = _claim(real)
        try:
            yield partial
            _sync(partial)
            if not keep:
                return
            partial.replace(real)
            with suppress(OSError):  # not every file system can sync a folder
                _sync(real.parent)
        finally:
            with suppress(OSError):  # mostly it is renamed already
                partial.unlink()
            os.close(claim)
    except OSError as error:
        further = f", {then}" if then else ""
        raise UserError(
            f"cannot write {what} {target} ({error.strerror or error}): {advice(error)}{further}"
        ) from error


def _claim(target: Path) -> tuple[Path, int]:
    """Creates a file beside the target and locks it; its descriptor holds the lock."""
    name = target.name if len(os.fsencode(target.name)) <= _LONGEST_NAME else ""
    while True:
        partial = target.with_name(f"{name}.{secrets.token_hex(4)}.partial")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(partial, flags, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if partial.exists():
                return partial, descriptor
        except BlockingIOError:
            pass  # another process takes it for a leftover, in the moment before it was locked
        except OSError:  # a file system without locks: nobody removes leftovers there
            return partial, descriptor
        os.close(descriptor)


def remove_leftovers(folder: Path, name: str, *, also_old: bool = False) -> None:
    """Removes what killed processes have left of files that `written_whole` was to write.

    Args:
        folder: where the files are.
        name: regular expression of the files' names.
        also_old: also remove names without a token, which earlier versions gave; nobody may be writing
            such a file.
    """
    pattern = re.compile(rf"(?:{name})\.({_TOKEN.pattern}\.)?partial")
    with suppress(OSError), os.scandir(folder) as entries:
        found = [(Path(entry.path), pattern.fullmatch(entry.name)) for entry in entries]
        for path, match in found:
            if match and (match[1] or also_old):
                _remove_unlocked(path)


def _remove_unlocked(path: Path) -> None:
    """Removes a file whose writer, which held a lock on it, is dead."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
        finally:
            os.close(descriptor)


def read_text(path: Path) -> str | None:
    """The text of a regular file, undecodable bytes replaced; None if there is no such file.

    Neither waits for a named pipe nor follows a link, which may lead out of the folder.

    Raises:
        UserError: it is no regular file, or cannot be read.
    """
    try:
        if not stat.S_ISREG(mode := path.lstat().st_mode):
            raise UserError(f"{path} is {kind_of(mode)}, not a file: remove it")
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with open(os.open(path, flags), "rb") as file:
            return file.read().decode(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): make it readable") from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_ROOM = 64 << 10
"""Bytes that `require_writable` tries to write: more than most results have."""


def _special(path: Path) -> str | None:
    """What a path leads to instead of a regular file; None for a regular file, and for nothing."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return None
    return None if stat.S_ISREG(mode) else kind_of(mode)


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
