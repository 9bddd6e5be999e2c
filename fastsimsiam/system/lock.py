"""A lock on a file that a process holds until it ends, however it ends."""

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_held: set[int] = set()
"""Descriptors of the locks that this process holds."""


class LockedError(Exception):
    """Another process, or another thread of this one, holds the lock."""


@contextmanager
def locked(file: Path, *, shared: bool = False) -> Iterator[tuple[int, str]]:
    """Holds the lock of a file, which is created, until the end of the block.

    The lock is released with the process, also by SIGKILL, even if processes that it has forked live
    on: they let go of it at once.

    Args:
        file: the file.
        shared: hold it beside others who share it, instead of alone.

    Yields:
        The descriptor of the file, and the system's reason if its file system has no locks, else "".

    Raises:
        LockedError: somebody else holds it; one who shares it, if it is to be held alone.
        OSError: the file cannot be opened for writing.
    """
    # Whoever removed the file would break the lock of others, so it is made once and stays.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(file, flags, 0o666)
    _held.add(descriptor)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a file", str(file))
        yield descriptor, _take(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    finally:
        if descriptor in _held:  # a forked process has closed it already
            _held.remove(descriptor)
            os.close(descriptor)


def _take(descriptor: int, kind: int) -> str:
    """Takes the lock; returns the reason why there is none on this file system, or nothing."""
    try:
        # Not a lock of POSIX, which the process loses when any code of it opens and closes the file.
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise LockedError from error
        if error.errno in _UNSUPPORTED:
            return error.strerror or str(error)
        raise
    return ""


def _let_go() -> None:
    """Closes the descriptors that a forked process has inherited with the locks behind them."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)
