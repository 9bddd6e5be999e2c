"""A store of objects on 127.0.0.1 that speaks HTTP and the part of S3 that reading needs."""

import hashlib
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "photos"
_PAGE = 4
"""Objects in an answer to a listing."""


@dataclass
class Stored:
    """An object; its ETag is the MD5 of its content unless another one is given."""

    content: bytes
    modified: float
    etag: str

    @classmethod
    def of(cls, content: bytes, modified: float = 1.7e9, etag: str | None = None) -> "Stored":
        return cls(content, modified, etag or hashlib.md5(content).hexdigest())


@dataclass
class Answer:
    """What a request is answered with instead: a status, or a body that is cut or another one."""

    status: int = 0
    cut: int | None = None
    body: bytes | None = None
    wait: float = 0.0


Fault = Callable[[str, str, int], Answer | None]
"""Called with the method, the key and the first byte of a request."""


@dataclass
class ObjectServer:
    """The objects, and what was asked and sent.

    Attributes:
        objects: key -> object.
        sent: key -> bytes of it that were sent.
        asked: (method, key) of all requests; the key of a listing is its prefix.
        fault: decides on other answers than the right ones.
        with_ranges: whether parts of objects are answered with parts.
        is_private: whether requests without a signature are refused.
        unsigned: number of requests without a signature.
        busy: number of requests that are being answered.
    """

    objects: dict[str, Stored] = field(default_factory=dict)
    sent: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    asked: list[tuple[str, str]] = field(default_factory=list)
    fault: Fault = lambda method, key, start: None
    with_ranges: bool = True
    is_private: bool = False
    unsigned: int = 0
    busy: int = 0
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add_folder(self, folder: Path, prefix: str) -> None:
        """Stores all files of a folder."""
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                key = f"{prefix}/{file.relative_to(folder).as_posix()}"
                self.objects[key] = Stored.of(file.read_bytes())

    def count(self, method: str) -> int:
        return sum(asked == method for asked, _ in self.asked)

    def settle(self) -> None:
        """Waits until nothing is being answered."""
        while self.busy:
            time.sleep(0.005)

    def forget(self) -> None:
        """Begins counting again."""
        self.sent.clear()
        self.asked.clear()


def _handler(server: ObjectServer) -> type[BaseHTTPRequestHandler]:
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 16  # one packet for a header and a short body

        def _is_refused(self) -> bool:
            server.unsigned += "Authorization" not in self.headers
            return server.is_private and "Authorization" not in self.headers

        def log_message(self, *args: object) -> None:
            del args

        def do_HEAD(self) -> None:
            self._object("HEAD")

        def do_GET(self) -> None:
            with lock:
                server.busy += 1
            try:
                self._get()
                self.wfile.flush()
            except ConnectionError:  # who has asked does not listen any more
                self.close_connection = True
            finally:
                with lock:
                    server.busy -= 1

        def _get(self) -> None:
            address = urlsplit(self.path)
            if "list-type=2" in address.query:
                self._listing({k: v[0] for k, v in parse_qs(address.query).items()})
            else:
                self._object("GET")

        def _listing(self, query: dict[str, str]) -> None:
            prefix = query.get("prefix", "")
            server.asked.append(("LIST", prefix))
            if self._is_refused():
                return self._error(403, "AccessDenied")
            answer = server.fault("LIST", prefix, 0)
            if answer and answer.status:
                return self._error(answer.status)
            if self.path.strip("/").partition("?")[0] != BUCKET:
                return self._error(404, "NoSuchBucket")
            keys = sorted(key for key in server.objects if key.startswith(prefix))
            after = query.get("continuation-token", "")
            keys = [key for key in keys if key > after]
            more = keys[_PAGE:]
            rows = "".join(
                f"<Contents><Key>{escape(key)}</Key><LastModified>"
                f"{time.strftime('%Y-%m-%dT%H:%M:%S.000Z', time.gmtime(one.modified))}"
                f"</LastModified><ETag>&quot;{one.etag}&quot;</ETag><Size>{len(one.content)}</Size>"
                "</Contents>"
                for key in keys[:_PAGE]
                for one in [server.objects[key]]
            )
            token = (
                f"<NextContinuationToken>{keys[_PAGE - 1]}</NextContinuationToken>" if more else ""
            )
            self._send(
                200,
                f"<?xml version='1.0'?><ListBucketResult><IsTruncated>{str(bool(more)).lower()}"
                f"</IsTruncated>{rows}{token}</ListBucketResult>".encode(),
            )

        def _object(self, method: str) -> None:
            key = unquote(urlsplit(self.path).path).lstrip("/").removeprefix(f"{BUCKET}/")
            asked = self.headers.get("Range", "")
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start = int(first or 0)
            server.asked.append((method, key))
            if self._is_refused():
                return self._error(403, "AccessDenied")
            answer = server.fault(method, key, start) or Answer()
            time.sleep(answer.wait)
            if answer.status:
                return self._error(answer.status)
            one = server.objects.get(key)
            if one is None:
                return self._error(404, "NoSuchKey")
            match = self.headers.get("If-Match")
            if match and match.strip('"') != one.etag:
                return self._error(412)
            content = one.content
            headers = {
                "ETag": f'"{one.etag}"',
                "Last-Modified": formatdate(one.modified, usegmt=True),
            }
            status, end = 200, len(content)
            if asked and server.with_ranges:
                end = min(int(last) + 1 if last else end, end)
                headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
                status, content = 206, content[start:end]
            if answer.body is not None:
                content = answer.body[start:end]
            self._send(status, content, headers, cut=answer.cut, key=key, head=method == "HEAD")

        def _error(self, status: int, code: str = "") -> None:
            content = f"<Error><Code>{code}</Code></Error>" if code else ""
            self._send(status, content.encode(), {})

        def _send(
            self,
            status: int,
            content: bytes,
            headers: dict[str, str] | None = None,
            *,
            cut: int | None = None,
            key: str = "",
            head: bool = False,
        ) -> None:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if head or self.command == "HEAD":
                return
            content = content[:cut]
            if key:
                with lock:
                    server.sent[key] += len(content)
            self.wfile.write(content)
            if cut is not None:
                self.close_connection = True

    return Handler


@contextmanager
def object_server() -> Iterator[ObjectServer]:
    """A store without objects, until the end of the block."""
    server = ObjectServer()
    listening = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server))
    listening.daemon_threads = True
    server.port = listening.server_address[1]
    thread = threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listening.shutdown()
        listening.server_close()
