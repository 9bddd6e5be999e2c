"""Downloads for the data-set scripts: progress, resuming, checksums, disk errors in one line.

Standard library only. Every problem that the user can fix is raised as `DataError`.
"""

import errno
import hashlib
import http.client
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

CHUNK = 1 << 20


class DataError(Exception):
    """A problem that the user can fix; its text is one line that names the problem and the fix."""


class Progress:
    """A status line on stderr: redrawn on a terminal, printed every 15 seconds in a log."""

    def __init__(self, label: str, total: int | None, start: int = 0) -> None:
        """Starts the clock.

        Args:
            label: text before the numbers.
            total: bytes of the whole file, if known.
            start: bytes of an earlier run, which do not count for the rate.
        """
        self._label, self._total, self._start, self._done = label, total, start, start
        self._terminal = sys.stderr.isatty()
        self._every = 0.2 if self._terminal else 15.0
        self._began = self._shown = time.monotonic()

    def update(self, done: int) -> None:
        """Shows `done` bytes if the last update is old enough."""
        self._done = done
        if time.monotonic() - self._shown >= self._every:
            self._shown = time.monotonic()
            self._show()

    def _show(self) -> None:
        rate = (self._done - self._start) / max(time.monotonic() - self._began, 1e-6)
        text = f"{self._label}: {self._done / 1e6:.1f} MB"
        if self._total:
            text += f" of {self._total / 1e6:.1f} MB ({self._done / self._total:.0%})"
        text += f", {rate / 1e6:.1f} MB/s"
        if self._total and 0 < self._done < self._total and rate > 0:
            text += f", ETA {timedelta(seconds=int((self._total - self._done) / rate))}"
        line = f"\r{text:<78}" if self._terminal else f"{text}\n"
        print(line, end="", file=sys.stderr, flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:  # after an error the numbers are not the final ones
            self._show()
        if self._terminal:
            print(file=sys.stderr)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns disk errors into a `DataError` that names `path`: a failed write does not name its file."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # raised by gzip, not by the disk
            raise
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            fix = "the disk is full: free some space and run the same command again"
        else:
            fix = f"{error.strerror}: check the folder or pass another --dest"
        raise DataError(f"cannot write {path}: {fix}") from error


def _request(url: str, have: int, timeout: float) -> tuple[http.client.HTTPResponse, int]:
    """Opens the URL at byte `have`, or at 0 if the server ignores the range; returns the start too."""
    headers = {"User-Agent": "fastsimsiam"} | ({"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=timeout
        )
    except urllib.error.HTTPError as error:
        error.close()
        if (
            error.code == 416 and have
        ):  # the part is longer than the file, so it belongs to another one
            return _request(url, 0, timeout)
        raise
    if response.status == 206 and not response.headers.get("Content-Range", "").startswith(
        f"bytes {have}-"
    ):
        response.close()
        return _request(url, 0, timeout)
    return response, have if response.status == 206 else 0


def download(url: str, path: Path, timeout: float = 60.0) -> None:
    """Downloads `url` to `path`; continues `path`.part of an interrupted run."""
    part = path.with_name(path.name + ".part")
    with writing(part):
        path.parent.mkdir(parents=True, exist_ok=True)
        have = part.stat().st_size if part.exists() else 0
    try:
        response, start = _request(url, have, timeout)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error.reason if type(error) is urllib.error.URLError else error
        raise DataError(
            f"cannot download {url} ({reason}): download it by hand, save it as {path} or pass it with "
            "--archive FILE, then run this command again"
        ) from error
    length = response.headers.get("Content-Length")
    total = start + int(length) if length else None
    done = start
    lost: Exception | None = None
    with (
        response,
        writing(part),
        part.open("ab" if start else "wb") as file,
        Progress(path.name, total, start) as progress,
    ):
        while True:
            try:
                chunk = response.read1(CHUNK)
            except (OSError, http.client.HTTPException) as error:
                lost = error
                break
            if not chunk:
                break
            file.write(chunk)
            done += len(chunk)
            progress.update(done)
    if lost or (total is not None and done != total):
        raise DataError(
            f"lost the connection to {url} after {done} bytes ({lost or 'closed early'}): run the "
            f"same command again to continue {part}"
        )
    with writing(path):
        part.replace(path)


def md5_of(path: Path) -> str:
    """Returns the MD5 of a file as hex; shows its progress."""
    digest = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file, Progress(f"checking {path.name}", path.stat().st_size) as shown:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            shown.update(file.tell())
    return digest.hexdigest()
