"""The index of headers: what it remembers, what it must not, and what it does not believe."""

import errno
import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_storage import save

from fastsimsiam.errors import BadImageError, UserError
from fastsimsiam.storage import header_index
from fastsimsiam.storage.cached_arrays import cache_file, save_arrays
from fastsimsiam.storage.class_folder import open_split
from fastsimsiam.storage.image_files import ImageFiles
from fastsimsiam.storage.names import Names

HEAD = struct.Struct("<20sIQ")
"""Magic with the version, checksum and length of the description."""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three images, of which the names sort as their sizes."""
    for size, name in enumerate("abc", start=8):
        save(tmp_path / "data" / "k" / f"{name}.png", (size, 4))
    return tmp_path / "data"


def reading(monkeypatch: pytest.MonkeyPatch, errors: dict[str, Exception]) -> list[str]:
    """Makes the header of some files fail; the result receives the names of all that are read."""
    read: list[str] = []
    original = header_index.read_header

    def counting(path: Path) -> tuple[int, int, int]:
        read.append(path.name)
        if path.name in errors:
            raise errors[path.name]
        return original(path)

    monkeypatch.setattr(header_index, "read_header", counting)
    return read


def failing(number: int) -> OSError:
    """The system's error of this number."""
    return OSError(number, os.strerror(number))


def widths(found: ImageFiles) -> list[int]:
    return found.sizes[:, 1].tolist()


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EACCES, "Permission denied"),
        (errno.EIO, "Input/output error"),
        (errno.ENOENT, "No such file or directory"),
    ],
)
def test_a_passing_error_is_not_remembered(
    data: Path, monkeypatch: pytest.MonkeyPatch, number: int, reason: str
) -> None:
    errors: dict[str, Exception] = {"b.png": failing(number)}
    read = reading(monkeypatch, errors)
    found = open_split(data, "train")
    assert widths(found) == [8, 0, 10]
    assert found.unreadable == {1: f"cannot be read ({reason})"}
    with pytest.raises(UserError) as caught:
        found.require_readable()
    assert str(caught.value) == (
        f"{data}/k/b.png cannot be read ({reason}): restore access to it, or pass --on-bad-image skip"
    )
    errors.clear()
    read.clear()
    found = open_split(data, "train")
    assert (read, widths(found), found.unreadable) == (["b.png"], [8, 9, 10], {})


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ENOTCONN])
def test_errors_of_no_image_in_particular_end_the_run(
    data: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """`--on-bad-image skip` would train on whatever could be read at that moment."""
    errors: dict[str, Exception] = {"b.png": failing(number)}
    read = reading(monkeypatch, errors)
    with pytest.raises(UserError, match=rf"k/b.png cannot be read \({os.strerror(number)}\): \w+"):
        open_split(data, "train")
    errors.clear()
    read.clear()
    assert widths(open_split(data, "train")) == [8, 9, 10]
    assert "a.png" not in read  # read before the error, and kept


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.EMFILE, UserError), (errno.EACCES, BadImageError)]
)
def test_the_same_when_an_image_is_read(
    data: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[UserError]
) -> None:
    found = open_split(data, "train")

    def refuse(path: Path, flags: int) -> int:
        raise failing(number)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        with pytest.raises(UserError, match=os.strerror(number)) as caught:
            found.read(0)
    assert caught.type is kind
    if isinstance(caught.value, BadImageError):
        assert caught.value.fix == "restore access to it"


def test_the_reason_of_broken_content_is_kept_for_the_run(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = reading(monkeypatch, {"c.png": BadImageError("a picture of 10 gigapixels")})
    for _ in range(2):  # not from the index: another version of the decoder may read it
        found = open_split(data, "train")
        assert found.unreadable == {2: "a picture of 10 gigapixels"}
    assert read[3:] == ["c.png"]
    with pytest.raises(
        UserError, match=r"c.png is a picture of 10 gigapixels: restore it, remove the file, or"
    ):
        found.require_readable()


def test_eight_readers_hold_few_files(data: Path) -> None:
    for number in range(200):
        save(data / "k" / f"{number}.png")
    code = (
        "import os, resource, sys; from pathlib import Path\n"
        "from fastsimsiam.storage.class_folder import open_split\n"
        "limit = os.open('/dev/null', os.O_RDONLY) + 25\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))\n"
        "print(len(open_split(Path(sys.argv[1]), 'train').unreadable))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(data)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "0\n"


def index_of(data: Path) -> Path:
    file = cache_file(data, "")
    assert file is not None
    return file


def forged(paths: list[str], rows: list[tuple[int, ...]], **changes: Any) -> bytes:
    """An index with right checksums."""
    names = Names.of(paths)
    columns = np.array(rows, np.int64).T
    arrays = {
        "names": names.content,
        "ends": names.ends,
        "bytes": columns[0],
        "mtime": columns[1],
        "height": columns[2].astype("<i4"),
        "width": columns[3].astype("<i4"),
        "orientation": columns[4].astype("u1"),
    }
    file = Path(os.environ["XDG_CACHE_HOME"]) / "forged.bin"
    save_arrays(file, {}, {name: array for name, array in (arrays | changes).items() if len(array)})
    return file.read_bytes()


def with_head(index: bytes, **changes: Any) -> bytes:
    """An index with another description of its arrays, and the right checksum of it."""
    magic, _, length = HEAD.unpack(index[: HEAD.size])
    head = json.loads(index[HEAD.size : HEAD.size + length])
    for name, described in changes.items():
        head["arrays"][name] = described
    content = json.dumps(head).encode().ljust(length)
    return (
        HEAD.pack(magic, zlib.crc32(content), len(content)) + content + index[HEAD.size + length :]
    )


def test_a_forged_index_is_not_believed(data: Path) -> None:
    open_split(data, "train")
    index = index_of(data)
    good = index.read_bytes()
    paths = ["k/a.png", "k/b.png", "k/c.png"]
    stamps = [((data / path).stat().st_size, (data / path).stat().st_mtime_ns) for path in paths]
    size, mtime = stamps[0]
    poison = [
        good[:-1],
        good + b"\0",
        good[:40],
        b"",
        b"PK\x03\x04" + good,
        good.replace(b"index 3", b"index 2"),
        *(good[:n] + bytes([good[n] ^ 1]) + good[n + 1 :] for n in range(0, len(good), 7)),
        *(
            forged(["k/a.png"], [(size, mtime, *row)])
            for row in ((0, 8, 1), (-4, 8, 1), (4, 8, 0), (4, 8, 9))
        ),
        forged(["k/a.png"], [(size, mtime, 99, 99, 1)] * 2),
        forged(["k/a.png", "k/b.png"], [(size, mtime, 99, 99, 1)]),
        forged(["k/a.png"], [(size, mtime, 99, 99, 1)], height=np.zeros(0, "<i4")),
        forged(["k/a.png"], [(size, mtime, 99, 99, 1)], height=np.array([99, 99], "<i4")),
        forged(["k/a.png"], [(size, mtime, 99, 99, 1)], ends=np.array([5])),
        forged(["k/a.png"], [(size, mtime, 99, 99, 1)], ends=np.array([2**60])),
        forged(["k/a.png"], [(size, mtime, 99, 99, 1)] * 2, ends=np.array([7, 7])),
        with_head(good, bytes=["<i8", 2**61, 0, 0]),
        with_head(good, bytes=["<i8", -1, 0, 0]),
        with_head(good, bytes=["<i8", 0, -64, 0]),
        with_head(good, bytes=["O", 3, 0, 0]),
        with_head(good, bytes=["<i8", 0]),
        with_head(good, bytes=None),
        HEAD.pack(b"fastsimsiam index 3\n", zlib.crc32(b"[1]"), 3) + b"[1]",
        HEAD.pack(b"fastsimsiam index 3\n", 0, 2**40),
    ]
    for content in poison:
        index.write_bytes(content)
        assert widths(open_split(data, "train")) == [8, 9, 10], content[:80]
        assert index.read_bytes() == good, content[:80]


def test_a_huge_index_takes_no_memory_and_no_time(data: Path) -> None:
    """A hole of terabytes."""
    index = index_of(data)
    index.parent.mkdir(parents=True, exist_ok=True)
    with open(index, "wb") as file:
        file.write(HEAD.pack(b"fastsimsiam index 3\n", 0, 2**43))
        file.truncate(2**43)
    assert widths(open_split(data, "train")) == [8, 9, 10]
    assert index.stat().st_size < 2000


def test_what_is_left_of_an_index_is_used(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_split(data, "train")
    save(data / "k" / "aa.png", (20, 4))
    (data / "k" / "c.png").unlink()
    read = reading(monkeypatch, {})
    assert widths(open_split(data, "train")) == [8, 20, 9]
    assert read == ["aa.png"]


def link_to_a_pipe(path: Path) -> None:
    os.mkfifo(path.with_name("a-pipe"))
    path.symlink_to("a-pipe")


def link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, link_to_a_pipe, link_to_a_device])
def test_an_index_that_is_no_file(data: Path, make: Callable[[Path], None]) -> None:
    index = index_of(data)
    index.parent.mkdir(parents=True, exist_ok=True)
    make(index)
    assert widths(open_split(data, "train")) == [8, 9, 10]
    assert widths(open_split(data, "train")) == [8, 9, 10]


def test_without_a_home_there_is_no_index(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user of a container whom no file knows."""
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    assert cache_file(data, "") is None
    read = reading(monkeypatch, {})
    for _ in range(2):
        assert widths(open_split(data, "train")) == [8, 9, 10]
    assert len(read) == 6


def test_progress_ends_with_all_files(data: Path) -> None:
    said: list[tuple[int, int]] = []
    open_split(data, "train", report=lambda done, total: said.append((done, total)))
    assert said == [(3, 3)]
