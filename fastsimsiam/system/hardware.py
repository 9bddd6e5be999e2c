"""What there is: versions, optional parts, processors and memory."""

import importlib.util
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from fastsimsiam.system.compiler import mend_for_compiling
from fastsimsiam.system.optional import has_dali
from fastsimsiam.system.resources import host_memory, num_cores
from fastsimsiam.version import __version__

_PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "numba",
    "pillow",
    "simplejpeg",
    "ffcv",
    "nvidia-dali-cuda120",
    "nvidia-dali-cuda130",
    "torchcodec",
    "lightly",
)


def versions() -> dict[str, str]:
    """Installed packages that figures depend on, each with its version."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit of the source tree that this package lies in; None for an installed package."""
    package = Path(__file__).parent
    if not (package.parent / "pyproject.toml").is_file() or shutil.which("git") is None:
        return None
    asked = subprocess.run(
        ["git", "-C", str(package.parent), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    return asked.stdout.strip() or None


def cpu_name() -> str:
    """The processor as it calls itself, with family and model: clouds cut its name short."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    found: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        found.setdefault(key.strip(), value.strip())
    if "model name" not in found:
        return platform.processor()
    number = [f"{key} {found[key]}" for key in ("cpu family", "model") if key in found]
    return ", ".join([found["model name"], *number])


def _driver() -> str | None:
    """NVIDIA's driver, from its own tool: torch does not tell."""
    if shutil.which("nvidia-smi") is None:
        return None
    asked = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    )
    return asked.stdout.splitlines()[0].strip() if asked.stdout.strip() else None


def gpus() -> list[dict[str, Any]]:
    """Every CUDA device: name, memory in bytes (all and free), compute capability."""
    found = []
    for number in range(torch.cuda.device_count()):
        free, whole = torch.cuda.mem_get_info(number)
        major, minor = torch.cuda.get_device_capability(number)
        found.append(
            {
                "name": torch.cuda.get_device_name(number),
                "memory": whole,
                "free": free,
                "capability": f"{major}.{minor}",
            }
        )
    return found


def describe() -> dict[str, Any]:
    """All of it, for a report."""
    return {
        "fastsimsiam": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "versions": versions(),
        "optional": {
            "ffcv": importlib.util.find_spec("ffcv") is not None,
            "dali": has_dali(),
            "compiler": mend_for_compiling("cuda" if torch.cuda.is_available() else "cpu") is None,
            "matplotlib": importlib.util.find_spec("matplotlib") is not None,
        },
        "cpu": cpu_name(),
        "cores": num_cores(),
        "memory": host_memory(),
        "cuda": torch.version.cuda,
        "driver": _driver(),
        "gpus": gpus(),
    }
