"""The index of headers: what it remembers, what it must not, and what it does not believe."""

import errno
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_storage import save

from fastsimsiam.errors import BadImageError, UserError
from fastsimsiam.storage import header_index
from fastsimsiam.storage.class_folder import ClassFolder, open_split


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


def widths(found: ClassFolder) -> list[int]:
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
    file = header_index._index_file(data)
    assert file is not None
    return file


def forged(paths: list[str], rows: list[tuple[int, ...]], count: int | None = None) -> bytes:
    """An index with a right checksum."""
    content = np.array(rows, "<i8").tobytes()
    names = "".join(f"{path}\0" for path in paths).encode()
    checksum = zlib.crc32(content + names)
    head = header_index._HEAD.pack(
        header_index._MAGIC, checksum, len(rows) if count is None else count, len(names)
    )
    return head + content + names


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
        good.replace(b"index 2", b"index 1"),
        *(good[:n] + bytes([good[n] ^ 1]) + good[n + 1 :] for n in range(0, len(good), 7)),
        *(
            forged(["k/a.png"], [(size, mtime, *row)])
            for row in (
                (0, 8, 1),
                (-4, 8, 1),
                (4, 2**40, 1),
                (4, 8, 0),
                (4, 8, 9),
                (4, 8, -(2**62)),
            )
        ),
        forged(["k/a.png"], [(size, mtime, 99, 99, 1)] * 2),
        forged(["k/a.png", "k/a.png"], [(size, mtime, 99, 99, 1)] * 2),
        forged(["k/a.png"], [(size, mtime, 99, 99, 1)], count=2**61),
        forged(["k/a.png"], [(size, mtime, 99, 99, 1)], count=-1),
        struct.pack("<20sIqq", header_index._MAGIC, 0, 2**40, 2**40),
    ]
    for content in poison:
        index.write_bytes(content)
        assert widths(open_split(data, "train")) == [8, 9, 10], content[:80]
        assert index.read_bytes() == good, content[:80]


def test_a_huge_index_takes_no_memory(data: Path) -> None:
    """The file claims 2^37 rows, and has them: a hole of terabytes."""
    index = index_of(data)
    index.parent.mkdir(parents=True, exist_ok=True)
    with open(index, "wb") as file:
        file.write(header_index._HEAD.pack(header_index._MAGIC, 0, 2**37, 8))
        file.truncate(header_index._HEAD.size + 2**37 * 40 + 8)
    assert widths(open_split(data, "train")) == [8, 9, 10]
    assert index.stat().st_size < 1000


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


def test_leftovers_go_at_the_next_start(data: Path) -> None:
    index = index_of(data)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    old = index.with_suffix(".npz")
    gone = [
        index.parent / "tmpa1b2c3",
        index.with_name(f"{index.name}.{dead.pid}.partial"),
        index.with_name(f"{old.name}.{dead.pid}.partial"),
        index.with_name(f"index-{20 * '0'}.npz.{dead.pid}.partial"),
        old,
    ]
    kept = [
        index.with_name(f"index-{20 * '0'}.npz.{os.getppid()}.partial"),
        index.with_name("notes.partial"),
    ]
    open_split(data, "train")
    for file in (*gone, *kept):
        file.touch()
    open_split(data, "train")
    assert [file for file in gone if file.exists()] == []
    assert [file for file in kept if not file.exists()] == []
    for file in kept:
        file.unlink()


def test_without_a_home_there_is_no_index(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user of a container whom no file knows."""
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    assert header_index._index_file(data) is None
    read = reading(monkeypatch, {})
    for _ in range(2):
        assert widths(open_split(data, "train")) == [8, 9, 10]
    assert len(read) == 6


def test_progress_ends_with_all_files(data: Path) -> None:
    said: list[tuple[int, int]] = []
    open_split(data, "train", report=lambda done, total: said.append((done, total)))
    assert said == [(3, 3)]
