"""The folder in which objects of clouds are kept, with a folder for each data set.

    CACHE/NAME/files/PATH              whole objects, laid out as in the store: what storages open
    CACHE/NAME/facts/PATH.json         of which version a whole object is
    CACHE/NAME/parts/PATH.VERSION.part the first bytes of an object
    CACHE/NAME/dataset.json            its objects when they were listed last; changed with each use
    CACHE/NAME/use.lock                shared by all processes that use the data set
    CACHE/NAME/fetch.lock              of the process that fetches
    CACHE/room.lock                    of a process that removes other data sets

All is as good after a kill as before: a file of `files` is there whole, and of a version that its facts
tell, or it is not used.
"""

import hashlib
import json
import os
import re
import stat
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from fastsimsiam.errors import UserError
from fastsimsiam.storage.cached_arrays import cache_folder
from fastsimsiam.storage.cloud.store import Object
from fastsimsiam.system.files import advice, read_text, written_whole
from fastsimsiam.system.lock import LockedError, locked
from fastsimsiam.system.text import printable

FOLDER = "FASTSIMSIAM_CLOUD_CACHE"
"""Environment variable: the folder of the cache."""
LIST, USE_LOCK = "dataset.json", "use.lock"
_FILES, _FACTS, _PARTS, _FETCH_LOCK = "files", "facts", "parts", "fetch.lock"
_POLL_SECONDS = 0.1
_CHUNK = 1 << 23
_LONGEST_SLUG = 80
_used = ExitStack()
"""Locks of the data sets that this process uses, until it ends."""
_in_use: set[Path] = set()

Objects = Mapping[str, Object]
"""Path below the data set's folder -> object."""


def size_text(size: float) -> str:
    """Bytes for people: `1.5 GB`."""
    unit, name = next(
        ((unit, name) for unit, name in ((1e9, "GB"), (1e6, "MB")) if size >= unit), (1e3, "kB")
    )
    return f"{size / unit:.1f} {name}"


def cache_root() -> Path:
    """The folder of all data sets.

    Raises:
        UserError: there is none, since there is no home.
    """
    if named := os.environ.get(FOLDER):
        return Path(named).absolute()
    folder = cache_folder()
    if folder is None:
        raise UserError(f"there is no home for fetched files: set {FOLDER} to a folder")
    return folder.absolute() / "cloud"


def as_reported(error: OSError, path: Path) -> UserError:
    """The message about a file of the cache that cannot be written."""
    return UserError(
        f"cannot write {printable(error.filename or path)} ({error.strerror or error}): "
        f"{advice(error)}; what was fetched is kept"
    )


@dataclass(frozen=True)
class Copy:
    """The cached objects of one data set.

    Attributes:
        folder: of the data set, in the cache.
        url: of the data set.
    """

    folder: Path
    url: str

    @classmethod
    def of(cls, url: str, endpoint: str) -> "Copy":
        """The copy of the data set at a URL, on the server that is asked for it."""
        slug = re.sub(r"[^A-Za-z0-9.-]+", "_", url)[:_LONGEST_SLUG].strip("_")
        name = hashlib.sha256(f"{endpoint}\n{url}".encode()).hexdigest()[:12]
        return cls(cache_root() / f"{slug}_{name}", url)

    @property
    def files(self) -> Path:
        """The folder of whole objects."""
        return self.folder / _FILES

    def use(self) -> None:
        """Keeps the data set from being removed until this process ends.

        Raises:
            UserError: the cache cannot be written.
        """
        if self.folder not in _in_use:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise as_reported(error, self.folder) from error
            _used.enter_context(held(self.folder / USE_LOCK, shared=True))
            _in_use.add(self.folder)
        with suppress(OSError):
            os.utime(self.folder / LIST)

    @contextmanager
    def fetching(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Holds the right to fetch; calls `waiting` while another process has it."""
        with held(self.folder / _FETCH_LOCK, waiting):
            yield

    def listed(self) -> tuple[dict[str, Object], bool | None]:
        """The objects when they were listed last, and whether ETags are MD5s; none if unknown."""
        try:
            stored = json.loads(read_text(self.folder / LIST) or "")
            objects = {path: Object(**values) for path, values in stored["objects"].items()}
            return objects, stored["etags_are_md5"]
        except (UserError, ValueError, TypeError, KeyError, AttributeError):
            return {}, None

    def keep_list(self, objects: Objects, etags_are_md5: bool | None) -> None:
        """Keeps what `listed` returns.

        Raises:
            UserError: it cannot be written.
        """
        values = {path: asdict(one) for path, one in objects.items()}
        content = {"url": self.url, "objects": values, "etags_are_md5": etags_are_md5}
        with written_whole(self.folder / LIST, "the list of fetched files") as file:
            file.write_text(json.dumps(content))

    def is_whole(self, path: str, one: Object) -> bool:
        """Whether an object is there whole, in this version."""
        file = self.files / path
        try:
            status = file.lstat()
            facts = json.loads(read_text(self._facts(path)) or "")
            if not stat.S_ISREG(status.st_mode) or facts["version"] != one.version:
                return False
            if status.st_size != one.size:
                return False
            if status.st_mtime_ns == facts["mtime"]:
                return True
            # Somebody has copied, touched or changed it.
            if _md5_of(file) != facts["md5"]:
                return False
            os.utime(file, ns=(facts["mtime"], facts["mtime"]))
            return True
        except (OSError, UserError, ValueError, TypeError, KeyError):
            return False

    def part(self, path: str, one: Object) -> Path:
        """The file for the first bytes of a version of an object."""
        version = hashlib.sha256(one.version.encode()).hexdigest()[:8]
        return self.folder / _PARTS / f"{path}.{version}.part"

    def finish(self, path: str, one: Object, md5: str) -> None:
        """Makes a part that is complete, and synced to the disk, the whole object.

        Its time is the object's, so that indexes of it stay valid when it is fetched again; the
        fraction tells versions of the same second apart.
        """
        part, file = self.part(path, one), self.files / path
        seconds = int(one.modified or time.time())
        mtime = seconds * 10**9 + zlib.crc32(one.version.encode()) % 10**9
        os.utime(part, ns=(mtime, mtime))
        facts = {"version": one.version, "mtime": part.stat().st_mtime_ns, "md5": md5}
        file.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(self._facts(path), "the version of a fetched file") as partial:
            partial.write_text(json.dumps(facts))
        part.replace(file)

    def has_others(self, objects: Objects) -> bool:
        """Whether there are files that are no objects of the data set any more."""
        return any(path not in objects for path in _below(self.files))

    def remove_others(self, objects: Objects) -> None:
        """Removes what is of no use: other objects, and other versions of these."""
        known = [path.removesuffix(".json") for path in _below(self.folder / _FACTS)]
        for path in {*_below(self.files), *known}:
            if path not in objects or not self.is_whole(path, objects[path]):
                self._remove(path)
        parts = {self.part(path, one) for path, one in objects.items()}
        for path in _below(self.folder / _PARTS):
            if (part := self.folder / _PARTS / path) not in parts:
                part.unlink(missing_ok=True)
        _remove_empty(self.files)

    def bytes_here(self, objects: Objects) -> int:
        """Bytes of these objects that are there, parts included."""
        return sum(
            min(one.size, max(_size(self.files / path), _size(self.part(path, one))))
            for path, one in objects.items()
        )

    def bytes_of_all(self) -> int:
        """Bytes of all files of the data set."""
        folders = (self.files, self.folder / _PARTS)
        return sum(_size(folder / path) for folder in folders for path in _below(folder))

    def remove_some(self, size: int) -> int:
        """Removes files of at least `size` bytes, or all; returns the bytes.

        Facts without their file say nothing, and are removed when the data set is used again.
        """
        removed = 0
        for folder in (self.folder / _PARTS, self.files):
            for path in _below(folder):
                if removed >= size:
                    return removed
                removed += _size(folder / path)
                (folder / path).unlink(missing_ok=True)
        return removed

    def _facts(self, path: str) -> Path:
        return self.folder / _FACTS / f"{path}.json"

    def _remove(self, path: str) -> None:
        (self.files / path).unlink(missing_ok=True)
        self._facts(path).unlink(missing_ok=True)


def chunks_of(file: Path) -> Iterator[bytes]:
    """The content of a file, some megabytes at a time."""
    with open(file, "rb") as handle:
        while chunk := handle.read(_CHUNK):
            yield chunk


def _md5_of(file: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    for chunk in chunks_of(file):
        digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def held(
    file: Path, waiting: Callable[[], None] = lambda: None, *, shared: bool = False
) -> Iterator[None]:
    """Waits for a lock, and holds it until the end of the block."""
    with ExitStack() as stack:
        while True:
            try:
                _, without = stack.enter_context(locked(file, shared=shared))
                break
            except LockedError:
                waiting()
                time.sleep(_POLL_SECONDS)
            except OSError as error:
                raise as_reported(error, file) from error
        if without:
            raise UserError(
                f"the file system of {printable(file)} has no locks ({without}): set {FOLDER} to a "
                "folder on another one"
            )
        yield


def _below(folder: Path) -> list[str]:
    """The files below a folder, sorted."""
    return sorted(
        os.path.relpath(os.path.join(above, name), folder)
        for above, _, names in os.walk(folder)
        for name in names
    )


def _size(file: Path) -> int:
    try:
        return file.lstat().st_size
    except OSError:
        return 0


def _remove_empty(folder: Path) -> None:
    """Removes folders without files: storages would take them for splits or classes."""
    for above, _, _ in os.walk(folder, topdown=False):
        if above != str(folder):
            with suppress(OSError):
                os.rmdir(above)
