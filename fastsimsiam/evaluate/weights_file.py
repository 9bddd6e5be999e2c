"""Reads the content of a file of weights, or says what the file is instead. No code in it is run."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastsimsiam.errors import UserError
from fastsimsiam.runs.archive import DamagedCheckpointError, read_stored
from fastsimsiam.runs.other_files import AGAIN, what_else
from fastsimsiam.system.files import require_file
from fastsimsiam.system.optional import require

_HEAD = 1024


def read_weights(path: Path) -> tuple[dict[str, Any], Mapping[str, str]]:
    """Reads a file by its content, whatever its name is.

    Args:
        path: a file that `torch.save` wrote, or a .safetensors file.

    Returns:
        The content, and the metadata of a .safetensors file; that of others is in the content.

    Raises:
        DamagedCheckpointError: the file is cut off, or holds something else.
        UserError: the file cannot be read.
    """
    require_file(path, "checkpoint", "pass a file of weights, or the folder of a run")
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    if what := what_else(path, head):
        raise DamagedCheckpointError(f"{path} is {what}")
    if head[8:9] == b"{" or path.suffix == ".safetensors":
        return _read_safetensors(path, head, size)
    return read_stored(path), {}


def _read_safetensors(
    path: Path, head: bytes, size: int
) -> tuple[dict[str, Any], Mapping[str, str]]:
    require("safetensors", str(path), "pip install 'fastsimsiam[export]'")
    from safetensors import SafetensorError, safe_open

    if len(head) < 8 or int.from_bytes(head[:8], "little") + 8 > size:
        raise UserError(
            f"{path} is damaged or cut off (its header is longer than its {size} bytes): {AGAIN}"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        reason = " ".join(str(error).split())[:120]
        if "not fully covered" in reason:
            reason = f"cut off: {size} bytes are not all of it"
        raise UserError(f"{path} is damaged or not a checkpoint ({reason}): {AGAIN}") from error
    return tensors, metadata
