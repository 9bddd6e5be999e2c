"""Tests of the scripts in datasets/, against a real HTTP server on 127.0.0.1 and tiny archives."""

import hashlib
import importlib
import io
import os
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

DATASETS = Path(__file__).resolve().parent.parent / "datasets"
sys.path.insert(0, str(DATASETS))
_archive = importlib.import_module("_archive")
_download = importlib.import_module("_download")
cifar10 = importlib.import_module("cifar10")
imagenet = importlib.import_module("imagenet")
imagenette = importlib.import_module("imagenette")
imagewoof = importlib.import_module("imagewoof")
DataError = _download.DataError

NAME = "tiny.tgz"
FILES = {
    "tiny/train/cat/0.JPEG": b"cat" * 20_000,
    "tiny/train/cat/1.jpg": os.urandom(100_000),  # random bytes, which do not compress
    "tiny/train/dog/0.png": b"dog",
    "tiny/val/cat/2.JPEG": b"miaow",
    "tiny/val/dog/1.JPEG": b"woof",
    "tiny/val/dog/._1.JPEG": b"a desktop's leftover",
    "tiny/labels.csv": b"1,2",
}
SPLITS = {"train": (2, 3), "val": (2, 2)}


def tar_bytes(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
    """Returns a tar archive of the files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


TINY = tar_bytes(FILES)


def md5(content: bytes) -> str:
    """Returns the MD5 as hex."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


class Server:
    """Serves one file; records requests and bytes sent; can stop half-way and hang or disconnect."""

    def __init__(self, content: bytes, ranges: bool = True) -> None:
        """Starts a thread that serves, with or without support for Range."""
        self.content, self.ranges = content, ranges
        self.stop_after: int | None = None
        self.resume = threading.Event()
        self.resume.set()
        self.ranges_requested: list[str | None] = []
        self.sent: list[int] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/{NAME}"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Answers a request."""
        if handler.path != f"/{NAME}":
            handler.send_error(404)
            return
        requested = handler.headers.get("Range")
        self.ranges_requested.append(requested)
        start = 0
        if requested and self.ranges:
            start = int(requested.removeprefix("bytes=").removesuffix("-"))
            if start >= len(self.content):
                handler.send_response(416)
                handler.end_headers()
                return
            handler.send_response(206)
            last = len(self.content) - 1
            handler.send_header("Content-Range", f"bytes {start}-{last}/{last + 1}")
        else:
            handler.send_response(200)
        body = self.content[start:]
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        body = body[: self.stop_after]
        self.sent.append(len(body))  # before the client has received everything
        handler.wfile.write(body)
        self.resume.wait(20)

    def close(self) -> None:
        """Ends the thread and closes the socket."""
        self.resume.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


Serve = Callable[..., Server]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps requests to 127.0.0.1 away from a proxy of the environment."""
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Returns a function that starts a server; all are closed after the test."""
    servers: list[Server] = []

    def start(content: bytes = TINY, ranges: bool = True) -> Server:
        servers.append(Server(content, ranges))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def source(url: str = f"http://127.0.0.1:9/{NAME}", content: bytes = TINY) -> Any:
    """Returns the description of the tiny data set."""
    return _archive.Source(url, md5(content), SPLITS)


def tree(folder: Path) -> dict[str, bytes]:
    """Returns path -> content of all files below the folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


INSTALLED = {
    name.removeprefix("tiny/"): content for name, content in FILES.items() if "._" not in name
} | {"SOURCE": f"{NAME}\n".encode()}


def script(name: str, *args: object) -> subprocess.CompletedProcess[str]:
    """Runs a script as a user would."""
    command = [sys.executable, "-W", "error", str(DATASETS / f"{name}.py"), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def one_error(done: subprocess.CompletedProcess[str]) -> str:
    """Returns the error line of a failed script; the other lines are progress."""
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if "MB/s" not in line]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    return errors[0]


# --- download --------------------------------------------------------------------------------


def test_fresh_download_is_installed(tmp_path: Path, serve: Serve) -> None:
    """A first run leaves the class folders and the archive, nothing else."""
    server = serve()
    _archive.install(source(server.url), tmp_path / "set")
    assert tree(tmp_path / "set") == INSTALLED
    assert {path.name for path in tmp_path.iterdir()} == {"set", NAME}
    assert (server.ranges_requested, server.sent) == ([None], [len(TINY)])


def test_half_a_download_is_resumed(tmp_path: Path, serve: Serve) -> None:
    """Only the remainder is sent."""
    server, half = serve(), len(TINY) // 2
    (tmp_path / f"{NAME}.part").write_bytes(TINY[:half])
    _download.download(server.url, tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == TINY
    assert (server.ranges_requested, server.sent) == ([f"bytes={half}-"], [len(TINY) - half])
    assert not (tmp_path / f"{NAME}.part").exists()


def test_server_without_ranges_restarts_the_download(tmp_path: Path, serve: Serve) -> None:
    """A complete response replaces the half that exists."""
    server = serve(ranges=False)
    (tmp_path / f"{NAME}.part").write_bytes(TINY[: len(TINY) // 2])
    _download.download(server.url, tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == TINY
    assert server.sent == [len(TINY)]


def test_part_that_is_too_long_is_replaced(tmp_path: Path, serve: Serve) -> None:
    """The server answers 416 to a part of another file."""
    server = serve()
    (tmp_path / f"{NAME}.part").write_bytes(TINY + b"more")
    _download.download(server.url, tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == TINY
    assert server.ranges_requested == [f"bytes={len(TINY) + 4}-", None]


def test_lost_connection_is_reported_and_resumed(tmp_path: Path, serve: Serve) -> None:
    """A connection that closes early is no complete download."""
    server = serve()
    server.stop_after = 50_000
    with pytest.raises(DataError, match=r"lost the connection .* after 50000 bytes"):
        _download.download(server.url, tmp_path / NAME)
    assert not (tmp_path / NAME).exists()
    server.stop_after = None
    _download.download(server.url, tmp_path / NAME)
    assert (tmp_path / NAME).read_bytes() == TINY
    assert server.sent == [50_000, len(TINY) - 50_000]


def test_no_network_names_url_and_file(tmp_path: Path) -> None:
    """With the file in the named place, the next run continues."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/imagenette2-160.tgz"
    args = ("--size", "160", "--url", url, "--dest", tmp_path / "set")
    line = one_error(script("imagenette", *args))
    file = tmp_path / "imagenette2-160.tgz"
    assert f"cannot download {url} (" in line
    assert f"save it as {file} or pass it with --archive FILE" in line
    file.write_bytes(TINY)
    assert f"{file} is damaged or another version (MD5 {md5(TINY)}" in one_error(
        script("imagenette", *args)
    )


def test_http_error_and_bad_url_are_one_line(tmp_path: Path, serve: Serve) -> None:
    """Neither a missing file nor a mistyped mirror gives a traceback."""
    with pytest.raises(DataError, match=r"cannot download .*/gone.tgz \(HTTP Error 404: Not Found"):
        _download.download(serve().url.replace(NAME, "gone.tgz"), tmp_path / NAME)
    for url in ("no-such-scheme://x/y.tgz", "y.tgz", "http://127.0.0.1:1/a b"):
        with pytest.raises(DataError, match="cannot download"):
            _download.download(url, tmp_path / NAME)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_is_one_line(tmp_path: Path, serve: Serve) -> None:
    """The message names the file, which the system's error does not."""
    (tmp_path / f"{NAME}.part").symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"tiny.tgz.part: the disk is full: free some space"):
        _download.download(serve().url, tmp_path / NAME)


def test_interrupt_is_quiet_and_restartable(tmp_path: Path, serve: Serve) -> None:
    """Ctrl-C while downloading: exit code 130, no traceback; the next run resumes."""
    server = serve()
    server.stop_after = 60_000
    server.resume.clear()
    part = tmp_path / "imagenette2.tgz.part"
    code = (  # a shell may have started the tests with SIGINT ignored, which is inherited
        "import runpy, signal, sys; sys.argv = sys.argv[1:];"
        "signal.signal(signal.SIGINT, signal.default_int_handler);"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", code, str(DATASETS / "imagenette.py")]
    command += ["--url", server.url, "--dest", str(tmp_path / "set")]
    env = {**os.environ, "PYTHONPATH": str(DATASETS)}
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 20
        while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=20)
    assert (process.returncode, stderr) == (130, "")
    have = part.stat().st_size
    assert 0 < have <= 60_000
    server.stop_after = None
    server.resume.set()
    _download.download(server.url, tmp_path / "imagenette2.tgz")
    assert server.ranges_requested == [None, f"bytes={have}-"]
    assert (tmp_path / "imagenette2.tgz").read_bytes() == TINY


def test_progress_in_a_log_has_no_carriage_returns(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal, progress is printed as plain lines."""
    with _download.Progress("x.tgz", 4_000_000, 1_000_000) as progress:
        progress.update(2_000_000)  # too soon after the start to be shown
        progress._every = 0.0
        progress.update(3_000_000)
        progress.update(4_000_000)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        "x.tgz: 3.0 MB of 4.0 MB (75%)",
        "x.tgz: 4.0 MB of 4.0 MB (100%)",
        "x.tgz: 4.0 MB of 4.0 MB (100%)",
    ]
    assert "ETA 0:00:00" in lines[0]
    assert "ETA" not in lines[1]


# --- install ---------------------------------------------------------------------------------


def test_corrupt_download_is_set_aside(tmp_path: Path, serve: Serve) -> None:
    """A wrong checksum is exit code 2; the next run downloads again."""
    server, dest = serve(), tmp_path / "set"
    done = script("imagewoof", "--url", server.url, "--dest", dest)
    line = one_error(done)
    assert f"imagewoof2.tgz.corrupt is damaged or another version (MD5 {md5(TINY)}" in line
    assert [path.name for path in tmp_path.iterdir()] == ["imagewoof2.tgz.corrupt"]
    assert one_error(script("imagewoof", "--url", server.url, "--dest", dest)) == line
    assert server.sent == [len(TINY)] * 2


def test_users_own_archive_is_never_renamed(tmp_path: Path) -> None:
    """Only a file that the script itself downloaded is moved."""
    mine = tmp_path / "mine.tgz"
    mine.write_bytes(b"not an archive")
    with pytest.raises(DataError, match=r"mine.tgz is damaged or another version"):
        _archive.install(source(), tmp_path / "set", archive=mine)
    with pytest.raises(DataError, match=r"mine.tgz is damaged or no tar archive"):
        _archive.install(source(), tmp_path / "set", archive=mine, verify=False)
    with pytest.raises(DataError, match=r"gone.tgz is not a file: check --archive"):
        _archive.install(source(), tmp_path / "set", archive=tmp_path / "gone.tgz")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.tgz"]


@pytest.mark.parametrize("place", [f"{NAME}", f"set/{NAME}"])
def test_existing_archive_is_used(tmp_path: Path, place: str) -> None:
    """An archive beside or in DEST needs no network; it is kept, beside DEST."""
    (tmp_path / "set").mkdir()
    (tmp_path / place).write_bytes(TINY)
    _archive.install(source(), tmp_path / "set")
    assert tree(tmp_path / "set") == INSTALLED
    assert (tmp_path / NAME).read_bytes() == TINY


def test_complete_set_is_left_alone(
    tmp_path: Path, serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second run prints that, and sends no request."""
    server = serve()
    _archive.install(source(server.url), tmp_path / "set")
    (tmp_path / NAME).unlink()
    before = (tmp_path / "set").stat().st_mtime_ns
    _archive.install(source(server.url), tmp_path / "set")
    assert capsys.readouterr().out.endswith("set is complete: nothing to do\n")
    assert (tmp_path / "set").stat().st_mtime_ns == before
    assert len(server.ranges_requested) == 1


def test_script_exits_0_when_done_and_when_complete(
    tmp_path: Path,
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A script's whole command line, on the tiny data set; then with an image missing."""
    dest = tmp_path / "set"
    monkeypatch.setitem(imagenette.SOURCES, "160", source(serve().url))
    monkeypatch.setattr(sys, "argv", ["imagenette.py", "--size", "160", "--dest", str(dest)])
    assert _archive.run(imagenette.main) == 0
    assert capsys.readouterr().out == f"{dest}: 3 train, 2 val images\n"
    assert _archive.run(imagenette.main) == 0
    assert capsys.readouterr() == (f"{dest} is complete: nothing to do\n", "")
    (dest / "val" / "cat" / "2.JPEG").unlink()
    assert _archive.run(imagenette.main) == 2
    error = f"error: {dest / 'val'} holds 1 images in 2 classes, not 2 in 2: move {dest} away"
    assert capsys.readouterr().err.startswith(error)


def test_other_data_in_dest_is_not_touched(tmp_path: Path) -> None:
    """Neither another size of the data set nor an unrelated folder is overwritten."""
    (tmp_path / NAME).write_bytes(TINY)
    _archive.install(source(), tmp_path / "set")
    with pytest.raises(DataError, match=r"already holds tiny.tgz, not big.tgz: pass another"):
        _archive.install(source("http://127.0.0.1:9/big.tgz"), tmp_path / "set")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match="holds 0 images in 0 classes, not 3 in 2: move"):
        _archive.install(source(), tmp_path / "mine")
    assert tree(tmp_path / "mine") == {"thesis.tex": b"x"}


def test_wrong_counts_leave_nothing(tmp_path: Path) -> None:
    """An archive without a checksum is still counted before it gets the final name."""
    (tmp_path / "a.tgz").write_bytes(TINY)
    done = script(
        "imagewoof", "--archive", tmp_path / "a.tgz", "--no-verify", "--dest", tmp_path / "set"
    )
    assert "train holds 3 images in 2 classes, not 9025 in 10" in one_error(done)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tgz"]


def test_truncated_archive_leaves_nothing(tmp_path: Path) -> None:
    """A truncated archive is reported, and leaves no half data set."""
    (tmp_path / NAME).write_bytes(TINY[: len(TINY) // 2])
    with pytest.raises(DataError, match=r"tiny.tgz is damaged or no tar archive"):
        _archive.install(source(), tmp_path / "set", verify=False)
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_killed_run_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    """After SIGKILL while unpacking, the next run cleans up and finishes."""
    (tmp_path / NAME).write_bytes(TINY)
    code = (
        "import sys, time, pathlib, _archive\n"
        "def unpack(archive, folder):\n"
        "    _archive.unpack_tar(archive, folder)\n"
        "    (folder / 'train' / 'stale').mkdir()\n"
        "    print('half', flush=True)\n"
        "    time.sleep(60)\n"
        f"source = _archive.Source('http://127.0.0.1:9/{NAME}', '', {SPLITS!r})\n"
        "dest = pathlib.Path(sys.argv[1])\n"
        "_archive.install(source, dest, verify=False, unpack=unpack)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "set")]
    env = {**os.environ, "PYTHONPATH": str(DATASETS)}
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        process.kill()
    assert (tmp_path / "set.partial" / "train" / "stale").is_dir()
    assert not (tmp_path / "set").exists()
    _archive.install(source(), tmp_path / "set")
    assert tree(tmp_path / "set") == INSTALLED
    assert not (tmp_path / "set.partial").exists()


@pytest.mark.parametrize(
    "name", ["tiny/../../evil.txt", "tiny/train/../../../evil.txt", "/../../evil"]
)
def test_path_traversal_is_refused(tmp_path: Path, name: str) -> None:
    """A member outside of the folder stops the run; nothing is written, inside or outside."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / NAME).write_bytes(tar_bytes({**FILES, name: b"evil"}))
    with pytest.raises(DataError, match=r"refused unsafe .*evil"):
        _archive.install(source(), tmp_path / "in" / "set", verify=False)
    assert tree(tmp_path).keys() == {f"in/{NAME}"}


def test_links_are_refused(tmp_path: Path) -> None:
    """No official archive has a symbolic link, not even one within the folder."""
    with tarfile.open(tmp_path / NAME, "w:gz") as tar:
        info = tarfile.TarInfo("tiny/train/link")
        info.type, info.linkname = tarfile.SYMTYPE, "cat"
        tar.addfile(info)
    with pytest.raises(DataError, match="refused 'tiny/train/link', a link"):
        _archive.install(source(), tmp_path / "set", verify=False)


def test_sources_are_distinct() -> None:
    """Each size has its own file name and MD5."""
    sources = [*imagenette.SOURCES.values(), *imagewoof.SOURCES.values(), cifar10.SOURCE]
    assert {item.name for item in sources} == {
        *(f"image{kind}2{size}.tgz" for kind in ("nette", "woof") for size in ("", "-320", "-160")),
        "cifar-10-python.tar.gz",
    }
    assert len({item.md5 for item in sources}) == 7
    assert all(len(bytes.fromhex(item.md5)) == 16 for item in sources)


# --- CIFAR-10 --------------------------------------------------------------------------------


def py2(value: Any) -> bytes:
    """Pickles as Python 2 did (protocol 2, byte strings), which Python 3 cannot do."""
    if isinstance(value, bytes):
        return b"T" + struct.pack("<i", len(value)) + value
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if isinstance(value, tuple):
        return b"(" + b"".join(map(py2, value)) + b"t"
    if isinstance(value, list):
        return b"](" + b"".join(map(py2, value)) + b"e"
    if isinstance(value, dict):
        return b"}(" + b"".join(py2(key) + py2(item) for key, item in value.items()) + b"u"
    rows: int = value.rows
    dtype = b"cnumpy\ndtype\n" + py2((b"u1", 0, 1)) + b"R(" + py2(3) + py2(b"|") + b"NNN"
    dtype += py2(-1) + py2(-1) + py2(0) + b"tb"
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + py2((0,)) + py2(b"b")
    state = b"(" + py2(1) + py2((rows, 3072)) + dtype + b"\x89" + py2(value.pixels) + b"tb"
    return empty + b"tR" + state


class Rows:
    """An array of images to pickle."""

    def __init__(self, pixels: bytes) -> None:
        """Keeps the color planes of all images."""
        self.pixels, self.rows = pixels, len(pixels) // 3072


def cifar_tar(**replaced: bytes) -> tuple[bytes, dict[str, bytes]]:
    """Returns a tiny archive in the official format, and path -> content of its images."""
    images: dict[str, bytes] = {}
    meta = {
        b"num_cases_per_batch": 2,
        b"label_names": [b"airplane", b"automobile"],
        b"num_vis": 3072,
    }
    members = {"batches.meta": b"\x80\x02" + py2(meta) + b".", "readme.html": b"hello"}
    for split, batches in cifar10.BATCHES.items():
        for number, batch in enumerate(batches):
            labels, rows = [1, number % 2], [os.urandom(3072), os.urandom(3072)]
            for offset, (label, row) in enumerate(zip(labels, rows, strict=True)):
                name = meta[b"label_names"][label].decode()  # type: ignore[index]
                images[f"{split}/{name}/{2 * number + offset:05d}.png"] = row
            content = {
                b"batch_label": b"a batch",
                b"labels": labels,
                b"data": Rows(b"".join(rows)),
                b"filenames": [b"a.png", b"b.png"],
            }
            members[batch] = b"\x80\x02" + py2(content) + b"."
    members |= replaced
    return tar_bytes(
        {f"cifar-10-batches-py/{name}": item for name, item in members.items()}
    ), images


def test_cifar10_is_converted(tmp_path: Path, serve: Serve) -> None:
    """Every image is in its class, named in the official order, and exact."""
    content, images = cifar_tar()
    splits = {"train": (2, 10), "val": (2, 2)}
    tiny = _archive.Source(serve(content).url, md5(content), splits)
    _archive.install(tiny, tmp_path / "set", unpack=cifar10.unpack)
    files = {str(path.relative_to(tmp_path / "set")): path for path in tmp_path.rglob("*.png")}
    assert files.keys() == images.keys()
    for name, path in files.items():
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("RGB", (32, 32))
            planes = b"".join(plane.tobytes() for plane in image.split())
        assert planes == images[name]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (b"cposix\nsystem\n(S'touch evil'\ntR.", "posix.system is not allowed"),
        (b"cbuiltins\neval\n(S'1'\ntR.", "builtins.eval is not allowed"),
        (b"garbage", "UnpicklingError"),
        (b"", "EOFError|damaged"),
        (py2({b"labels": [0]}) + b".", "KeyError"),
        (py2({b"labels": [0], b"data": 1}) + b".", "AttributeError"),
        (py2({b"labels": [0, 1], b"data": Rows(bytes(3072))}) + b".", "for 2 labels"),
        (py2({b"labels": [7], b"data": Rows(bytes(3072))}) + b".", "IndexError"),
    ],
)
def test_cifar10_executes_nothing_and_refuses_unexpected_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: bytes, message: str
) -> None:
    """A pickle cannot call the function that it names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.tgz").write_bytes(cifar_tar(data_batch_2=batch)[0])
    with pytest.raises(DataError, match=message):
        _archive.install(
            cifar10.SOURCE,
            tmp_path / "set",
            archive=tmp_path / "a.tgz",
            verify=False,
            unpack=cifar10.unpack,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["a.tgz"]


def test_cifar10_refuses_class_names_that_are_paths(tmp_path: Path) -> None:
    """Class names become folder names: `../evil` is an error."""
    meta = py2({b"label_names": [b"../evil", b"cat"]}) + b"."
    (tmp_path / "a.tgz").write_bytes(cifar_tar(**{"batches.meta": meta})[0])
    done = script(
        "cifar10", "--archive", tmp_path / "a.tgz", "--no-verify", "--dest", tmp_path / "set"
    )
    assert "is not the official archive: ValueError" in one_error(done)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tgz"]


# --- ImageNet --------------------------------------------------------------------------------

WNIDS = {1: "n02", 2: "n01", 3: "n03"}  # IDs are not in the order of the names
TRUTH = [3, 1, 2, 1, 3, 2]
IMAGENET = {"train": (3, 6), "val": (3, 6)}


def meta_mat() -> bytes:
    """Returns a meta.mat in the devkit's format, with three classes and one higher synset."""
    numpy = pytest.importorskip("numpy")
    scipy_io = pytest.importorskip("scipy.io")
    fields = ["ILSVRC2012_ID", "WNID", "words", "num_children", "children", "num_train_images"]
    synsets = numpy.empty((4, 1), dtype=[(field, object) for field in fields])
    for row, (number, wnid) in enumerate([*WNIDS.items(), (1001, "n99")]):
        children = numpy.array([1.0, 2.0, 3.0] if number > 1000 else [])
        synsets[row, 0] = (float(number), wnid, "a, b", float(children.size), children, 2.0)
    buffer = io.BytesIO()
    scipy_io.savemat(buffer, {"synsets": synsets}, do_compression=True)
    return buffer.getvalue()


def write_imagenet(folder: Path) -> None:
    """Writes three tiny archives; the devkit's meta.mat is that of `meta_mat`."""
    classes = {
        f"{wnid}.tar": tar_bytes(
            {f"{wnid}_{number}.JPEG": f"{wnid} {number}".encode() for number in (1, 2)}, "w"
        )
        for wnid in WNIDS.values()
    }
    (folder / imagenet.TRAIN).write_bytes(tar_bytes(classes, "w"))
    val = {f"ILSVRC2012_val_{n:08d}.JPEG": f"val {n}".encode() for n in range(len(TRUTH), 0, -1)}
    (folder / imagenet.VAL).write_bytes(tar_bytes(val, "w"))
    truth = "".join(f"{number}\n" for number in TRUTH).encode()
    data = {"meta.mat": meta_mat(), "ILSVRC2012_validation_ground_truth.txt": truth}
    devkit = {f"ILSVRC2012_devkit_t12/data/{name}": content for name, content in data.items()}
    (folder / imagenet.DEVKIT).write_bytes(tar_bytes(devkit))


def imagenet_md5s(folder: Path) -> dict[str, str]:
    """Returns the MD5s of the tiny archives."""
    return {name: md5((folder / name).read_bytes()) for name in imagenet.MD5S}


def test_imagenet_is_unpacked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nested tars become class folders; the labels come from the devkit."""
    write_imagenet(tmp_path)
    dest = tmp_path / "set"
    imagenet.build(tmp_path, dest, imagenet_md5s(tmp_path), IMAGENET)
    files = tree(dest)
    labels = sorted((Path(name).name, Path(name).parent.name) for name in files if "_val_" in name)
    listing = "".join(f"{name} {wnid}\n" for name, wnid in labels)
    assert hashlib.sha256(listing.encode()).hexdigest() == (  # TRUTH as WNIDs, by sha256sum
        "f26f62f47e6c2d61100d8d61caae1eb0f1fb2b17f558a86230def5e3f4b4d562"
    )
    assert files["val/n02/ILSVRC2012_val_00000004.JPEG"] == b"val 4"
    assert files["train/n01/n01_2.JPEG"] == b"n01 2"
    assert not (tmp_path / "set.partial").exists()
    capsys.readouterr()
    imagenet.build(tmp_path, dest, {}, IMAGENET)
    assert capsys.readouterr().out == f"{dest} is complete: nothing to do\n"


def test_imagenet_classes_are_the_low_level_synsets() -> None:
    """Higher synsets of WordNet, which meta.mat also lists, have no images."""
    assert imagenet.read_meta(meta_mat()) == WNIDS


def test_imagenet_resumes_class_by_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Complete classes are skipped, others unpacked again; no half data set gets the final name."""
    write_imagenet(tmp_path)
    dest, partial = tmp_path / "set", tmp_path / "set.partial"
    whole = (tmp_path / imagenet.TRAIN).read_bytes()
    (tmp_path / imagenet.TRAIN).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"img_train.tar is damaged"):
        imagenet.build(tmp_path, dest, {}, IMAGENET)
    assert not dest.exists()
    done = {path.name for path in (partial / "train").iterdir()} & set(WNIDS.values())
    assert 0 < len(done) < len(WNIDS)
    (partial / "train" / done.pop() / "kept.JPEG").touch()  # would vanish if unpacked again
    (partial / "train" / "n03.tmp").mkdir(exist_ok=True)
    (partial / "train" / "n03.tmp" / "stale.JPEG").touch()
    (tmp_path / imagenet.TRAIN).write_bytes(whole)
    imagenet.build(tmp_path, dest, {}, {**IMAGENET, "train": (3, 7)})
    assert len(list(dest.rglob("kept.JPEG"))) == 1
    assert not list(dest.rglob("stale.JPEG"))
    assert "checking" not in capsys.readouterr().err


def test_imagenet_checks_md5s_and_counts(tmp_path: Path) -> None:
    """A damaged archive stops the run before unpacking; missing images stop it at the end."""
    write_imagenet(tmp_path)
    md5s = imagenet_md5s(tmp_path) | {imagenet.TRAIN: "0" * 32}
    with pytest.raises(DataError, match=r"img_train.tar is damaged \(MD5 [0-9a-f]{32}\)"):
        imagenet.build(tmp_path, tmp_path / "set", md5s, IMAGENET)
    assert tree(tmp_path / "set.partial") == {}
    with pytest.raises(DataError, match=r"train holds 6 images in 3 classes, not 9 in 3: remove"):
        imagenet.build(tmp_path, tmp_path / "set", {}, {**IMAGENET, "train": (3, 9)})
    assert not (tmp_path / "set").exists()


def test_imagenet_names_missing_archives(tmp_path: Path) -> None:
    """The line names the files, the folder and where to register."""
    (tmp_path / imagenet.VAL).touch()
    line = one_error(script("imagenet", "--archives", tmp_path, "--dest", tmp_path / "set"))
    assert f"{tmp_path} lacks {imagenet.DEVKIT}, {imagenet.TRAIN}: register at https://" in line


def test_imagenet_refuses_a_strange_devkit(tmp_path: Path) -> None:
    """Unexpected content is reported in one line, without a traceback."""
    write_imagenet(tmp_path)
    truth = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
    for meta, message in ((b"", ""), (b"MATLAB" * 50, ""), (meta_mat(), "KeyError")):
        devkit = {truth: b"1\n77\n", "ILSVRC2012_devkit_t12/data/meta.mat": meta}
        (tmp_path / imagenet.DEVKIT).write_bytes(tar_bytes(devkit))
        with pytest.raises(DataError, match=f"cannot read .*devkit_t12.tar.gz .*{message}"):
            imagenet.build(tmp_path, tmp_path / "set", {}, IMAGENET)


def test_imagenet_names_scipy_if_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line holds the install command."""
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(DataError, match=r"^SciPy is missing: run python -m pip install scipy$"):
        imagenet.read_meta(b"")
