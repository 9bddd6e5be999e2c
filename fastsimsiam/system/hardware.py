"""The machine and its software, for reports: versions, optional libraries, processors, memory."""

import importlib.util
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from fastsimsiam.system.compiler import why_compile_fails
from fastsimsiam.system.optional import has_dali, has_ffcv
from fastsimsiam.system.resources import container_limits, host_memory, num_cores
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
    """Versions of the installed packages that affect measurements."""
    installed = {}
    for name in _PACKAGES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed


def commit() -> str | None:
    """The commit of the source tree that holds this package; None for an installed package."""
    root = Path(__file__).parents[2]
    if not (root / "pyproject.toml").is_file() or shutil.which("git") is None:
        return None
    git = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    return git.stdout.strip() or None


def cpu_name() -> str:
    """The processor's name, with family and model: clouds shorten the name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    fields: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    if "model name" not in fields:
        return platform.processor()
    numbers = [f"{key} {fields[key]}" for key in ("cpu family", "model") if key in fields]
    return ", ".join([fields["model name"], *numbers])


def _driver() -> str | None:
    """Version of NVIDIA's driver; torch has no function for it."""
    if shutil.which("nvidia-smi") is None:
        return None
    smi = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    )
    return smi.stdout.splitlines()[0].strip() if smi.stdout.strip() else None


def gpus() -> list[dict[str, Any]]:
    """Every CUDA device: name, total and free memory in bytes, compute capability."""
    devices = []
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        major, minor = torch.cuda.get_device_capability(number)
        devices.append(
            {
                "name": torch.cuda.get_device_name(number),
                "memory": total,
                "free": free,
                "capability": f"{major}.{minor}",
            }
        )
    return devices


def describe() -> dict[str, Any]:
    """Everything in this module, as a report stores it."""
    return {
        "fastsimsiam": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "versions": versions(),
        "optional": {
            "ffcv": has_ffcv(),
            "dali": has_dali(),
            "compiler": why_compile_fails("cuda" if torch.cuda.is_available() else "cpu") is None,
            "matplotlib": importlib.util.find_spec("matplotlib") is not None,
        },
        "cpu": cpu_name(),
        "cores": num_cores(),
        "memory": host_memory(),
        "limits": container_limits(),
        "cuda": torch.version.cuda,
        "driver": _driver(),
        "gpus": gpus(),
    }
