"""Whether torch.compile works on this machine."""

import os
import shutil
import sysconfig
from pathlib import Path


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
    # The scheme that Triton and Inductor use: the folder of Debian's default scheme is empty.
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    if not (Path(sysconfig.get_paths(scheme)["include"]) / "Python.h").exists():
        return f"install python{sysconfig.get_python_version()}-dev, for Python.h"
    return None
