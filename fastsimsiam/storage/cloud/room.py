"""Room for a data set in the cache: how large the cache may become, and what is removed for it."""

import math
import os
import shutil
from contextlib import ExitStack

from fastsimsiam.errors import UserError
from fastsimsiam.storage.cloud.cache import FOLDER, LIST, USE_LOCK, Copy, Objects, held, size_text
from fastsimsiam.system.lock import LockedError, locked
from fastsimsiam.system.text import printable

LIMIT = "FASTSIMSIAM_CLOUD_CACHE_GB"
"""Environment variable: the gigabytes that the cache may have."""
_ROOM_LOCK = "room.lock"


def make_room(copy: Copy, objects: Objects) -> None:
    """Makes room for a data set, by removing others that nobody uses, the least recently used first.

    Keeps its list, too: others leave it the room from then on.

    Raises:
        UserError: it does not fit the limit or the disk; says what is needed and what is there.
    """
    root = copy.folder.parent
    needed = sum(one.size for one in objects.values())
    missing = needed - copy.bytes_here(objects)
    limit = _limit()
    with ExitStack() as stack:
        stack.enter_context(held(root / _ROOM_LOCK))
        unused: list[Copy] = []
        used = 0
        for listing in sorted(root.glob(f"*/{LIST}"), key=lambda file: file.stat().st_mtime_ns):
            other = Copy(listing.parent, "")
            if other.folder == copy.folder:
                continue
            try:
                stack.enter_context(locked(other.folder / USE_LOCK))
                unused.append(other)
            except (LockedError, OSError):  # it may still be fetched
                planned = sum(one.size for one in other.listed()[0].values())
                used += max(planned, other.bytes_of_all())
        removable = sum(other.bytes_of_all() for other in unused)
        free = shutil.disk_usage(root).free
        if needed + used > limit:
            others = f", and runs use {size_text(used)} of it for other data sets" if used else ""
            raise UserError(
                f"{printable(copy.url)} has {size_text(needed)}, more than {LIMIT} allows "
                f"({size_text(limit)}{others}): raise it, or name fewer files"
            )
        if missing > free + removable:
            raise UserError(
                f"{printable(copy.url)} needs {size_text(missing)}, and {printable(root)} has "
                f"{size_text(free + removable)} free: free some space, or set {FOLDER} to a folder on "
                "a larger disk"
            )
        excess = max(needed + used + removable - limit, missing - free)
        for other in unused:
            if excess > 0:
                excess -= other.remove_some(math.ceil(excess))
        copy.keep_list(objects, copy.listed()[1])


def _limit() -> float:
    text = os.environ.get(LIMIT)
    if not text:
        return math.inf
    try:
        limit = float(text) * 1e9
    except ValueError:
        limit = math.nan
    if not limit > 0:
        raise UserError(f"{LIMIT} is {printable(text)}: give a number of gigabytes")
    return limit
