"""What all benchmarks share: a fresh process per configuration, shuffled order, raw samples kept."""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("torch", "torchvision", "numpy", "pillow", "simplejpeg", "ffcv", "nvidia-dali-cuda130")


def machine() -> dict[str, Any]:
    """What the figures were measured on and with."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "python": platform.python_version(),
        "versions": versions,
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def run_all(
    module: str, names: Sequence[str], repeats: int, arguments: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """Runs `python -m MODULE --measure NAME` for every name, `repeats` times, in shuffled order.

    Returns:
        name -> what each run printed as its last line, a JSON object.
    """
    jobs = [name for name in names for _ in range(repeats)]
    random.Random(0).shuffle(jobs)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number, name in enumerate(jobs, start=1):
        print(f"[{number}/{len(jobs)}] {name}", file=sys.stderr, flush=True)
        done = subprocess.run(
            [sys.executable, "-m", module, "--measure", name, *arguments],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found[name].append(json.loads(done.stdout.splitlines()[-1]))
    return found


def words_of(args: argparse.Namespace, keys: Sequence[str]) -> list[str]:
    """Options of a command line, as words for another one; those that are None are left out."""
    return [
        word
        for key in keys
        if getattr(args, key) is not None
        for word in (f"--{key.replace('_', '-')}", str(getattr(args, key)))
    ]


def summary(samples: Sequence[float]) -> dict[str, float]:
    """Median and spread (largest minus smallest over the median)."""
    median = statistics.median(samples)
    return {"median": median, "spread": (max(samples) - min(samples)) / median}


def write(path: Path, result: dict[str, Any]) -> None:
    """Writes a result file with the machine beside the figures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the folders of this machine: they say nothing, and results are published.
    words = [Path(word).name if word.startswith("/") else word for word in sys.orig_argv[2:]]
    command = " ".join(["python -m", *words])
    path.write_text(
        json.dumps({"command": command, "machine": machine(), **result}, indent=1) + "\n"
    )
