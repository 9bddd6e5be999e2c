"""The folder of a run: whose it is, and who writes to it.

A run first writes `run.lock`, which says that the folder is a run's, and holds a lock on it to its end.
"""

import json
import os
import re
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from fastsimsiam.errors import UserError
from fastsimsiam.runs.checkpoint import FOLDER
from fastsimsiam.runs.metrics import METRICS_FILE, SUMMARY_FILE, read_metrics, read_summary
from fastsimsiam.system.files import advice, kind_of, read_text, remove_leftovers
from fastsimsiam.system.lock import LockedError, locked
from fastsimsiam.version import __version__

_Content = TypeVar("_Content")
LOCK_FILE = "run.lock"
IMAGES_FILE = "images.npz"
"""The images that a run is trained on, see `storage.record`."""
_LOG_FILE = "log.txt"
_FILES = (LOCK_FILE, _LOG_FILE, METRICS_FILE, SUMMARY_FILE, IMAGES_FILE, "curves.png", "trace.json")
_FOLDERS = (FOLDER, "tensorboard")
_MARK = "fastsimsiam"
# The first line of the log of versions that wrote no lock.
_FIRST_LINE = re.compile(r"loader \w+ \(.*\); device ")
_CHECKPOINT = re.compile(r"step-[0-9]{8,}\.pt(\..*)?")


def require_own(out: Path) -> None:
    """Refuses a folder with files that a run would overwrite although no run has written them.

    A folder that does not exist, is empty, or holds files of other names is as good as one of a run.

    Raises:
        UserError: names the file, or says why the folder cannot be read.
    """
    try:
        if not os.path.lexists(out):
            return
        if not out.exists():
            raise UserError(f"--out {out} is a link that leads nowhere: pass another folder")
        if not out.is_dir():
            kind = kind_of(out.stat().st_mode)
            raise UserError(f"--out {out} is {kind}, not a folder: pass another --out")
        with os.scandir(out) as entries:
            found = {
                entry.name: entry.stat(follow_symlinks=False)
                for entry in entries
                if entry.name in (*_FILES, *_FOLDERS)
            }
    except OSError as error:
        raise UserError(
            f"--out {out} cannot be read ({error.strerror}): {advice(error)}"
        ) from error
    # A run that was killed before its first write has left the lock's file empty.
    mattering = {name for name, status in found.items() if name != LOCK_FILE or status.st_size}
    if mattering and not _is_run(out):
        first = min(mattering, key=lambda name: (*_FILES, *_FOLDERS).index(name))
        raise UserError(
            f"--out {out} holds {first}, which no run of fastsimsiam has written and this one would "
            "overwrite: pass another --out"
        )
    for name, status in found.items():
        # A folder may be a link to a larger disk. A file that is one may lead to somebody's own.
        is_folder_link = name in _FOLDERS and (out / name).is_dir()
        mode = stat.S_IFDIR if is_folder_link else status.st_mode
        if not (stat.S_ISDIR if name in _FOLDERS else stat.S_ISREG)(mode):
            expected = "a folder" if name in _FOLDERS else "a file"
            raise UserError(
                f"--out {out}: {out / name} is {kind_of(mode)}, not {expected}: remove it"
            )


def _is_run(out: Path) -> bool:
    """Whether the folder is that of a run, also of one that was killed at its start."""
    if _owner(out) is not None:
        return True
    # Runs of version 0.1 wrote no lock.
    try:
        if any(_CHECKPOINT.fullmatch(name) for name in os.listdir(out / FOLDER)):
            return True
    except OSError:
        pass
    summary = _attempt(lambda: read_summary(out)) or {}
    metrics = _attempt(lambda: read_text(out / METRICS_FILE)) or ""
    log = _attempt(lambda: read_text(out / _LOG_FILE)) or ""
    return (
        {"config", "steps"} <= summary.keys()
        or bool(read_metrics(metrics)[0])
        or bool(_FIRST_LINE.match(log))
    )


def _attempt(read: Callable[[], _Content]) -> _Content | None:
    try:
        return read()
    except UserError:
        return None


def _owner(out: Path) -> dict[str, object] | None:
    """What the last run has written to the lock's file; None if no run has."""
    text = _attempt(lambda: read_text(out / LOCK_FILE))
    if text is None:
        return None
    try:
        owner = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return owner if isinstance(owner, dict) and _MARK in owner else None


@contextmanager
def claimed(out: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Makes a run's folder and keeps other runs out of it to the end of the block.

    The lock ends with the process, however it ends. What killed runs have left half written is removed.

    Args:
        out: the folder.
        say: receives a warning where the file system has no locks.

    Raises:
        UserError: another run writes to the folder, the folder is not a run's, or it cannot be written.
    """
    with ExitStack() as stack:
        try:
            out.mkdir(parents=True, exist_ok=True)
            descriptor, no_locks = stack.enter_context(locked(out / LOCK_FILE))
            owner = {_MARK: __version__, "pid": os.getpid(), "host": socket.gethostname()}
            text = json.dumps(owner).encode() + b"\n"
            os.pwrite(descriptor, text, 0)
            os.ftruncate(descriptor, len(text))
        except LockedError as error:
            other = _owner(out) or {}
            who = f" (process {other['pid']} on {other.get('host')})" if "pid" in other else ""
            raise UserError(
                f"--out {out} is in use by another run{who}: wait for its end, or pass another --out"
            ) from error
        except OSError as error:
            raise UserError(
                f"cannot write to --out {out} ({error.strerror}): {advice(error)}"
            ) from error
        if no_locks:
            say(
                f"WARNING: the file system of {out} has no locks ({no_locks}): start no second run "
                "there before this one has ended"
            )
        for folder, names in (
            (out, "|".join(map(re.escape, _FILES))),
            (out / FOLDER, r"step-\d+\.pt"),
        ):
            remove_leftovers(folder, names, also_old=not no_locks)
        yield
