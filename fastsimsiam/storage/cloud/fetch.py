"""Fetches objects of a store into the cache: several at once, each in pieces, from where it stopped."""

import asyncio
import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from typing import IO, Any, TypeVar

from fastsimsiam.errors import UserError
from fastsimsiam.storage.cloud.cache import Copy, as_reported, chunks_of, size_text
from fastsimsiam.storage.cloud.store import ChangedError, Object, Store, StoreError

_FILES = 4
"""Objects that are fetched at once."""
_PIECES = 4
"""Pieces of an object that are asked for at once: one connection does not fill a fast network."""
_PIECE = 1 << 23
"""Bytes of a piece. A kill loses what has come of the pieces under way."""
_VERSIONS = 3
"""Versions of an object that are begun before it counts as being written all the time."""
_TICK_SECONDS = 0.2
_PATIENCE_SECONDS = 5.0
"""How long a signal waits for what has come to be written."""
_Made = TypeVar("_Made")


class Fetch:
    """Brings objects into the cache.

    Attributes:
        objects: all of the data set, by path; those that change meanwhile are replaced.
        etags_are_md5: whether an ETag that may be an MD5 is one; None: not known yet.
        total: bytes of the objects to fetch.
    """

    def __init__(
        self,
        store: Store,
        copy: Copy,
        objects: dict[str, Object],
        name_of: Callable[[str], str],
        etags_are_md5: bool | None,
    ) -> None:
        """Fetches nothing yet.

        Args:
            store: where the objects are.
            copy: where they go; this process has the right to fetch.
            objects: see the class.
            name_of: the URL of a path, for messages.
            etags_are_md5: see the class.
        """
        self._store, self._copy, self._name_of = store, copy, name_of
        self.objects, self.etags_are_md5 = objects, etags_are_md5
        self._got: dict[str, int] = {}
        self._unlike: dict[str, str] = {}
        self.total = 0

    @property
    def done(self) -> int:
        """Bytes of the objects to fetch that are there."""
        return sum(list(self._got.values()))

    async def run(self, missing: Sequence[str]) -> None:
        """Fetches objects.

        Raises:
            UserError: one cannot be had; what has come is kept.
        """
        self.total = sum(self.objects[path].size for path in missing)
        await together(self._fetch, missing, _FILES)

    async def _fetch(self, path: str) -> None:
        for _ in range(_VERSIONS):
            one = self.objects[path]
            try:
                if await self._fetch_version(path, one):
                    return
            except ChangedError:
                self.objects[path] = await self._newer(path, one)
            except StoreError as problem:
                got = f"{size_text(self._got.get(path, 0))} of {size_text(one.size)}"
                fix = "start the command again to go on" if problem.is_away else problem.fix
                raise UserError(
                    f"{self._name_of(path)} {problem.reason}; {got} are here and kept: {fix}"
                ) from problem
            except OSError as error:
                raise as_reported(error, self._copy.part(path, one)) from error
        if path in self._unlike:
            raise UserError(
                f"{self._name_of(path)} has arrived {_VERSIONS} times without the checksum that the "
                "store tells (its ETag): find out what changes it on its way, or upload it again"
            )
        raise UserError(
            f"{self._name_of(path)} changes while it is fetched: start again when nobody writes it"
        )

    async def _newer(self, path: str, one: Object) -> Object:
        self._copy.part(path, one).unlink(missing_ok=True)
        try:
            newer = await self._store.looked_up(one.key)
        except StoreError as problem:
            raise UserError(f"{self._name_of(path)} {problem.reason}: {problem.fix}") from problem
        if newer is None:
            raise UserError(
                f"{self._name_of(path)} was removed after it was listed: start again when the data set "
                "is complete"
            )
        return newer

    async def _fetch_version(self, path: str, one: Object) -> bool:
        """Fetches an object, or the rest of it; False if what came is not what the store has."""
        part = self._copy.part(path, one)
        part.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "ab") as file:
            if file.tell() > one.size:
                file.truncate(0)
            self._got[path] = file.seek(0, os.SEEK_END)
            digest = hashlib.md5(usedforsecurity=False)
            for chunk in chunks_of(part):
                digest.update(chunk)
                await asyncio.sleep(0)  # a part may have gigabytes, and a signal should not wait
            await self._append(path, one, file, digest)
            await asyncio.to_thread(os.fsync, file.fileno())
            size = os.fstat(file.fileno()).st_size
        md5 = digest.hexdigest()
        if size != one.size or not self._is_right(path, one, md5):
            part.unlink()
            return False
        self._copy.finish(path, one, md5)
        return True

    async def _append(self, path: str, one: Object, file: IO[bytes], digest: Any) -> None:
        """Fetches what is missing, in order; what has come is written, whatever happens."""
        starts = iter(range(self._got[path], one.size, _PIECE))
        under_way: deque[tuple[bytearray, asyncio.Task[None]]] = deque()
        try:
            while True:
                while len(under_way) < _PIECES and (start := next(starts, None)) is not None:
                    content = bytearray()
                    end = min(start + _PIECE, one.size)
                    reading = self._store.read(one, start, end, content)
                    under_way.append((content, asyncio.create_task(reading)))
                if not under_way:
                    return
                content, task = under_way.popleft()
                try:
                    await task
                finally:
                    file.write(content)
                    file.flush()
                    digest.update(content)
                    self._got[path] += len(content)
        finally:
            tasks = [task for _, task in under_way]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _is_right(self, path: str, one: Object, md5: str) -> bool:
        """Compares an object with its ETag, which is its MD5 as a rule.

        It is another text of 32 digits where the store encrypts with keys of the user. So objects that
        are unlike are fetched again: what comes twice alike, before any ETag was right, is right.
        """
        if not (self._store.keeps_md5 and one.md5) or self.etags_are_md5 is False:
            return True
        if md5 == one.md5:
            self.etags_are_md5 = True
            return True
        if self.etags_are_md5 is None and self._unlike.get(path) == md5:
            self.etags_are_md5 = False
            return True
        self._unlike[path] = md5
        return False


async def together(
    work: Callable[[str], Coroutine[Any, Any, _Made]], names: Iterable[str], at_once: int
) -> list[_Made]:
    """What a coroutine returns for each name; some run at once, and the first that fails ends all."""
    free = asyncio.Semaphore(at_once)

    async def run(name: str) -> _Made:
        async with free:
            return await work(name)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(run(name)) for name in names]
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from failed
    return [task.result() for task in tasks]


def finished(work: Coroutine[Any, Any, _Made], tick: Callable[[], None] = lambda: None) -> _Made:
    """Runs a coroutine to its end and calls `tick` meanwhile, here.

    The coroutine has a thread of its own: the caller may be within a running loop, as notebooks are,
    and a signal that raises an exception ends the wait at once.
    """
    loop = asyncio.new_event_loop()
    task = loop.create_task(work)
    ended = threading.Event()

    def run() -> None:
        try:
            with suppress(Exception, asyncio.CancelledError):
                loop.run_until_complete(task)
        finally:
            loop.close()
            ended.set()

    threading.Thread(target=run, daemon=True).start()
    try:
        while not ended.wait(_TICK_SECONDS):
            tick()
    except BaseException:
        with suppress(RuntimeError):  # it has just ended
            loop.call_soon_threadsafe(task.cancel)
        ended.wait(_PATIENCE_SECONDS)
        raise
    return task.result()
