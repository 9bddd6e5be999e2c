"""Files that are there whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastsimsiam.errors import UserError


@contextmanager
def written_whole(target: Path, key: str) -> Iterator[Path]:
    """Gives a path beside the target to write to, and renames it at the end.

    Args:
        target: the file; what is killed or fails leaves nothing under this name.
        key: what the command line calls it, for the error.

    Raises:
        UserError: it cannot be written.
    """
    partial = target.with_name(target.name + ".partial")
    try:
        yield partial
        partial.replace(target)
    except OSError as error:
        raise UserError(f"cannot write {key} {target} ({error.strerror or error})") from error
    finally:
        partial.unlink(missing_ok=True)
