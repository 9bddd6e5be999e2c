"""What all benchmarks share: one process per run, shuffled order, raw samples in the result file."""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from fastsimsiam.config import renamed
from fastsimsiam.doctor.synthetic import synthetic_photographs
from fastsimsiam.system.hardware import commit, cpu_name, versions
from fastsimsiam.system.resources import num_cores

INCOMPLETE = 3
"""Exit code of a benchmark that wrote a result, but without some of the requested configurations."""

_SYNTHETIC_PHOTOGRAPHS = 512
"""Photographs to write where there are none: as many as the largest batch of a benchmark."""


def machine() -> dict[str, Any]:
    """Date, commit, library versions, CPU and GPU: the context of a measurement."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "python": platform.python_version(),
        "versions": versions(),
        "cpu": cpu_name(),
        "cores": num_cores(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def regime_parser(description: str | None, *, repeats: int = 5) -> argparse.ArgumentParser:
    """A command line with the options of benchmarks that start a process per run."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--repeats", type=int, default=repeats, help=f"runs of each configuration ({repeats})"
    )
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    return parser


def part_parser(description: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """A command line with the options of benchmarks that alternate candidates in one process."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument(
        "--rounds", type=int, default=rounds, help=f"timings of each candidate ({rounds})"
    )
    return parser


def add_data(parser: argparse.ArgumentParser) -> None:
    """Adds `--data`, the photographs to read."""
    test_data = os.environ.get("FASTSIMSIAM_TEST_DATA")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(test_data) / "photos" if test_data else None,
        help="class folders of photographs (FASTSIMSIAM_TEST_DATA/photos where that is set, "
        "otherwise synthetic photographs)",
    )


def photographs(args: argparse.Namespace) -> Path:
    """The folder of `--data`, or one of synthetic photographs, which `args.data` then names."""
    if args.data is None:
        args.data = synthetic_photographs(_SYNTHETIC_PHOTOGRAPHS)
        print(f"no --data: synthetic photographs in {args.data}", file=sys.stderr)
    folder: Path = args.data
    return folder


def run_all(
    module: str, names: Sequence[str], repeats: int, arguments: Sequence[str]
) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """Runs `python -m MODULE --measure NAME` for every name, `repeats` times, in shuffled order.

    Returns:
        name -> the last line of each run's output, a JSON object; and the names that failed. A name is
        left out with all its runs if one of them fails; the others are measured nevertheless.

    Raises:
        SystemExit: all have failed.
    """
    jobs = [name for name in names for _ in range(repeats)]
    random.Random(0).shuffle(jobs)
    samples: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    failed: list[str] = []
    for number, name in enumerate(jobs, start=1):
        print(f"[{number}/{len(jobs)}] {name}", file=sys.stderr, flush=True)
        if name in failed:
            continue
        process = subprocess.run(
            [sys.executable, "-m", module, "--measure", name, *arguments],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if process.returncode:
            print(f"{name}: FAILED with code {process.returncode}, left out", file=sys.stderr)
            del samples[name]
            failed.append(name)
            continue
        samples[name].append(json.loads(process.stdout.splitlines()[-1]))
    if not samples:
        raise SystemExit(f"{module}: every configuration failed, nothing was measured")
    return samples, failed


def fastsimsiam(*arguments: object) -> None:
    """Runs `fastsimsiam` with these arguments; raises CalledProcessError if it fails."""
    argv = [str(argument) for argument in arguments]
    subprocess.run([sys.executable, "-m", "fastsimsiam", *argv], check=True)


def to_argv(args: argparse.Namespace, keys: Sequence[str]) -> list[str]:
    """Parsed options as arguments of another command line, without those that are None."""
    return [
        argument
        for key in keys
        if getattr(args, key) is not None
        for argument in (f"--{key.replace('_', '-')}", str(getattr(args, key)))
    ]


def summary(samples: Sequence[float]) -> dict[str, float]:
    """Median and spread (largest minus smallest over the median)."""
    median = statistics.median(samples)
    return {"median": median, "spread": (max(samples) - min(samples)) / median}


def conclude(
    args: argparse.Namespace, result: dict[str, Any], table: Callable[[dict[str, Any]], str]
) -> None:
    """Writes the result to the file of `--json` and prints it as a table.

    Raises:
        SystemExit: with code INCOMPLETE if `result["failed"]` names a configuration.
    """
    if args.json:
        write_result(args.json, result)
    print(table(result))
    if result.get("failed"):
        sys.exit(INCOMPLETE)


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Writes a result file: the command, the machine, the result."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Results are published: of absolute paths only the file name is kept.
    argv = [Path(word).name if word.startswith("/") else word for word in sys.orig_argv[2:]]
    command = " ".join(["python -m", *argv])
    path.write_text(
        json.dumps({"command": command, "machine": machine(), **result}, indent=1) + "\n"
    )


def read_result(path: Path) -> dict[str, Any]:
    """Reads a result file, with today's names of loaders.

    Files under benchmarks/results/ stay as they were measured. Earlier versions called the loader `cpu`
    `folder` and `cpu-color` `folder-colour`, and stored nvJPEG as a `decoder` of `folder`. The command
    and a forecast's report of the doctor are returned as they were written.
    """
    result: dict[str, Any] = json.loads(path.read_text())
    if result.get("regime") in ("loader", "loss-curves"):
        result = _with_current_keys(result)
    elif result.get("regime") == "train":
        decoder, loader = result.pop("decoder", "cpu"), result["loader"]
        result["loader"] = "nvjpeg" if decoder == "nvjpeg" else renamed.LOADERS.get(loader, loader)
    return result


def _with_current_keys(value: Any) -> Any:
    """The same with renamed keys, at every depth."""
    if isinstance(value, list):
        return [_with_current_keys(item) for item in value]
    if isinstance(value, dict):
        return {
            key.replace("folder", "cpu").replace("colour", "color"): _with_current_keys(item)
            for key, item in value.items()
        }
    return value
