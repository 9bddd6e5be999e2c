"""Checkpoints: written atomically, the newest good ones kept, read without running code."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from fastsimsiam.config.run import Config
from fastsimsiam.config.stored import differing_keys, from_dict, to_dict
from fastsimsiam.errors import DamagedError, UserError
from fastsimsiam.runs.archive import (
    DamagedCheckpointError,
    check_records,
    read_stored,
    write_atomically,
)
from fastsimsiam.runs.checkpoint_values import CHECKPOINT_NAME, require_possible_values

FORMAT = 1
"""Version of the file format, in every checkpoint of this package."""
_Read = TypeVar("_Read")
FOLDER = "checkpoints"
"""Folder of the checkpoints in a run's folder."""
_KEYS = ("config", "step", "data", "method", "optimizer", "rng")
_DAMAGED = ".damaged"

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A state from which a run continues as if it had never stopped.

    Attributes:
        config: the run's configuration.
        step: optimizer steps done.
        data: fingerprint of the training images, see `storage.base.fingerprint`.
        method: the method's state dict.
        optimizer: the optimizer's state dict.
        rng: states of torch's generators, for networks with dropout.
        seconds: duration of the run so far, over all resumes.
        ranks: number of processes that trained; None in files of earlier versions.
    """

    config: Config
    step: int
    data: str
    method: dict[str, Any]
    optimizer: dict[str, Any]
    rng: dict[str, torch.Tensor]
    seconds: float = 0.0
    ranks: int | None = None


def load(path: Path) -> Checkpoint:
    """Reads a checkpoint, with tensors on the CPU; every byte is compared with its checksum.

    Raises:
        DamagedCheckpointError: the file is damaged.
        UserError: the file is missing, cannot be read, or is no checkpoint of this package.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}: pass a file DIR/checkpoints/step-*.pt")
    return from_stored(read_stored(path), path)


def from_stored(stored: dict[str, Any], path: Path) -> Checkpoint:
    """Makes a checkpoint from the content of its file.

    Raises:
        DamagedCheckpointError: a part is missing or is not what it should be.
        UserError: another package or version wrote it.
    """
    version = stored.get("format")
    if type(version) is not int or version != FORMAT:
        of = f"format {version}" if isinstance(version, int) else "no format"
        raise UserError(
            f"{path} is not a checkpoint of this version of fastsimsiam: it has {of}, this version "
            f"reads format {FORMAT}"
        )
    missing = [key for key in _KEYS if key not in stored]
    if missing:
        raise DamagedCheckpointError(f"{path} is damaged: it lacks {', '.join(missing)}")
    require_possible_values(stored, path)
    try:
        config = from_dict(stored["config"])
    except DamagedError as error:
        raise DamagedCheckpointError(f"{path}: {error}") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return Checkpoint(
        config=config,
        seconds=float(stored.get("seconds", 0.0)),
        ranks=stored.get("ranks"),
        **{key: stored[key] for key in _KEYS if key != "config"},
    )


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Writes a checkpoint; see `write_atomically`."""
    write_atomically(
        path,
        {
            "format": FORMAT,
            "config": to_dict(checkpoint.config),
            "step": checkpoint.step,
            "data": checkpoint.data,
            "method": checkpoint.method,
            "optimizer": checkpoint.optimizer,
            "rng": checkpoint.rng,
            "seconds": checkpoint.seconds,
            "ranks": checkpoint.ranks,
        },
    )


class CheckpointStore:
    """The checkpoints of one run, in `OUT/checkpoints/step-NNNNNNNN.pt`.

    What counts is whether a file is good, not its step: a damaged one is set aside when the run is
    resumed (`NAME.damaged`), and neither counts as newest nor as one of those to keep.

    Attributes:
        say: receives warnings about files that are found damaged while the run saves.
    """

    def __init__(self, out: Path, keep: int) -> None:
        """Takes the run's folder and the number of the newest good files to keep."""
        self._folder = out / FOLDER
        self._keep = keep
        self._good: dict[Path, tuple[int, ...]] = {}
        self.say: Say = lambda text: None

    def paths(self) -> list[Path]:
        """All checkpoints by step, good or not.

        Raises:
            UserError: the folder cannot be read.
        """
        try:
            with os.scandir(self._folder) as entries:
                names = [entry.name for entry in entries if entry.is_file()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise UserError(
                f"{self._folder} cannot be read ({error.strerror}): make it readable, then try again"
            ) from error
        steps = {
            name: int(match[1]) for name in names if (match := CHECKPOINT_NAME.fullmatch(name))
        }
        return [self._folder / name for name in sorted(steps, key=lambda name: steps[name])]

    def newest_path(self) -> Path | None:
        """The newest checkpoint whose bytes are as they were written; None if there is none."""
        return next((path for path in reversed(self.paths()) if self._is_good(path)), None)

    def save(self, checkpoint: Checkpoint) -> Path:
        """Writes a checkpoint, then removes the oldest good ones beyond `keep`.

        Raises:
            UserError: the file cannot be written; the older ones are still there.
        """
        path = self._folder / f"step-{checkpoint.step:08d}.pt"
        save(path, checkpoint)
        self._note_good(path)
        good = []
        for old in self.paths():
            if self._is_good(old):
                good.append(old)
            else:
                self.say(f"WARNING: {old} is damaged: set aside as {_set_aside(old).name}")
        for old in good[: -self._keep]:
            if old != path:
                old.unlink()
        return path

    def resume(self, say: Say, check: Callable[[Path, Checkpoint], None]) -> Path:
        """Chooses the newest good checkpoint and sets the damaged ones aside; `say` is told of them.

        Good ones beyond `keep` are removed, as after a save.

        Args:
            say: receives warnings.
            check: raises a `DamagedCheckpointError` for a checkpoint that a run cannot continue.

        Raises:
            UserError: all are damaged, or one is of another version or method; no file is touched.
        """
        good: list[Path] = []
        damaged: dict[Path, DamagedCheckpointError] = {}
        for path in reversed(self.paths()):
            try:
                check(path, load(path))
                good.append(path)
                self._note_good(path)
            except DamagedCheckpointError as error:
                damaged[path] = error
            except UserError:
                if not good:
                    raise
                good.append(path)  # older than the one that counts: left as it is
        if not good:
            raise all_damaged(self._folder, damaged)
        for path, reason in damaged.items():
            newer = int(path.stem.partition("-")[2]) > int(good[0].stem.partition("-")[2])
            rest = f"; falling back to {good[0].name}" if newer else ""
            say(f"WARNING: {reason}; set aside as {_set_aside(path).name}{rest}")
        # A process may have died between saving the newest and removing the oldest.
        for old in good[self._keep :]:
            if old in self._good:
                old.unlink()
        return good[0]

    def _note_good(self, path: Path) -> None:
        self._good[path] = _stamp(path)

    def _is_good(self, path: Path) -> bool:
        """Whether a file's bytes are as they were written; reads it unless that is known."""
        try:
            stamp = _stamp(path)
            if self._good.get(path) != stamp:
                check_records(path)
                self._good[path] = stamp
        except DamagedCheckpointError:
            return False
        except (OSError, UserError):
            return True  # it cannot be read now, which says nothing about its content
        return True


def newest_good(out: Path, say: Say, read: Callable[[Path], _Read]) -> tuple[Path, _Read]:
    """The newest good checkpoint of a run, for all who only read it; no file is touched.

    Args:
        out: folder of the run.
        say: receives a warning that names the damaged file and the one that is read in its place.
        read: reads a file, as `load` does; raises DamagedCheckpointError.

    Returns:
        The file, and what `read` makes of it.

    Raises:
        UserError: there is none, all are damaged, or the newest is of another version.
    """
    damaged: dict[Path, DamagedCheckpointError] = {}
    for path in reversed(CheckpointStore(out, keep=1).paths()):
        try:
            content = read(path)
        except DamagedCheckpointError as error:
            damaged[path] = error
            continue
        for reason in damaged.values():
            say(f"{reason}; reading {path.name} in its place")
        return path, content
    if damaged:
        raise all_damaged(out / FOLDER, damaged)
    raise UserError(
        f"there is no checkpoint in {out}: expected {out}/{FOLDER}/step-*.pt; pass the folder of a "
        "run, or a file of weights"
    )


def all_damaged(folder: Path, damaged: dict[Path, DamagedCheckpointError]) -> UserError:
    """The error for a run without a good checkpoint; tells what is wrong with the newest."""
    reason = next(iter(damaged.values()))
    return UserError(
        f"all checkpoints in {folder} are damaged ({reason}): start again with another --out"
    )


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes when a file is written."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _set_aside(path: Path) -> Path:
    """Renames a damaged file, so that it does not count; keeps what was set aside before."""
    number = 1
    target = path.with_name(path.name + _DAMAGED)
    while os.path.lexists(target):
        number += 1
        target = path.with_name(f"{path.name}{_DAMAGED}{number}")
    try:
        return path.rename(target)
    except OSError as error:
        raise UserError(
            f"cannot set aside the damaged {path} ({error.strerror}): rename or remove it"
        ) from error


def require_same_config(checkpoint: Checkpoint, config: Config) -> None:
    """Refuses to continue a checkpoint with another config.

    Raises:
        UserError: names the keys that differ.
    """
    keys = differing_keys(checkpoint.config, config)
    if keys:
        raise UserError(
            f"--resume: the checkpoint was made with another config: {', '.join(keys)}; "
            f"give the old values, or another --out"
        )
