"""Whether torch.compile works on this machine."""

import functools
import importlib.util
import os
import shutil
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

_ROOM = 8 << 20
"""Bytes for the compiled programs; those of a step take half of it."""


def why_compile_fails(device_type: str) -> str | None:
    """What to install for torch.compile to work on this machine; None where it works.

    Inductor compiles C++ for a CPU; for a GPU, Triton compiles C that launches its kernels. Both
    include Python's headers, which Debian packages separately.

    Args:
        device_type: `cpu` or `cuda`.
    """
    compilers: tuple[str, ...]
    if device_type == "cuda":
        variable, compilers = "CC", ("gcc", "clang")
    else:
        variable, compilers = "CXX", ("g++",)
    if not os.environ.get(variable) and not any(map(shutil.which, compilers)):
        return f"install {compilers[0]}"
    if not any((folder / "Python.h").exists() for folder in _include_folders(variable)):
        return f"install python{sysconfig.get_python_version()}-dev, for Python.h"
    return _why_no_place()


def _include_folders(variable: str) -> Iterator[Path]:
    """Where a compiler looks for Python's headers.

    Args:
        variable: the compiler's, `CC` or `CXX`.
    """
    # The scheme that Triton and Inductor use: the folder of Debian's default scheme is empty.
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    yield Path(sysconfig.get_paths(scheme)["include"])
    # Where an administrator or a module system puts what is not with the interpreter; gcc and clang.
    own = "C_INCLUDE_PATH" if variable == "CC" else "CPLUS_INCLUDE_PATH"
    for name in ("CPATH", own):
        yield from (Path(part) for part in os.environ.get(name, "").split(os.pathsep) if part)


@functools.cache
def runs_triton(device: torch.device) -> bool:
    """Whether kernels written in Triton run on a device."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        return False
    # NVIDIA's since Ampere, which has bfloat16; and what Triton needs to compile what launches kernels.
    is_new = torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)
    return is_new and why_compile_fails("cuda") is None


def _why_no_place() -> str | None:
    """What to do about the folders of the compiler and of its results; None where they can be used."""
    try:
        temporary = tempfile.gettempdir()
    except OSError:  # none of the usual places
        return "set TMPDIR to a folder that can be written to"
    cache = os.environ.get("TORCHINDUCTOR_CACHE_DIR") or temporary
    for folder, variable in ((temporary, "TMPDIR"), (cache, "TORCHINDUCTOR_CACHE_DIR")):
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
                if file.write(bytes(_ROOM)) < _ROOM:
                    file.write(b"the reason why")
        except OSError as error:
            return (
                f"make {_ROOM >> 20} MiB of room in {folder} ({error.strerror}) or set {variable} to "
                "another folder"
            )
    if os.statvfs(cache).f_flag & getattr(os, "ST_NOEXEC", 0):
        return f"set TORCHINDUCTOR_CACHE_DIR to another folder, because no program may run from {cache}"
    return None
