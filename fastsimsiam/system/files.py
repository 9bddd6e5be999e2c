"""Files that are there whole or not at all."""

import os
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
) -> Iterator[Path]:
    """Gives a path beside the target to write to, syncs it to the disk and renames it at the end.

    Neither a killed process nor a power failure leaves half a file under the target's name.

    Args:
        target: the file; its folder is created.
        what: what the error calls it, the option of the command line for instance.
        fix: what the error tells the user to do.
        shared: several processes may write the target at the same time.

    Yields:
        The path to write to.

    Raises:
        UserError: the file cannot be written, the disk is full for instance.
    """
    mark = f".{os.getpid()}.partial" if shared else ".partial"
    partial = target.with_name(target.name + mark)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        _sync(partial)
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
