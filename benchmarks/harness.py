"""What all benchmarks share: a fresh process per configuration, shuffled order, raw samples kept."""

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

from fastsimsiam.doctor.synthetic import synthetic_photographs
from fastsimsiam.system.hardware import commit, cpu_name, versions
from fastsimsiam.system.resources import num_cores

LEFT_OUT = 3
"""Exit code of a benchmark that has a result, but not of all that it was asked for."""

_MADE_UP = 512
"""Photographs where there are none: as many as the largest batch of a benchmark."""


def machine() -> dict[str, Any]:
    """What the figures were measured on and with."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "python": platform.python_version(),
        "versions": versions(),
        "cpu": cpu_name(),
        "cores": num_cores(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def parser(about: str | None, *, repeats: int = 5) -> argparse.ArgumentParser:
    """A command line with the options that all regimes have."""
    made = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--repeats", type=int, default=repeats, help=f"runs of each configuration ({repeats})"
    )
    made.add_argument("--json", type=Path, help="file that receives the result")
    made.add_argument("--measure", help=argparse.SUPPRESS)
    return made


def parser_of_parts(about: str | None, *, rounds: int) -> argparse.ArgumentParser:
    """A command line with the options of benchmarks that take turns in one process."""
    made = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--json", type=Path, help="file that receives the result")
    made.add_argument("--rounds", type=int, default=rounds, help=f"turns of each ({rounds})")
    return made


def add_data(made: argparse.ArgumentParser) -> None:
    """The option for photographs, with a default that is always there."""
    given = os.environ.get("FASTSIMSIAM_TEST_DATA")
    made.add_argument(
        "--data",
        type=Path,
        default=Path(given) / "photos" if given else None,
        help="class folders of photographs (FASTSIMSIAM_TEST_DATA/photos where that is set, "
        "otherwise made-up ones)",
    )


def photographs(args: argparse.Namespace) -> Path:
    """The folder of `--data`; made-up photographs where there is none."""
    if args.data is None:
        args.data = synthetic_photographs(_MADE_UP)
        print(f"no --data: made-up photographs in {args.data}", file=sys.stderr)
    folder: Path = args.data
    return folder


def run_all(
    module: str, names: Sequence[str], repeats: int, arguments: Sequence[str]
) -> tuple[dict[str, list[dict[str, Any]]], list[str]]:
    """Runs `python -m MODULE --measure NAME` for every name, `repeats` times, in shuffled order.

    Returns:
        name -> what each run printed as its last line, a JSON object; and the names that failed, which
        are left out with all their runs: the others' figures stand.

    Raises:
        SystemExit: all have failed.
    """
    jobs = [name for name in names for _ in range(repeats)]
    random.Random(0).shuffle(jobs)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    failed: list[str] = []
    for number, name in enumerate(jobs, start=1):
        print(f"[{number}/{len(jobs)}] {name}", file=sys.stderr, flush=True)
        if name in failed:
            continue
        done = subprocess.run(
            [sys.executable, "-m", module, "--measure", name, *arguments],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            print(f"{name}: FAILED with code {done.returncode}, left out", file=sys.stderr)
            del found[name]
            failed.append(name)
            continue
        found[name].append(json.loads(done.stdout.splitlines()[-1]))
    if not found:
        raise SystemExit(f"{module}: nothing could be measured")
    return found, failed


def fastsimsiam(*arguments: object) -> None:
    """Runs the command line; raises where it fails."""
    words = [str(argument) for argument in arguments]
    subprocess.run([sys.executable, "-m", "fastsimsiam", *words], check=True)


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


def conclude(
    args: argparse.Namespace, result: dict[str, Any], table: Callable[[dict[str, Any]], str]
) -> None:
    """Writes the file that `--json` asks for, and prints a result as its table.

    Raises:
        SystemExit: with LEFT_OUT where the result has `failed` and it names something.
    """
    if args.json:
        write(args.json, result)
    print(table(result))
    if result.get("failed"):
        sys.exit(LEFT_OUT)


def write(path: Path, result: dict[str, Any]) -> None:
    """Writes a result file with the machine beside the figures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the folders of this machine: they say nothing, and results are published.
    words = [Path(word).name if word.startswith("/") else word for word in sys.orig_argv[2:]]
    command = " ".join(["python -m", *words])
    path.write_text(
        json.dumps({"command": command, "machine": machine(), **result}, indent=1) + "\n"
    )
