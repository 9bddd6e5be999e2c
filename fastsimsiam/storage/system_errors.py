"""Reasons of the system for which a file cannot be read: what they mean for a data set.

They say nothing about a file's content, and may be gone in a minute: nothing remembers them.
"""

import errno
from pathlib import Path

from fastsimsiam.errors import UserError
from fastsimsiam.system.text import printable

# These hit whatever is read at that moment, and no image in particular: leaving out what they hit would
# train on another set of images than the user's.
_OF_NO_IMAGE = {
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "stop other programs, which have many files open",
    errno.ENOMEM: "stop other programs, which use the memory",
    errno.ESTALE: "the file system has changed on its server: mount it again",
    errno.ENOTCONN: "the file system is gone: mount it again",
    errno.ETIMEDOUT: "start again when the file system answers",
    errno.EHOSTDOWN: "start again when the file system answers",
    errno.EHOSTUNREACH: "start again when the file system answers",
}
_FIXES = _OF_NO_IMAGE | {
    errno.ENAMETOOLONG: "use shorter names, or fewer folders within each other",
    errno.ELOOP: "remove the links that lead to each other",
}
RESTORE = "restore access to it"
"""What the user can do about a file that the system does not read, and whose content may be intact."""
_LONGEST_NAME = 300


def why_not_read(path: Path | str, error: OSError) -> str:
    """The message about a file or folder without which nothing works: its name, the reason, a fix."""
    fix = _FIXES.get(error.errno or 0, RESTORE)
    return f"{_shortened(printable(path))} cannot be read ({error.strerror or error}): {fix}"


def reason_of(path: Path | str, error: OSError) -> str:
    """The reason for which the image at `path` cannot be read, `Permission denied` for instance.

    Raises:
        UserError: the reason does not concern this image: too many open files, a server is gone.
    """
    if error.errno in _OF_NO_IMAGE:
        raise UserError(why_not_read(path, error)) from error
    return error.strerror or str(error)


def _shortened(name: str) -> str:
    """A path of thousands of characters without its middle."""
    half = _LONGEST_NAME // 2
    return name if len(name) <= _LONGEST_NAME else f"{name[:half]} ... {name[-half:]}"
