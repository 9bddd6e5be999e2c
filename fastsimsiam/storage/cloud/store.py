"""Objects of S3, Google Cloud Storage and web servers, through the library obstore: looked up and read.

obstore is imported when a store is opened. It asks once; what is worth asking again is decided here.
https://developmentseed.org/obstore/latest/
"""

import asyncio
import os
import random
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from fastsimsiam.errors import UserError
from fastsimsiam.system.optional import require
from fastsimsiam.system.text import printable

INSTALL = "pip install 'fastsimsiam[cloud]'"
_ATTEMPTS = 8
"""Requests in a row that bring nothing before the store counts as out of reach: about a minute."""
_FIRST_ATTEMPTS = 3
"""The same while the store has not answered at all: its name may be mistyped."""
_WAIT_SECONDS = 0.5
_LONGEST_WAIT_SECONDS = 20.0
_CHUNK = 1 << 17
"""Bytes of an answer that are kept together: what comes before a connection drops is not lost."""
_CLIENT = {"connect_timeout": "10s", "read_timeout": "30s", "timeout": "1h"}
"""obstore gives up after 30 seconds in all, which a piece over a slow connection exceeds."""
_TOO_MANY = 429
_CREDENTIALS = {
    "s3": (
        *("AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_SKIP_SIGNATURE"),
        *("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
    ),
    "gs": (
        *("GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH", "GOOGLE_SERVICE_ACCOUNT_KEY"),
        *("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_BEARER_TOKEN", "GOOGLE_SKIP_SIGNATURE"),
    ),
}
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
}
_STATUS = re.compile(r"status code: (\d{3}) ?[A-Za-z ]*")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_FOR_CREDENTIALS = ("/latest/api/token", "/latest/meta-data/", "computeMetadata", "token request")
"""Where a machine of a cloud asks for its credentials."""
_WRONG_NAME = re.compile(r'Error parsing Path "([^"]*)"')
_MD5 = re.compile(r"[0-9a-f]{32}")
# What obstore says of a failure, in the words of the libraries below it, and what that means.
_REASONS = (
    ("dns error", "the name of its host does not resolve"),
    ("ertificate", "its certificate is not accepted"),
    ("tcp connect error", "no connection"),
    ("TimedOut", "no answer in time"),
    ("imeout", "no answer in time"),
    ("body", "the connection was dropped"),
    ("error sending request", "the connection was dropped"),
)

_Made = TypeVar("_Made")


class StoreError(Exception):
    """What a store has answered, or that it has not.

    Attributes:
        reason: completes "URL ...".
        fix: what the user can do.
        is_away: whether the same request may have an answer later.
    """

    def __init__(self, reason: str, fix: str, *, is_away: bool = False) -> None:
        """Takes the attributes."""
        super().__init__(reason)
        self.reason, self.fix, self.is_away = reason, fix, is_away


class ChangedError(Exception):
    """An object is not the one any more that was listed."""


@dataclass(frozen=True, kw_only=True)
class Object:
    """A version of an object.

    Attributes:
        key: its name in the store.
        size: bytes.
        etag: what the store calls this version, without quotes; "" if it says nothing.
        modified: seconds since 1970; 0.0 if the store says nothing.
    """

    key: str
    size: int
    etag: str
    modified: float

    @property
    def version(self) -> str:
        """A text that is another one after the object has changed."""
        return f"{self.size} {self.etag or self.modified}"

    @property
    def md5(self) -> str:
        """The ETag, if it may be the MD5 of the content; "" if not."""
        return self.etag if _MD5.fullmatch(self.etag) else ""


def endpoint(scheme: str) -> str:
    """The server that environment variables name instead of the cloud's own; "" for none."""
    return next((os.environ[n] for n in _ENDPOINTS.get(scheme, ()) if os.environ.get(n)), "")


class Store:
    """A bucket, or a web server.

    Attributes:
        scheme: `s3`, `gs`, `http` or `https`.
        keeps_md5: whether an ETag of 32 digits is the MD5 of its object.
    """

    def __init__(self, scheme: str, host: str) -> None:
        """Asks nothing yet.

        Args:
            scheme: see the class.
            host: the bucket, or the server with its port.

        Raises:
            UserError: obstore is missing, or refuses the address.
        """
        name = printable(f"{scheme}://{host}")
        require("obstore", name, INSTALL)
        self.scheme, self._host = scheme, host
        self.keeps_md5 = self.scheme in ("s3", "gs")
        named = any(os.environ.get(name) for name in _CREDENTIALS.get(self.scheme, ()))
        # Most public buckets are read best without a signature, and looking for the credentials of a
        # machine that has none takes seconds.
        self._unsigned = self.keeps_md5 and not named
        self._has_answered = False
        try:
            self._store = self._opened()
        except Exception as error:  # of a variable without sense for example, of any class
            raise UserError(f"{name} cannot be opened ({_first_line(error)})") from error

    def _opened(self) -> Any:
        import obstore.store

        # Without TLS only where the address itself says so.
        plain = self.scheme == "http" or endpoint(self.scheme).startswith("http://")
        options: dict[str, Any] = {
            "client_options": {**_CLIENT, "allow_http": plain},
            "retry_config": {"max_retries": 0, "retry_timeout": timedelta(minutes=1)},
        }
        if self._unsigned:
            options["skip_signature"] = True
        if self.scheme == "s3":
            return obstore.store.S3Store(self._host, **options)
        if self.scheme == "gs":
            return obstore.store.GCSStore(self._host, **options)
        return obstore.store.HTTPStore(f"{self.scheme}://{self._host}", **options)

    async def listed(self, prefix: str) -> list[Object]:
        """All objects below a prefix.

        Raises:
            StoreError: there is no such bucket, or no access.
        """
        import obstore

        async def ask() -> list[Object]:
            pages: AsyncIterator[Any] = obstore.list(self._store, prefix or None, chunk_size=1000)
            return [_object(meta) async for page in pages for meta in page]

        return await self._answered(ask)

    async def looked_up(self, key: str) -> Object | None:
        """An object; None if there is none of this name.

        Raises:
            StoreError: there is no access.
        """
        import obstore

        async def ask() -> Object | None:
            try:
                return _object(await obstore.head_async(self._store, key))
            except FileNotFoundError:
                return None

        return await self._answered(ask)

    async def read(self, one: Object, start: int, end: int, content: bytearray) -> None:
        """Reads a part of an object. What has come before a connection drops is not asked for again.

        Args:
            one: the object.
            start: first byte.
            end: the byte behind the last one.
            content: empty; receives the bytes as they come.

        Raises:
            ChangedError: the object is another one by now.
            StoreError: the object or its part cannot be had.
        """
        while len(content) < end - start:
            before = len(content)

            async def ask(before: int = before) -> None:
                # Asked again after a part of the answer has come: that is an answer, too.
                if len(content) == before:
                    await self._append(one, start + before, end, content)

            await self._answered(ask)

    async def _append(self, one: Object, start: int, end: int, content: bytearray) -> None:
        import obstore

        try:
            result = await obstore.get_async(self._store, one.key, options={"range": (start, end)})
        except FileNotFoundError as error:
            raise ChangedError from error
        if _object(result.meta).version != one.version:
            raise ChangedError
        before = len(content)
        async for chunk in result.stream(min_chunk_size=_CHUNK):
            content += chunk
        if len(content) == before:
            raise StoreError("sent nothing", "start again later", is_away=True)

    async def _answered(self, ask: Callable[[], Coroutine[Any, Any, _Made]]) -> _Made:
        """Asks until there is an answer, and waits longer from time to time."""
        from obstore.exceptions import BaseError

        failed, failures = 0, (BaseError, OSError, ValueError, StoreError)
        while True:
            unsigned = self._unsigned
            try:
                made = await ask()
                self._has_answered = True
                return made
            except failures as error:
                problem = error if isinstance(error, StoreError) else self._explained(error)
                if unsigned and isinstance(problem, _NoAccessError):
                    # The machine itself may have credentials, those of an instance for example.
                    if self._unsigned:  # no other request has found that out before
                        self._unsigned = False
                        self._store = self._opened()
                    continue
                failed += 1
                most = _ATTEMPTS if self._has_answered else _FIRST_ATTEMPTS
                if not problem.is_away or failed >= most:
                    raise problem from error
                wait = min(_WAIT_SECONDS * 2 ** (failed - 1), _LONGEST_WAIT_SECONDS)
                await asyncio.sleep(wait * random.uniform(0.5, 1))

    def _explained(self, error: Exception) -> StoreError:
        from obstore.exceptions import (
            NotSupportedError,
            PermissionDeniedError,
            UnauthenticatedError,
        )

        text = str(error)
        found, code = _STATUS.search(text), _CODE.search(text)
        status = int(found[1]) if found else 0
        answer = ", ".join(
            filter(None, (found[0].strip() if found else "", code[1] if code else ""))
        )
        answer = answer.removeprefix("status code: ") or _first_line(error)
        if name := _WRONG_NAME.search(text):
            reason = f"has an object with a name that no file can have ({printable(name[1])})"
            return StoreError(reason, "rename it")
        if isinstance(error, NotSupportedError) or "non-partial" in text:
            reason = "cannot be read in parts (the server does not know HTTP's Range)"
            return StoreError(reason, "serve it by another server, or fetch it by hand")
        if "BareRedirect" in text or "without LOCATION" in text:
            return StoreError("is in another region", "set AWS_REGION to the bucket's")
        if any(part in text for part in _FOR_CREDENTIALS):
            return _NoAccessError("cannot be read without credentials", self._how_to_sign())
        if isinstance(error, (PermissionDeniedError, UnauthenticatedError)) or status in (401, 403):
            return _NoAccessError(f"may not be read ({answer})", self._how_to_sign())
        if status == 404 or isinstance(error, FileNotFoundError):
            what = "is in no bucket of that name" if "NoSuchBucket" in text else "does not exist"
            return StoreError(what, "check the address")
        if found and (status >= 500 or status == _TOO_MANY):
            return StoreError(f"is out of reach ({answer})", "start again later", is_away=True)
        if found:
            fix = self._how_to_sign() if "Token" in answer else "check the address"
            return StoreError(f"cannot be read ({answer})", fix)
        reason = next((told for word, told in _REASONS if word in text), _first_line(error))
        return StoreError(
            f"is out of reach ({reason})", "check the address and the network", is_away=True
        )

    def _how_to_sign(self) -> str:
        if self.scheme == "s3":
            return (
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY to keys that may read it (profiles of "
                '~/.aws are not read: eval "$(aws configure export-credentials --format env)")'
            )
        if self.scheme == "gs":
            return "set GOOGLE_APPLICATION_CREDENTIALS to the file of an account that may read it"
        return "give an address that is open to all"


class _NoAccessError(StoreError):
    """The credentials are missing, or do not suffice."""


def _object(meta: Any) -> Object:
    etag = str(meta["e_tag"] or "").removeprefix("W/").strip('"')
    return Object(
        key=str(meta["path"]),
        size=int(meta["size"]),
        etag=etag,
        modified=meta["last_modified"].timestamp(),
    )


def _first_line(error: Exception) -> str:
    return printable(str(error).partition("\n")[0][:200])
