"""Files of `torch.save`: checked as a whole, read without running code, written whole or not at all.

Such a file is a zip archive with a checksum for each of its records, which `torch.load` does not look
at. Tensors are mapped while they are read, so that a size that the file claims cannot reach beyond it.
"""

import errno
import os
import pickle
import pickletools
import re
import shlex
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from fastsimsiam.errors import DamagedError, UserError
from fastsimsiam.runs.other_files import torch_script, what_else
from fastsimsiam.runs.stand_ins import STAND_INS, without_stand_ins
from fastsimsiam.system.files import written_whole

_CHUNK = 1 << 20
_SHOWN = 3
_FORBIDDEN = re.compile(r"GLOBAL (\S+)")
# Where other packages keep the weights in their files, see `evaluate.pretrained`.
_WEIGHTS = ("state_dict", "model", "model_state_dict")
# What zipfile, pickle and torch raise on the bytes of other files.
_NOT_A_FILE_OF_TORCH = (
    RuntimeError,
    EOFError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    pickle.UnpicklingError,
)


class DamagedCheckpointError(DamagedError):
    """A file that cannot be read as a checkpoint, unlike one of another version or method."""


def read_stored(path: Path) -> dict[str, Any]:
    """Reads what `torch.save` wrote, with tensors on the CPU; runs no code from the file.

    Raises:
        DamagedCheckpointError: the file is damaged, or does not hold a dict.
        UserError: the system cannot read the file, or it holds objects whose loading could run code.
    """
    sizes = check_records(path)
    try:
        mapped = bool(sizes)
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(STAND_INS)):
            warnings.simplefilter("ignore")  # of torch about its own older formats
            stored = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        if mapped:
            stored = _copied(stored, sizes, {})
        stored = without_stand_ins(stored)
    except OSError as error:
        raise _unreadable(path, error) from error
    except _NOT_A_FILE_OF_TORCH as error:
        raise _refusal(path, error) from error
    if not isinstance(stored, dict):
        raise DamagedCheckpointError(
            f"{path} holds no weights: expected a checkpoint or a state dict"
        )
    return stored


def check_records(path: Path) -> frozenset[int]:
    """Compares all bytes of a file of `torch.save` with its checksums; reads it once.

    Files without checksums pass: those of torch before 1.6, or written with `compute_crc32` off.

    Returns:
        The sizes of its records; none for a file of torch before 1.6.

    Raises:
        DamagedCheckpointError: bytes have changed, or the file is cut off.
        UserError: the system cannot read the file.
    """
    try:
        if not _is_archive(path):
            return frozenset()  # the format before 1.6, or no checkpoint at all
        with open(path, "rb") as file:
            return _check_archive(file, path)
    except UserError:
        raise
    except OSError as error:
        raise _unreadable(path, error) from error
    except (
        RuntimeError,
        EOFError,
        LookupError,
        ValueError,
        OverflowError,
        struct.error,
        zlib.error,
        zipfile.BadZipFile,
    ) as error:
        raise DamagedCheckpointError(
            f"{path} is damaged: it is cut off or its content has changed"
        ) from error


def _is_archive(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _check_archive(file: IO[bytes], path: Path) -> frozenset[int]:
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        size = os.fstat(file.fileno()).st_size
        if any(record.filename.endswith("/constants.pkl") for record in records):
            raise UserError(f"{path} is {torch_script(path)}")
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise DamagedCheckpointError(
                f"{path} is a compressed archive, which torch.save does not write: unpack it"
            )
        if sum(record.file_size for record in records) > size:
            raise DamagedCheckpointError(
                f"{path} is damaged: its records claim more bytes than it has"
            )
        for record in records if any(record.CRC for record in records) else ():
            with archive.open(record) as content:
                while content.read(_CHUNK):
                    pass
        return frozenset(record.file_size for record in records)


def _unreadable(path: Path, error: OSError) -> UserError:
    reason = error.strerror or str(error)
    # The disk has lost it, or it says of itself that it continues before its start.
    if error.errno in (errno.EIO, errno.EINVAL):
        return DamagedCheckpointError(f"{path} is damaged: it cannot be read ({reason})")
    return UserError(f"{path} cannot be read ({reason}): make it readable, then try again")


def _refusal(path: Path, error: BaseException) -> UserError:
    """What to tell of a file that torch refuses; names the types that could run code."""
    with open(path, "rb") as file:
        head = file.read(1024)
    if what := what_else(path, head):
        return DamagedCheckpointError(f"{path} is {what}")
    # Of bytes that are no pickle, some letters may stand where a name would.
    names = [n for n in _FORBIDDEN.findall(str(error)) if "." in n or _is_archive(path)]
    if not isinstance(error, pickle.UnpicklingError) or not names:
        return DamagedCheckpointError(
            f"{path} is damaged or no checkpoint: expected a file that torch.save wrote, of tensors "
            "and plain values alone"
        )
    # torch's message leaves out the module of what Python itself has.
    forbidden = [names[0], *sorted(_unsafe(path) - {names[0], f"builtins.{names[0]}"})]
    more = f" and {len(forbidden) - _SHOWN} more" if len(forbidden) > _SHOWN else ""
    target = path.with_name(f"{path.name.partition('.')[0]}-weights.pth")
    code = (
        f'import torch; stored = torch.load({_quoted(path)}, map_location="cpu", '
        f"weights_only=False); weights = {_expression(_opcodes(path))}; torch.save("
        f'weights.state_dict() if hasattr(weights, "state_dict") else weights, {_quoted(target)})'
    )
    return UserError(
        f"{path} holds objects of {', '.join(forbidden[:_SHOWN])}{more}, which are not loaded: that "
        f"could run code. If you trust the file, take the weights out of it: python -c "
        f"{shlex.quote(code)}"
    )


def _quoted(path: Path) -> str:
    """A path as a string of Python, in double quotes where that is possible."""
    text = repr(str(path))
    return text if '"' in text else f'"{text[1:-1]}"'


def _opcodes(path: Path) -> list[tuple[str, str]]:
    """The pickle's opcodes up to its end or first damage, as (name, its text); GLOBALs as a.b."""
    found: list[tuple[str, str]] = []
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
            for opcode, argument, _ in pickletools.genops(archive.read(name)):
                text = str(argument) if isinstance(argument, str) else ""
                found.append(
                    (opcode.name, text.replace(" ", ".") if opcode.name == "GLOBAL" else text)
                )
    except (OSError, StopIteration, *_NOT_A_FILE_OF_TORCH):
        pass
    return found


def _unsafe(path: Path) -> set[str]:
    try:
        return set(torch.serialization.get_unsafe_globals_in_checkpoint(path)) - {
            name for _, name in STAND_INS
        }
    except (OSError, *_NOT_A_FILE_OF_TORCH):
        return set()


def _expression(opcodes: list[tuple[str, str]]) -> str:
    """Python that takes the weights out of `stored`, the content of a file with these opcodes."""
    first = next((text for name, text in opcodes if name not in ("PROTO", "FRAME")), "")
    if first and first != "collections.OrderedDict":
        return "stored"  # a whole module
    texts = {text for name, text in opcodes if name == "BINUNICODE"}
    wrapper = next((name for name in _WEIGHTS if name in texts), None)
    if wrapper:
        return f'stored["{wrapper}"]'
    return "{k: v for k, v in stored.items() if isinstance(v, torch.Tensor)}"


def _copied(value: Any, sizes: frozenset[int], storages: dict[int, torch.UntypedStorage]) -> Any:
    """Replaces tensors in the mapped file by tensors in memory; those that share memory still do.

    Raises:
        ValueError: the memory of a tensor is not that of a record.
    """
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_quantized or not value.numel():
            return value.detach().clone()
        storage = value.untyped_storage()
        key = storage.data_ptr()
        if storage.nbytes() not in sizes:
            raise ValueError("the memory of a tensor is not a record")
        if key not in storages:
            clone: Callable[[], torch.UntypedStorage] = storage.clone  # untyped in torch
            storages[key] = clone()
        elif storages[key].nbytes() != storage.nbytes():
            raise ValueError("one record has two sizes")
        with torch.no_grad():
            copy = torch.empty(0, dtype=value.dtype).set_(
                storages[key], value.storage_offset(), value.shape, value.stride()
            )
        return copy
    if isinstance(value, dict):
        for key, item in value.items():
            value[key] = _copied(item, sizes, storages)
    elif isinstance(value, list):
        value[:] = [_copied(item, sizes, storages) for item in value]
    elif type(value) is tuple:
        return tuple(_copied(item, sizes, storages) for item in value)
    return value


def write_atomically(path: Path, content: Mapping[str, Any]) -> None:
    """Writes tensors and plain values by `torch.save`, reads the file again; see `written_whole`.

    Raises:
        UserError: the file cannot be written, the disk is full for instance.
    """
    with written_whole(path, "checkpoint", then="then go on with --resume") as file:
        with open(file, "wb") as handle:
            writer = _Writer(handle)
            checksums = torch.serialization.get_crc32_options()
            torch.serialization.set_crc32_options(True)
            try:
                torch.save(content, cast(IO[bytes], writer))
            except RuntimeError as error:  # torch tells its position in place of the reason
                if writer.error is None:
                    raise
                raise writer.error from error
            finally:
                torch.serialization.set_crc32_options(checksums)
        try:
            check_records(file)
        except DamagedCheckpointError as error:
            raise OSError(errno.EIO, "what was written cannot be read again") from error


class _Writer:
    """A file for `torch.save` that keeps the system's error, which torch drops."""

    error: OSError | None = None

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        try:
            self._file.flush()
        except OSError as error:
            self.error = error
            raise
