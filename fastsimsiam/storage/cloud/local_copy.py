"""Data sets in clouds and on web servers: fetched into a cache, then opened as what they are there.

A folder, `s3://BUCKET/PREFIX` or `gs://BUCKET/PREFIX`, is listed, and laid out in the cache as it is in
the store. A file or a pattern, `https://HOST/train-{000..146}.tar`, is a training split, as on a disk.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import has_magic
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from fastsimsiam.config.location import url_of
from fastsimsiam.errors import UserError
from fastsimsiam.storage import passed_over
from fastsimsiam.storage.base import Report
from fastsimsiam.storage.cloud.cache import Copy, size_text
from fastsimsiam.storage.cloud.fetch import Fetch, finished, together
from fastsimsiam.storage.cloud.room import make_room
from fastsimsiam.storage.cloud.store import Object, Store, StoreError, endpoint
from fastsimsiam.storage.listing import is_hidden
from fastsimsiam.storage.patterns import braces_expanded
from fastsimsiam.storage.split_names import SPELLINGS, kind_of
from fastsimsiam.system.progress import ImageProgress
from fastsimsiam.system.text import printable

_SHARDS = (".tar", ".beton", ".arrow", ".parquet")
_BESIDE = (".json", "ILSVRC2012_devkit_t12.tar.gz")
"""Ends of the names of what storages read beside shards, and in the folders above."""
_ADDRESS = re.compile(r"(s3|gs|https?)://([^/]+)/*(.*?)/*")
_OF_HUB = "data"
"""Folder of the files of a data set of Hugging Face's Hub."""
_LOOKUPS = 16
"""Objects that are looked up at once."""
_MEGABYTE = 1 << 20
_opened: dict[Path, Path] = {}
"""Folder of a copy -> what its storage opens, for the data sets that this process has looked up."""


@dataclass(frozen=True, kw_only=True)
class _Address:
    """A data set's URL, in its parts.

    Attributes:
        url: the whole, as the user has written it.
        scheme: `s3`, `gs`, `http` or `https`.
        host: the bucket or the server.
        folder: key of the folder that the data set's paths are below.
        pattern: path or paths below `folder`, with braces or other signs; "" for all.
    """

    url: str
    scheme: str
    host: str
    folder: str
    pattern: str

    @classmethod
    def of(cls, url: str) -> "_Address":
        """Takes a URL apart.

        Raises:
            UserError: it is a URL of another kind.
        """
        found = _ADDRESS.fullmatch(url)
        name = printable(url)
        if not found:
            raise UserError(f"--data {name} is no address: give s3://BUCKET/FOLDER for instance")
        scheme, host, path = found.groups()
        is_web = scheme in ("http", "https")
        if "@" in host or (is_web and re.search(r"[?#]", path)):
            raise UserError(f"--data {name}: give an address without user name, ? and #")
        parts = path.split("/") if path else []
        if any(part in ("", ".", "..") for part in parts):
            raise UserError(f"--data {name}: give an address without empty names, . and ..")
        folders = len(parts)
        if path.endswith(".beton") and _is_pattern(path):
            raise UserError(f"--data {name}: name one packed file, or the folder of train.beton")
        if path.endswith(_SHARDS):
            folders = next(
                (i for i, part in enumerate(parts[:-1]) if _is_pattern(part)), folders - 1
            )
        elif is_web:
            raise UserError(
                f"a web server lists no files, so --data {name} names none: name the shards, as in "
                f"{name}/train-{{0000..0146}}.tar"
            )
        if is_web:
            parts = [unquote(part) for part in parts]
        return cls(
            url=url,
            scheme=scheme,
            host=host,
            folder="/".join(parts[:folders]),
            pattern="/".join(parts[folders:]),
        )

    @property
    def base(self) -> str:
        """The URL of `folder`."""
        return "/".join(filter(None, (f"{self.scheme}://{self.host}", self.folder)))

    def key(self, path: str) -> str:
        """The key of a path below `folder`."""
        return f"{self.folder}/{path}" if self.folder else path

    def name(self, path: str) -> str:
        """The URL of a path below `folder`, printable."""
        return printable(f"{self.base}/{path}")


@contextmanager
def local_copy(data: Path, *, again: bool = False, report: Report | None = None) -> Iterator[Path]:
    """Gives the copy of a data set at a URL, fetched as far as it is missing; other paths as they are.

    Errors of the block tell the URL instead of the copy.

    Args:
        data: a data set.
        again: ask the store for changes also if this process has asked it before.
        report: receives the progress of fetching, in megabytes; None: it is printed.

    Yields:
        What a storage can open.

    Raises:
        UserError: the data set cannot be had; what has come of it is kept.
    """
    url = url_of(data)
    if url is None:
        yield data
        return
    address = _Address.of(url)
    copy = Copy.of(url, endpoint(address.scheme))
    if again or copy.folder not in _opened:
        copy.use()
        _update(address, copy, report)
        _opened[copy.folder] = copy.files / address.pattern
    try:
        yield _opened[copy.folder]
    except UserError as error:
        here = printable(copy.files)
        text = str(error).replace(here, printable(address.base))
        if text != str(error):
            error.args = (f"{text} (its copy is in {here})",)
        raise


def _update(address: _Address, copy: Copy, report: Report | None) -> None:
    """Fetches what is missing, and removes what is not in the store any more."""
    store = Store(address.scheme, address.host)
    stored, etags_are_md5 = copy.listed()
    try:
        objects, others = finished(_look_up(store, address))
    except StoreError as problem:
        told = f"{printable(address.url)} {problem.reason}"
        if problem.is_away and stored:
            whole = sum(copy.is_whole(path, one) for path, one in stored.items())
            if whole == len(stored):
                line = f"{told}: used as it is in {printable(copy.files)}"
                passed_over.tell(copy.files, [line])
                return
            told += f", and the cache has {whole} of its {len(stored)} files"
        raise UserError(f"{told}: {problem.fix}") from problem
    lines = []
    missing = [path for path, one in objects.items() if not copy.is_whole(path, one)]
    if missing or stored != objects or copy.has_others(objects):
        with ExitStack() as stack:
            if report is None:
                report = stack.enter_context(ImageProgress("fetching", "MB"))
            _fetch(address, copy, store, objects, report)
    if missing:
        size = size_text(sum(objects[path].size for path in missing))
        lines.append(
            f"{printable(address.url)}: fetched {len(missing)} of {len(objects)} files, {size}, to "
            f"{printable(copy.files)}"
        )
        if copy.listed()[1] is False and etags_are_md5 is not False:
            lines.append(
                f"{printable(address.url)}: its ETags are no MD5s, so files were compared by size alone"
            )
    if others:
        lines.append(
            f"{printable(address.url)}: {others} other object{'s' if others > 1 else ''} not fetched"
        )
    passed_over.tell(copy.files, lines)


def _fetch(
    address: _Address, copy: Copy, store: Store, objects: dict[str, Object], report: Report
) -> None:
    """Fetches what is missing when no other process of this machine does so."""
    total = sum(one.size for one in objects.values())

    def waiting() -> None:
        report(copy.bytes_here(objects) // _MEGABYTE, total // _MEGABYTE)

    with copy.fetching(waiting):
        copy.remove_others(objects)
        missing = [path for path, one in objects.items() if not copy.is_whole(path, one)]
        _, etags_are_md5 = copy.listed()
        if not missing:
            copy.keep_list(objects, etags_are_md5)
            return
        make_room(copy, objects)
        fetch = Fetch(store, copy, objects, address.name, etags_are_md5)

        def tick() -> None:
            report(fetch.done // _MEGABYTE, max(fetch.total, fetch.done) // _MEGABYTE)

        finished(fetch.run(missing), tick)
        copy.keep_list(fetch.objects, fetch.etags_are_md5)


async def _look_up(store: Store, address: _Address) -> tuple[dict[str, Object], int]:
    """The objects of a data set by path, and the number of others that are beside them."""
    if not address.pattern:
        listed = await _listed(store, address)
        paths = _wanted(listed)
        if not paths:
            raise UserError(_nothing(address, list(listed)))
        paths = _in_place(address, paths)
        return {path: listed[path] for path in paths}, len(listed) - len(paths)
    names = braces_expanded(address.pattern)
    if not any(map(has_magic, names)):
        return await _looked_up(store, address, names), 0
    if address.scheme in ("http", "https"):
        raise UserError(
            f"a web server lists no files, so --data {printable(address.url)} cannot be looked up: use "
            "braces, {0000..0146}, in place of * and ?"
        )
    listed = await _listed(store, address)
    found = [path for path in listed if any(_matches(path, name) for name in names)]
    if not found:
        raise UserError(f"--data {printable(address.url)}: there is no such object")
    return {path: listed[path] for path in _with_manifests(found, listed)}, 0


async def _listed(store: Store, address: _Address) -> dict[str, Object]:
    """All objects below the folder, by path, sorted."""
    above = len(address.key(""))
    listed = {one.key[above:]: one for one in await store.listed(address.folder)}
    for path in listed:
        if any(part in ("", ".", "..") or "\0" in part for part in path.split("/")):
            raise UserError(f"{address.name(path)} has a name that no file can have: rename it")
    return dict(sorted(listed.items()))


async def _looked_up(store: Store, address: _Address, names: list[str]) -> dict[str, Object]:
    """Objects that are named one by one, and the manifests of those that may have one."""
    paths = _with_manifests(names, None)
    objects = await together(store.looked_up, map(address.key, paths), _LOOKUPS)
    found = dict(zip(paths, objects, strict=True))
    missing = [path for path in names if found[path] is None]
    if missing or not names:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        name = address.name(missing[0]) if missing else printable(address.url)
        raise UserError(f"{name} does not exist{more}: check the address")
    return {path: one for path, one in found.items() if one is not None}


def _with_manifests(paths: list[str], known: dict[str, Object] | None) -> list[str]:
    """Paths, each packed file followed by its manifest, if that is known; None: all may be."""
    return [
        name
        for path in paths
        for name in (path, f"{path}.json")
        if name == path or (path.endswith(".beton") and (known is None or name in known))
    ]


def _wanted(listed: dict[str, Object]) -> list[str]:
    """The objects that a storage may want: shards, and what belongs to them."""
    seen = [path for path in listed if not any(is_hidden(part) for part in path.split("/"))]
    shards = [path for path in seen if path.endswith(_SHARDS)]
    if any(_kind(path) == "train" for path in shards):  # then nobody uses the test split
        shards = [path for path in shards if _kind(path) != "test"]
    folders = {folder for path in shards for folder in PurePosixPath(path).parents}
    beside = [
        path for path in seen if path.endswith(_BESIDE) and PurePosixPath(path).parent in folders
    ]
    return sorted({*shards, *beside})


def _in_place(address: _Address, paths: list[str]) -> list[str]:
    """The objects that lie where storages look for them: in the folder itself, or in one of a split.

    Raises:
        UserError: there are none; says where they are.
    """
    places = {name for names in SPELLINGS.values() for name in names} | {_OF_HUB}
    found = [
        path
        for path in paths
        if (parts := path.split("/"))
        and (len(parts) == 1 or (len(parts) == 2 and parts[0].casefold() in places))
    ]
    if any(path.endswith(_SHARDS) for path in found):
        return found
    first = next(path for path in paths if path.endswith(_SHARDS))
    folders = first.split("/")[:-1]
    if folders[-1].casefold() in places:
        folders.pop()
    url = printable(address.url)
    raise UserError(f"{url} has {printable(first)}: pass {url.rstrip('/')}/{'/'.join(folders)}")


def _kind(path: str) -> str | None:
    """The split that the first folder of a path, or its file, is of."""
    return kind_of(path.split("/", 1)[0].partition(".")[0])


def _is_pattern(part: str) -> bool:
    return "{" in part or has_magic(part)


def _matches(path: str, pattern: str) -> bool:
    parts, patterns = path.split("/"), pattern.split("/")
    return len(parts) == len(patterns) and all(map(fnmatchcase, parts, patterns))


def _nothing(address: _Address, others: list[str]) -> str:
    url = printable(address.url)
    if not others:
        return f"there is nothing at {url}: check the address"
    more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
    return (
        f"{url} has {printable(others[0])}{more}, but no {', '.join(_SHARDS[:-1])} or {_SHARDS[-1]}: "
        "make tars or packed files of the images"
    )
