"""The members of a tar: where the bytes of each file lie. Nothing is unpacked."""

import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from fastsimsiam.errors import UserError
from fastsimsiam.storage import passed_over as kinds
from fastsimsiam.storage.listing import is_hidden
from fastsimsiam.storage.record_file import RecordFile
from fastsimsiam.storage.section import section
from fastsimsiam.system.text import printable

_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ\0": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("Zstandard", "unzstd"),
}
_LONGEST_MAGIC = 6
BLOCK = 512
_REPORT_EVERY = 256


@dataclass(frozen=True)
class Member:
    """A file in a tar: its name, and its bytes in the file that holds the tar."""

    name: str
    position: int
    length: int


@dataclass(kw_only=True)
class TarContent:
    """What is in a tar.

    Attributes:
        members: the files, in their order.
        cut_off: names of members of which the end is missing.
        passed_over: kind -> number, of entries that are no files, hidden, or belong to a system.
    """

    members: list[Member] = field(default_factory=list)
    cut_off: set[str] = field(default_factory=set)
    passed_over: Counter[str] = field(default_factory=Counter)


def read_tar(
    file: RecordFile,
    start: int = 0,
    length: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> TarContent:
    """Lists the files in a tar.

    Args:
        file: the file that holds the tar.
        start: first byte of the tar.
        length: bytes of the tar; None: to the file's end.
        progress: called with the bytes that are done, now and then.

    Raises:
        UserError: it is no tar, compressed, or damaged.
        OSError: the system cannot read the file.
    """
    length = file.size - start if length is None else length
    handle = section(file, start, length)
    _refuse_compressed(file, handle.read(_LONGEST_MAGIC))
    handle.seek(0)
    found = TarContent()
    end = 0
    try:
        with tarfile.open(fileobj=handle, mode="r:") as tar:
            while (info := tar.next()) is not None:
                if info.size < 0:
                    raise _damaged(file, found, "a negative size")
                _add(found, info, start, length)
                end = tar.offset
                cast(Any, tar).members.clear()  # it would keep them all
                if progress and len(found.members) % _REPORT_EVERY == 0:
                    progress(end)
    except tarfile.ReadError as error:
        if not found.cut_off:
            raise _damaged(file, found, str(error)) from error
    except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
        raise _damaged(file, found, str(error)) from error
    # tarfile takes whatever is no header for the end.
    handle.seek(end)
    rest = handle.read(BLOCK)
    if len(rest) == BLOCK and rest.strip(b"\0"):
        raise _damaged(file, found, "no header where one should be")
    if not found.cut_off and len(rest) < BLOCK:
        found.passed_over[kinds.CUT_OFF_TARS] += 1
    return found


def _damaged(file: RecordFile, found: TarContent, reason: str) -> UserError:
    name, fix = printable(file.path), "fetch or make it again"
    if not found.members:
        return UserError(f"{name} is no tar ({reason}): {fix}")
    return UserError(
        f"{name} is damaged after {printable(found.members[-1].name)} ({reason}): {fix}"
    )


def _add(found: TarContent, info: tarfile.TarInfo, start: int, length: int) -> None:
    if info.isdir():
        return
    if any(is_hidden(part) for part in info.name.split("/") if part not in (".", "..")):
        found.passed_over[kinds.HIDDEN] += 1
    elif not info.isreg() or info.sparse is not None:
        found.passed_over[kinds.TAR_LINKS] += 1
    else:
        name = info.name.removeprefix("./")
        if info.offset_data + info.size > length:
            found.cut_off.add(name)
        found.members.append(Member(name, start + info.offset_data, info.size))


def _refuse_compressed(file: RecordFile, begin: bytes) -> None:
    for magic, (kind, command) in _COMPRESSED.items():
        if begin.startswith(magic):
            raise UserError(
                f"{printable(file.path)} is compressed by {kind}, so its images cannot be read in any "
                f"order: unpack it with {command} (images are compressed already: it hardly grows)"
            )
