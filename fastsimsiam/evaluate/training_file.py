"""The file of a supervised training: written after each epoch, and what a training resumes from."""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.supervised import SupervisedState
from fastsimsiam.runs.archive import read_stored, write_atomically
from fastsimsiam.system.files import require_file, require_writable

_SHORT = 40
"""Letters of a value that a message shows."""


class TrainingFile:
    """A file in the folder of `--out`.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path, what: str) -> None:
        """Takes the file's path, and what messages call its content."""
        self.path = path
        self._what = what

    @classmethod
    def open(cls, out: Path, resume: bool, *, name: str, what: str) -> "TrainingFile":
        """The file in a folder, checked before anything is opened.

        Args:
            out: folder of `--out`.
            resume: whether a training goes on.
            name: of the file.
            what: what messages call its content: `linear evaluation`.

        Raises:
            UserError: it cannot be written, is there without `resume`, or is missing with it.
        """
        if out.exists() and not out.is_dir():
            raise UserError(f"--out {out} is a file: pass a folder")
        path = out / name
        if resume:
            require_file(path, what, "drop --resume to start a new one")
        elif path.exists():
            raise UserError(
                f"--out {out} already holds a {what}: pass --resume to continue it, or another --out"
            )
        require_writable(path, "--out", make_folder=True)
        return cls(path, what)

    def save(
        self,
        identity: Mapping[str, Any],
        values: Mapping[str, Any],
        state: SupervisedState,
        warn: Callable[[str], None] | None,
    ) -> None:
        """Saves the state; goes on if that fails and `warn` is given, for the score's sake.

        Args:
            identity: what must be equal when the training is resumed.
            values: what a user of the weights needs beside them.
            state: after an epoch.
            warn: told that an epoch could not be saved; None: that is an error.

        Raises:
            UserError: the file cannot be written, and there is no `warn`.
        """
        try:
            write_atomically(self.path, {"identity": identity, **values, **state.state_dict()})
        except UserError as error:
            if warn is None:
                raise
            reason = str(error).partition(": ")[0]
            warn(f"{reason}: epoch {state.epoch} is not saved, the {self._what} goes on")

    def restore(self, state: SupervisedState, identity: Mapping[str, Any]) -> None:
        """Restores the state of the file.

        Raises:
            UserError: the file is damaged, holds something else, or was made in another way.
        """
        stored = read_stored(self.path)
        old = stored.get("identity")
        if not isinstance(old, dict):
            raise UserError(f"--resume: {self.path} is not a {self._what}: pass another --out")
        differing = [key for key in {**identity, **old} if old.get(key) != identity.get(key)]
        if differing:
            changes = [_change(key, old.get(key), identity.get(key)) for key in differing]
            raise UserError(
                f"--resume: {self.path} was made with another {', '.join(changes)}: pass the old "
                "one, or another --out"
            )
        try:
            state.load_state_dict(stored)
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"--resume: {self.path} is damaged: pass another --out") from error


def _change(key: str, old: Any, new: Any) -> str:
    """What differs, with its parts and values where they are short: `optimizer (lr 0.1 -> 0.5)`."""
    if isinstance(old, dict) and isinstance(new, dict):
        parts = [part for part in {**old, **new} if old.get(part) != new.get(part)]
        return f"{key} ({', '.join(f'{p} {old.get(p)} -> {new.get(p)}' for p in parts)})"
    texts = str(old), str(new)
    if max(map(len, texts)) > _SHORT:
        return key
    return f"{key} ({texts[0]} -> {texts[1]})"


def digest(module: nn.Module) -> str:
    """Hash of every bit of a module's state."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        bits: Tensor = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(bits.numpy().tobytes())
    return digest.hexdigest()
