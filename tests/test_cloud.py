"""Data sets in clouds, against a store on this machine: what comes, and what is asked again."""

import errno
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from as_stored import files_of, shards
from object_server import Answer, ObjectServer, Stored, object_server
from PIL import Image
from test_tars import assert_same_images

from fastsimsiam.config.location import spelled, url_of
from fastsimsiam.config.run import Config
from fastsimsiam.config.stored import from_dict, to_dict
from fastsimsiam.errors import UserError
from fastsimsiam.runs.checkpoint import load
from fastsimsiam.storage import packed_index
from fastsimsiam.storage.base import fingerprint
from fastsimsiam.storage.beton_writer import BetonWriter
from fastsimsiam.storage.cloud import cache, fetch, local_copy, room, store
from fastsimsiam.storage.open import has_split, missing_split, open_split, open_val
from fastsimsiam.storage.passed_over import notes
from fastsimsiam.system.text import printable
from fastsimsiam.train.pretrain import pretrain

pytest.importorskip("obstore")

URL = Path("s3://photos/p")
_PIECE, _CHUNK = 8192, 2048
"""Bytes; a shard of the tests has some ten pieces."""
_OPEN = (
    "import sys\n"
    "from pathlib import Path\n"
    "from fastsimsiam.storage.cloud import fetch\n"
    "from fastsimsiam.storage.open import open_split\n"
    f"fetch._PIECE = {_PIECE}\n"
    "print(len(open_split(Path(sys.argv[1]), 'train')))\n"
)


@pytest.fixture(scope="module")
def tars(class_folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shards(class_folders, tmp_path_factory.mktemp("tars") / "data")


@pytest.fixture
def server(tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    """The shards at s3://photos/p, and keys to read them; an empty cache."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.setenv("FASTSIMSIAM_CLOUD_CACHE", str(tmp_path / "cloud"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "user")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setattr(store, "_WAIT_SECONDS", 0.001)
    monkeypatch.setattr(store, "_CHUNK", _CHUNK)
    monkeypatch.setattr(fetch, "_PIECE", _PIECE)
    monkeypatch.setattr(fetch, "_TICK_SECONDS", 0.01)
    with object_server() as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.url)
        monkeypatch.setenv("GOOGLE_BASE_URL", running.url)
        running.add_folder(tars, "p")
        yield running
    end_of_process()


def end_of_process() -> None:
    """Lets go of what a process keeps until it ends."""
    cache._used.close()
    cache._in_use.clear()
    local_copy._opened.clear()


def message(data: Path, split: str = "train") -> str:
    """The one line with which a data set is refused."""
    with pytest.raises(UserError) as caught:
        open_split(data, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def files_below(folder: Path, pattern: str) -> list[Path]:
    return sorted(path for path in folder.rglob(pattern) if path.is_file())


def cached(tmp_path: Path, pattern: str = "files/**/*") -> list[Path]:
    """The whole files of the cache."""
    return files_below(tmp_path / "cloud", f"*/{pattern}")


def bytes_here(tmp_path: Path) -> int:
    """Bytes of objects and of parts of objects in the cache."""
    found = cached(tmp_path, "files/**/*") + cached(tmp_path, "parts/**/*")
    return sum(path.stat().st_size for path in found)


def size_of(server: ObjectServer, prefix: str = "p/") -> int:
    return sum(len(one.content) for key, one in server.objects.items() if key.startswith(prefix))


def test_urls_keep_their_slashes() -> None:
    for url in ("s3://b/x", "gs://b", "https://h:1/a/{0..3}.tar", "http://h/x.tar"):
        assert url_of(Path(url)) == url_of(url) == url
        assert spelled(f"in {Path(url)}: no") == f"in {url}: no"
        assert printable(Path(url)) == url
    for path in ("data", "/data/s3:/x", "a/https:/b", "C:/x", "s3:", "s3:x"):
        assert url_of(Path(path)) is None
        assert printable(Path(path)) == path


def test_configs_keep_urls(tiny_config: Config) -> None:
    config = replace(tiny_config, data=URL)
    stored = to_dict(config)
    assert stored["data"] == "s3://photos/p"
    assert from_dict(json.loads(json.dumps(stored))) == config


@pytest.mark.parametrize("form", ["folder", "google", "pattern", "glob", "web"])
def test_the_images_are_those_of_the_disk(server: ObjectServer, tars: Path, form: str) -> None:
    data = {
        "folder": URL,
        "google": Path("gs://photos/p"),
        "pattern": URL / "train/{0000..0002}.tar",
        "glob": URL / "train/00*.tar",
        "web": Path(f"{server.url}/p/train/{{0000..0002}}.tar"),
    }[form]
    said: list[tuple[int, int]] = []
    train = open_split(data, "train", report=lambda done, total: said.append((done, total)))
    expected = open_split(tars, "train")
    assert_same_images(train, expected)
    np.testing.assert_array_equal(train.label, expected.label)
    assert fingerprint(train) == fingerprint(expected)
    assert all(done <= total for done, total in said)
    assert server.sent == {
        key: len(one.content)
        for key, one in server.objects.items()
        if form in ("folder", "google") or "/train/" in key
    }
    assert has_split(data, "val") == (form in ("folder", "google"))
    other = None if has_split(data, "val") else URL / "val/{0000..0002}.tar"
    val = open_val(data, other, classes=train.classes)
    assert_same_images(val, open_split(tars, "val"))


def test_a_packed_file_comes_with_its_manifest(
    server: ObjectServer, class_folders: Path, tmp_path: Path
) -> None:
    jpegs = [path for path in files_of(class_folders / "train") if path.suffix == ".JPEG"][:9]
    with BetonWriter(tmp_path / "train.beton", 9, page_size=1 << 13) as writer:
        for number, file in enumerate(jpegs):
            with Image.open(file) as image:
                writer.add(file.read_bytes(), image.height, image.width, number % 3)
        writer.finish()
    (tmp_path / "train.beton.json").write_text('{"classes": ["ant", "bee", "cow"]}')
    expected = open_split(tmp_path / "train.beton", "train")
    for name in ("train.beton", "train.beton.json"):
        server.objects[f"b/a b/{name}"] = Stored.of((tmp_path / name).read_bytes())
    for data in (
        Path("s3://photos/b"),
        Path("s3://photos/b/a b/train.beton"),
        Path(f"{server.url}/b/a%20b/train.beton"),
    ):
        found = open_split(data / "a b" if data.name == "b" else data, "train")
        assert_same_images(found, expected)
        assert list(found.classes) == ["ant", "bee", "cow"]
    del server.objects["b/a b/train.beton.json"]
    assert list(open_split(data, "train").classes) == ["0", "1", "2"]


def test_only_what_has_changed_is_fetched_again(server: ObjectServer, tmp_path: Path) -> None:
    before = open_split(URL, "train")
    server.forget()
    open_split(URL, "train")
    has_split(URL, "val")
    open_split(URL, "val")
    assert server.count("GET") == 0
    assert server.count("LIST") == 2  # pages, of the training split's opening
    changed = server.objects["p/train/0001.tar"]
    server.objects["p/train/0001.tar"] = Stored.of(changed.content + bytes(512), changed.modified)
    del server.objects["p/train/0002.tar"]
    after = open_split(URL, "train")
    assert set(server.sent) == {"p/train/0001.tar"}
    assert len(after) == len(before) - 32
    assert len(cached(tmp_path)) == 5


def test_folders_that_are_gone_leave_nothing(server: ObjectServer, tmp_path: Path) -> None:
    """An empty folder among tars would make a data set of another form of them."""
    server.objects["p/training/0.json"] = Stored.of(b"{}")
    server.objects["p/training/0.tar"] = server.objects["p/train/0000.tar"]
    assert "both names of the split train" in message(URL)
    for name in ("0.json", "0.tar"):
        del server.objects[f"p/training/{name}"]
    assert len(open_split(URL, "train")) == 96
    assert len(cached(tmp_path)) == 6


def test_what_nobody_reads_is_not_fetched(server: ObjectServer) -> None:
    content = server.objects["p/train/0000.tar"]
    for key in (
        "p/test/0.tar",
        "p/.cache/0.tar",
        "p/read.me",
        "p/json/0.json",
        "p/x.JPEG",
        "p/more/a/0.tar",
    ):
        server.objects[key] = content
    server.objects["p/train/0000.json"] = Stored.of(b"{}")
    first = notes(open_split(URL, "train"))
    assert set(server.sent) == {k for k in server.objects if k.endswith(("tar", "00.json"))} - {
        "p/test/0.tar",
        "p/.cache/0.tar",
        "p/more/a/0.tar",
    }
    assert "s3://photos/p: fetched 7 of 7 files" in first[0]
    assert first[1] == "s3://photos/p: 6 other objects not fetched"


def test_an_address_above_the_data_set_is_told_before_anything_is_fetched(
    server: ObjectServer,
) -> None:
    told = "s3://photos has p/train/0000.tar: pass s3://photos/p"
    assert message(Path("s3://photos")) == told
    assert not server.sent


@pytest.mark.parametrize("times", [3, 40])
def test_dropped_connections(server: ObjectServer, tars: Path, times: int) -> None:
    """Some drops, and more of them than attempts, each after a part."""
    left = itertools.count(times, -1)
    server.fault = lambda method, key, start: (
        Answer(cut=3000) if method == "GET" and next(left) > 0 else None
    )
    assert_same_images(open_split(URL, "train"), open_split(tars, "train"))
    # obstore hands on whole chunks: of 3000 bytes one of 2048 arrives, whatever was sent.
    assert sum(server.sent.values()) <= size_of(server) + times * (3000 - 1)
    assert server.count("GET") > times


def test_a_connection_that_drops_at_one_place(server: ObjectServer, tmp_path: Path) -> None:
    key, place = "p/train/0001.tar", 5 * _PIECE + 3000

    def fault(method: str, asked: str, start: int) -> Answer | None:
        if method != "GET" or asked != key or start + _PIECE <= place:
            return None
        return Answer(cut=max(0, place - start))

    server.fault = fault
    told = message(URL)
    (part,) = cached(tmp_path, "parts/train/0001*")
    got = part.stat().st_size
    assert 5 * _PIECE <= got <= place
    assert part.read_bytes() == server.objects[key].content[:got]
    size = len(server.objects[key].content)
    assert told == (
        f"s3://photos/{key} is out of reach (the connection was dropped); {got / 1e3:.1f} kB of "
        f"{size / 1e3:.1f} kB are here and kept: start the command again to go on"
    )
    server.forget()
    server.fault = lambda method, asked, start: None
    open_split(URL, "train")
    assert server.sent[key] == size - got


def test_a_server_that_recovers(server: ObjectServer) -> None:
    left = itertools.count(5, -1)
    server.fault = lambda method, key, start: (
        Answer(status=503) if method == "GET" and next(left) > 0 else None
    )
    assert len(open_split(URL, "train")) == 96


@pytest.mark.parametrize(
    ("method", "status", "expected"),
    [
        (
            "LIST",
            403,
            r"s3://photos/p may not be read \(403 Forbidden\): set AWS_ACCESS_KEY_ID and",
        ),
        ("LIST", 301, r"s3://photos/p is in another region: set AWS_REGION"),
        ("LIST", 500, r"s3://photos/p is out of reach \(500 Internal Server Error\): start again"),
        (
            "GET",
            403,
            r"s3://photos/p/\S+.tar may not be read \(403 .*\); 0.0 kB of .*: set AWS_ACC",
        ),
        ("GET", 404, r"s3://photos/p/\S+.tar changes while it is fetched: start again"),
        (
            "GET",
            500,
            r"s3://photos/p/\S+.tar is out of reach \(500 Internal .*\); 0.0 kB of .*: sta",
        ),
        (
            "GET",
            400,
            r"s3://photos/p/\S+.tar cannot be read \(400 Bad .*\); 0.0 kB of .*: check the",
        ),
    ],
)
def test_refusals(server: ObjectServer, method: str, status: int, expected: str) -> None:
    server.fault = lambda asked, key, start: Answer(status=status) if asked == method else None
    with pytest.raises(UserError, match=f"^{expected}"):
        open_split(URL, "train")


def test_an_object_that_is_removed_meanwhile(server: ObjectServer) -> None:
    def fault(method: str, key: str, start: int) -> None:
        if method == "GET":
            server.objects.pop("p/val/0002.tar", None)

    server.fault = fault
    assert message(URL).startswith(
        "s3://photos/p/val/0002.tar was removed after it was listed: start"
    )


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("s3://nothing/p", "s3://nothing/p is in no bucket of that name: check the address"),
        ("s3://photos/q", "there is nothing at s3://photos/q: check the address"),
        (
            "s3://photos/images",
            "s3://photos/images has 0.jpg (and 1 more), but no .tar, .beton, .arrow or",
        ),
        ("s3://photos/p/x.tar", "s3://photos/p/x.tar does not exist: check the address"),
        ("s3://photos/p/x*.tar", "--data s3://photos/p/x*.tar: there is no such object"),
        ("s3://photos/p/{3..1}.tar", "s3://photos/p/{3..1}.tar does not exist: check the address"),
        ("WEB/p/train/{0002..0004}.tar", "WEB/p/train/0003.tar does not exist (and 1 more): check"),
        (
            "WEB/p",
            "a web server lists no files, so --data WEB/p names none: name the shards, as in",
        ),
        (
            "WEB/p/*.tar",
            "a web server lists no files, so --data WEB/p/*.tar cannot be looked up: use",
        ),
        (
            "WEB/p/0.tar?key=1",
            "--data WEB/p/0.tar?key=1: give an address without user name, ? and #",
        ),
        (
            "s3://photos/../p",
            "--data s3://photos/../p: give an address without empty names, . and ..",
        ),
    ],
)
def test_wrong_addresses(server: ObjectServer, data: str, expected: str) -> None:
    for name in ("0.jpg", "1.jpg"):
        server.objects[f"images/{name}"] = Stored.of(b"x")
    found = message(Path(data.replace("WEB", server.url)))
    assert found.startswith(expected.replace("WEB", server.url))


def test_stores_that_are_not_there(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(store, "_FIRST_ATTEMPTS", 1)
    told = message(Path("http://no-such-host.invalid/0.tar"))
    assert told.startswith("http://no-such-host.invalid/0.tar is out of reach (")
    with object_server() as other:
        closed = other.url
    told = message(Path(f"{closed}/0.tar"))
    assert (
        told == f"{closed}/0.tar is out of reach (no connection): check the address and the network"
    )
    server.with_ranges = False
    assert "cannot be read in parts" in message(URL)
    assert not cached(tmp_path)
    monkeypatch.setitem(sys.modules, "obstore", None)
    assert message(URL) == "s3://photos needs obstore: pip install 'fastsimsiam[cloud]'"


def test_names_that_no_file_can_have(server: ObjectServer) -> None:
    server.objects["p/a/../b.tar"] = Stored.of(b"x")
    assert message(URL) == (
        "s3://photos/p has an object with a name that no file can have (p/a/../b.tar): rename it"
    )


def test_credentials(server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.is_private = True
    assert len(open_split(URL, "train")) == 96
    assert server.unsigned == 0
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", server.url)  # of a machine without credentials
    assert message(URL).startswith(
        "s3://photos/p cannot be read without credentials: set AWS_ACCESS_KEY_ID and"
    )
    server.is_private = False
    server.forget()
    assert len(open_split(URL, "train")) == 96
    assert server.unsigned
    assert {method for method, _ in server.asked} == {"LIST"}  # no credentials were looked for


def changed(one: Stored, modified: float) -> Stored:
    """A tar of the same size, whose first and last images are others."""
    content = bytearray(one.content)
    with tarfile.open(fileobj=io.BytesIO(one.content)) as tar:
        images = [member for member in tar if not member.name.endswith(".cls")]
    for member in (images[0], images[-1]):
        content[member.offset_data + member.size // 2] ^= 1
    return Stored.of(bytes(content), modified)


@pytest.mark.parametrize("is_web", [True, False])
def test_an_object_that_changes_between_two_starts(
    server: ObjectServer, tmp_path: Path, is_web: bool
) -> None:
    """On a web server no checksum tells the parts of two versions from one of them."""
    key = "p/train/0001.tar"
    data = Path(f"{server.url}/{key}") if is_web else URL
    server.fault = lambda method, asked, start: (
        Answer(cut=0) if (method, asked) == ("GET", key) and start >= 4 * _PIECE else None
    )
    message(data)
    assert cached(tmp_path, "parts/**/0001*")
    server.fault = lambda method, asked, start: None
    new = server.objects[key] = changed(server.objects[key], server.objects[key].modified)
    open_split(data, "train")
    file = cached(tmp_path, "files/**/0001.tar")[0]  # of train/
    assert file.read_bytes() == new.content
    assert not cached(tmp_path, "parts/**/*")


@pytest.mark.parametrize("etags", [True, False])
def test_an_object_that_changes_meanwhile(
    server: ObjectServer, tmp_path: Path, etags: bool
) -> None:
    key = "p/train/0001.tar"
    new = changed(server.objects[key], 1.8e9)
    if not etags:
        new.etag = server.objects[key].etag = ""

    def fault(method: str, asked: str, start: int) -> None:
        if (method, asked) == ("GET", key) and start >= 4 * _PIECE:
            server.objects[key] = new

    server.fault = fault
    open_split(Path(f"{server.url}/{key}"), "train")
    (file,) = cached(tmp_path)
    assert file.read_bytes() == new.content
    assert int(file.stat().st_mtime) == 1.8e9


def test_a_killed_process_has_lost_what_was_under_way_alone(
    server: ObjectServer, tmp_path: Path
) -> None:
    server.fault = lambda method, key, start: Answer(wait=0.02) if method == "GET" else None
    process = subprocess.Popen([sys.executable, "-c", _OPEN, str(URL)], stdout=subprocess.PIPE)
    while sum(server.sent.values()) < size_of(server) // 2:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    server.settle()
    here = bytes_here(tmp_path)
    assert here > size_of(server) // 4
    server.forget()
    server.fault = lambda method, key, start: None
    assert len(open_split(URL, "train")) == 96
    assert size_of(server) - here <= sum(server.sent.values()) < size_of(server)


def test_two_processes_fetch_each_object_once(server: ObjectServer) -> None:
    server.fault = lambda method, key, start: Answer(wait=0.02) if method == "GET" else None
    both = [
        subprocess.Popen([sys.executable, "-c", _OPEN, str(URL)], stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    assert [process.communicate()[0] for process in both] == [b"96\n"] * 2
    assert server.count("LIST") == 4
    assert server.sent == {key: len(one.content) for key, one in server.objects.items()}


def test_the_limit(
    server: ObjectServer, tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for prefix in "qrs":
        server.add_folder(tars, prefix)
    one = size_of(server)
    p, q, r, s = (Path("s3://photos") / prefix for prefix in "pqrs")
    for data in (p, q, p):
        open_split(data, "train")
        time.sleep(0.01)
    monkeypatch.setenv("FASTSIMSIAM_CLOUD_CACHE_GB", f"{2.5 * one / 1e9}")
    told = message(r)
    assert told == (
        f"s3://photos/r has {one / 1e3:.1f} kB, more than FASTSIMSIAM_CLOUD_CACHE_GB allows "
        f"({2.5 * one / 1e6:.1f} MB, and runs use {2 * one / 1e6:.1f} MB of it for other data sets): "
        "raise it, or name fewer files"
    )
    end_of_process()
    server.forget()
    open_split(r, "train")
    kept = {file.parents[2].name[:11]: 0 for file in cached(tmp_path, "files/*/*.tar")}
    for file in cached(tmp_path, "files/*/*.tar"):
        kept[file.parents[2].name[:11]] += file.stat().st_size
    assert kept["s3_photos_p"] == kept["s3_photos_r"] == one
    assert 0 < kept["s3_photos_q"] <= one // 2  # the one that was used longest ago
    end_of_process()
    server.forget()
    open_split(q, "train")
    assert 0 < sum(server.sent.values()) < one
    monkeypatch.setenv("FASTSIMSIAM_CLOUD_CACHE_GB", f"{0.5 * one / 1e9}")
    end_of_process()
    assert message(s).endswith("kB): raise it, or name fewer files")
    assert len(open_split(q, "train")) == 96  # nothing has to be fetched
    monkeypatch.setenv("FASTSIMSIAM_CLOUD_CACHE_GB", "much")
    assert message(s) == "FASTSIMSIAM_CLOUD_CACHE_GB is much: give a number of gigabytes"


def test_the_disk(server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: usage._replace(free=10**5))
    size = f"{size_of(server) / 1e3:.1f} kB"
    place = tmp_path / "cloud"
    assert message(URL).startswith(
        f"s3://photos/p needs {size}, and {place} has 100.0 kB free: free "
    )
    assert server.count("GET") == 0
    monkeypatch.undo()


def test_a_full_disk(server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patched:
        sync = os.fsync

        def sync_part(descriptor: int) -> None:
            if os.readlink(f"/proc/self/fd/{descriptor}").endswith(".part"):
                raise full
            sync(descriptor)

        patched.setattr(fetch.os, "fsync", sync_part)
        told = message(URL)
    assert told.startswith(f"cannot write {tmp_path / 'cloud'}")
    assert told.endswith("(No space left on device): free some space; what was fetched is kept")
    here = bytes_here(tmp_path)
    assert here
    server.settle()
    server.forget()
    open_split(URL, "train")
    # What a thread had not written yet when the disk was full is fetched again.
    assert size_of(server) - here <= sum(server.sent.values()) < size_of(server)


def test_a_cache_that_cannot_be_written(
    server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FASTSIMSIAM_CLOUD_CACHE", str(tmp_path / "file" / "cloud"))
    assert message(URL).startswith(f"cannot write {tmp_path / 'file' / 'cloud'}")


def test_damaged_files_are_fetched_again(server: ObjectServer, tmp_path: Path, tars: Path) -> None:
    open_split(URL, "train")
    server.forget()
    short, changed, touched, gone = cached(tmp_path, "files/train/*.tar") + cached(
        tmp_path, "files/val/0000.tar"
    )
    os.truncate(short, 1000)
    content = bytearray(changed.read_bytes())
    content[3000] ^= 1
    changed.write_bytes(content)
    os.utime(touched)
    gone.unlink()
    assert_same_images(open_split(URL, "train"), open_split(tars, "train"))
    assert set(server.sent) == {"p/train/0000.tar", "p/train/0001.tar", "p/val/0000.tar"}
    for facts in cached(tmp_path, "facts/train/*"):
        facts.write_text("{}")
    cached(tmp_path, "dataset.json")[0].write_text('{"objects": 3}')
    server.forget()
    assert len(open_split(URL, "train")) == 96
    assert len(server.sent) == 3


def test_checksums(server: ObjectServer, tmp_path: Path) -> None:
    key = "p/train/0001.tar"
    wrong = bytearray(server.objects[key].content)
    wrong[3 * _PIECE + 7] ^= 1
    left = itertools.count(1, -1)
    server.fault = lambda method, asked, start: (
        Answer(body=bytes(wrong))
        if (method, asked, start) == ("GET", key, 3 * _PIECE) and next(left) > 0
        else None
    )
    open_split(URL, "train")
    assert cached(tmp_path, "files/train/0001.tar")[0].read_bytes() == server.objects[key].content
    shutil.rmtree(tmp_path / "cloud")
    end_of_process()
    server.fault = lambda method, asked, start: Answer(body=bytes(wrong)) if asked == key else None
    assert message(URL).startswith(
        f"s3://photos/{key} has arrived 3 times without the checksum that the store tells (its ETag)"
    )
    assert not cached(tmp_path, "files/train/0001.tar")


def test_etags_that_are_no_checksums(server: ObjectServer) -> None:
    for number, one in enumerate(server.objects.values()):
        one.etag = f"{number:032x}"
    train = open_split(URL, "train")
    assert "s3://photos/p: its ETags are no MD5s, so files were compared by size alone" in notes(
        train
    )
    assert sum(server.sent.values()) < 2 * size_of(server)
    server.forget()
    server.objects["p/train/0001.tar"].etag = "f" * 32
    assert not any("MD5" in line for line in notes(open_split(URL, "train")))
    assert server.sent == {"p/train/0001.tar": len(server.objects["p/train/0001.tar"].content)}


def test_without_the_store_the_cache_is_used(server: ObjectServer, tmp_path: Path) -> None:
    first = open_split(URL, "train")
    assert notes(first)[0].startswith("s3://photos/p: fetched 6 of 6 files, ")
    assert notes(first) == []
    server.fault = lambda method, key, start: Answer(status=503)
    again = open_split(URL, "train")
    (folder,) = (tmp_path / "cloud").glob("*/files")
    assert notes(again) == [
        f"s3://photos/p is out of reach (503 Service Unavailable): used as it is in {folder}"
    ]
    assert again.paths == first.paths
    cached(tmp_path, "files/val/0000.tar")[0].unlink()
    assert message(URL) == (
        "s3://photos/p is out of reach (503 Service Unavailable), and the cache has 5 of its 6 files: "
        "start again later"
    )
    server.fault = lambda method, key, start: Answer(status=403)
    assert message(URL).startswith("s3://photos/p may not be read")


def test_the_index_stays_valid(
    server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_split(URL, "train")
    shutil.rmtree(tmp_path / "cloud")
    end_of_process()
    with monkeypatch.context() as patched:
        patched.setattr(packed_index, "header_of", lambda file: pytest.fail("read again"))
        open_split(URL, "train")
    # Another object of the same size and second is read, though.
    old = server.objects["p/train/0000.tar"]
    content = old.content.replace(b"000000.png", b"00000a.png")
    server.objects["p/train/0000.tar"] = Stored.of(content, old.modified)
    with pytest.raises(UserError):
        open_split(URL, "train")


def test_errors_of_storages_name_the_url(server: ObjectServer, tmp_path: Path) -> None:
    server.objects["p/train/0001.tar"] = Stored.of(b"x" * 5000)
    (folder,) = [tmp_path / "cloud" / cache.Copy.of("s3://photos/p", server.url).folder.name]
    told = message(URL)
    assert told.startswith("s3://photos/p/train/0001.tar is no tar (")
    assert told.endswith(f" (its copy is in {folder / 'files'})")
    assert missing_split(URL, "val") == "s3://photos/p has no split val"


def test_a_signal_ends_the_wait(server: ObjectServer, tmp_path: Path) -> None:
    server.fault = lambda method, key, start: (
        Answer(wait=20 if start >= 3 * _PIECE else 0) if method == "GET" else None
    )
    started = time.monotonic()

    def report(done: int, total: int) -> None:
        del done, total
        if bytes_here(tmp_path) >= 4 * 3 * _PIECE:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        open_split(URL, "train", report=report)
    assert time.monotonic() < started + 5
    server.fault = lambda method, key, start: None
    here = bytes_here(tmp_path)
    server.forget()
    open_split(URL, "train")
    assert size_of(server) - here <= sum(server.sent.values()) < size_of(server)


def test_a_run_on_a_url(
    server: ObjectServer, tiny_config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(tiny_config, data=URL, max_steps=4)
    assert pretrain(config).steps == 4
    log = (config.out / "log.txt").read_text()
    assert log.count("s3://photos/p: fetched 6 of 6 files") == 1
    server.forget()
    summary = pretrain(replace(config, max_steps=6), resume=True)
    assert summary.steps == 6
    assert server.count("GET") == 0
    assert "resumed at step 4" in capsys.readouterr().out
    assert summary.checkpoint
    assert load(summary.checkpoint).config.data == URL
