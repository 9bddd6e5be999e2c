"""Whether torch.compile works on this machine."""

import os
import shutil
import sysconfig
from pathlib import Path


def why_compile_fails(device_type: str) -> str | None:
    """Names what torch.compile lacks on this machine.

    Inductor builds C++ for a CPU. For a GPU, Triton builds the C code that launches its kernels. Both
    include Python's headers, which Debian packages separately from Python.

    Args:
        device_type: `cpu` or `cuda`.

    Returns:
        What to install, such as `install g++`; None where torch.compile works.
    """
    compilers: tuple[str, ...]
    if device_type == "cuda":
        named, compilers = "CC", ("gcc", "clang")
    else:
        named, compilers = "CXX", ("g++",)
    if not os.environ.get(named) and not any(map(shutil.which, compilers)):
        return f"install {compilers[0]}"
    # Where Triton and Inductor look; Debian's own scheme names a folder that stays empty.
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    if not (Path(sysconfig.get_paths(scheme)["include"]) / "Python.h").exists():
        return f"install python{sysconfig.get_python_version()}-dev, for Python.h"
    return None
