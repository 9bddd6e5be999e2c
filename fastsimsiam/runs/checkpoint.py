"""Checkpoints: written atomically, the newest few kept, read without running code."""

import pickle
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastsimsiam.config.run import Config
from fastsimsiam.config.stored import differing_keys, from_dict, to_dict
from fastsimsiam.errors import UserError
from fastsimsiam.system.files import written_whole

FORMAT = 1
"""Version of the file format, in every checkpoint of this package."""
_KEYS = ("config", "step", "data", "method", "optimizer", "rng")
_NAME = re.compile(r"step-(\d{8})\.pt")


class DamagedCheckpointError(UserError):
    """A file that cannot be read as a checkpoint, unlike one of another version or method."""


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
    """Reads a checkpoint, with tensors on the CPU.

    Raises:
        UserError: the file is missing, damaged, or no checkpoint of this package.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}: pass a file DIR/checkpoints/step-*.pt")
    return from_stored(read_stored(path), path)


def read_stored(path: Path) -> dict[str, Any]:
    """Reads what `torch.save` wrote, with tensors on the CPU; runs no code from the file.

    Raises:
        DamagedCheckpointError: the file is damaged, or does not hold a dict.
    """
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise DamagedCheckpointError(
            f"{path} cannot be read ({error.strerror or error})"
        ) from error
    # What the unpickler raises on the bytes of other files.
    except (
        RuntimeError,
        EOFError,
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        struct.error,
        pickle.UnpicklingError,
    ) as error:
        raise DamagedCheckpointError(
            f"{path} is damaged or no checkpoint: expected a file that torch.save wrote, of "
            "tensors and plain values alone"
        ) from error
    if not isinstance(stored, dict):
        raise DamagedCheckpointError(
            f"{path} holds no weights: expected a checkpoint or a state dict"
        )
    return stored


def from_stored(stored: dict[str, Any], path: Path) -> Checkpoint:
    """Makes a checkpoint from the content of its file.

    Raises:
        UserError: another package or version wrote it.
    """
    if stored.get("format") != FORMAT:
        raise UserError(f"{path} is not a checkpoint of this version of fastsimsiam")
    missing = [key for key in _KEYS if key not in stored]
    if missing:
        raise DamagedCheckpointError(f"{path} is damaged: it lacks {', '.join(missing)}")
    try:
        config = from_dict(stored["config"])
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return Checkpoint(
        config=config,
        seconds=stored.get("seconds", 0.0),
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


def write_atomically(path: Path, content: dict[str, Any]) -> None:
    """Writes tensors and plain values by `torch.save`; see `written_whole`.

    Raises:
        UserError: the file cannot be written, the disk is full for instance.
    """
    with written_whole(path, "checkpoint", fix="free some space, then --resume") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # what torch makes of a full disk
            raise OSError(None, str(error).partition("\n")[0][:120]) from error


class CheckpointStore:
    """The checkpoints of one run, in `OUT/checkpoints/step-NNNNNNNN.pt`."""

    def __init__(self, out: Path, keep: int) -> None:
        """Takes the run's folder and the number of the newest files to keep."""
        self._folder = out / "checkpoints"
        self._keep = keep

    def paths(self) -> list[Path]:
        """All checkpoints, oldest first."""
        return sorted(p for p in self._folder.glob("step-*.pt") if _NAME.fullmatch(p.name))

    def save(self, checkpoint: Checkpoint) -> Path:
        """Writes a checkpoint, then removes the oldest ones beyond `keep`."""
        path = self._folder / f"step-{checkpoint.step:08d}.pt"
        save(path, checkpoint)
        for old in self.paths()[: -self._keep]:
            old.unlink()
        return path

    def newest(self, say: Callable[[str], None]) -> Checkpoint:
        """The newest checkpoint that can be read; `say` is told of damaged ones.

        Raises:
            UserError: all are damaged, or one is of another version or method.
        """
        for path in reversed(self.paths()):
            try:
                return load(path)
            except DamagedCheckpointError as error:
                say(f"WARNING: {error}; falling back to the checkpoint before it")
        raise UserError(
            f"all checkpoints in {self._folder} are damaged: start again with another --out"
        )


def require_same_run(checkpoint: Checkpoint, config: Config, data: str) -> None:
    """Refuses to continue a checkpoint with another config or other images.

    Raises:
        UserError: names the keys that differ.
    """
    keys = differing_keys(checkpoint.config, config)
    if keys:
        raise UserError(
            f"--resume: the checkpoint was made with another config: {', '.join(keys)}; "
            f"give the old values, or another --out"
        )
    if checkpoint.data != data:
        raise UserError(
            f"--resume: the training images changed since the checkpoint ({checkpoint.data} -> "
            f"{data}): restore them, or start again with another --out"
        )
