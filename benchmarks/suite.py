"""A short run of each regime on a CPU, within a time limit. On a GPU it is `python -m benchmarks.gpu`.

    python -m benchmarks.suite --minutes 25 --out RESULTS --data PHOTOS

Each job runs one benchmark and writes its result file as soon as it is done; jobs without time left are
named. Jobs that are already done in --out are skipped: the same command continues after a time limit,
another folder starts from the beginning.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.harness import INCOMPLETE, add_data, photographs


@dataclass(frozen=True, kw_only=True)
class Job:
    """A benchmark to run.

    Attributes:
        name: name of the job, its log and its result file.
        argv: the module and its arguments, as after `python -m`.
        takes_data: whether the benchmark takes `--data`.
        file: name of the result file without `.json`, if not `name`; several jobs may add to one file.
    """

    name: str
    argv: tuple[str, ...]
    takes_data: bool = False
    file: str = ""


def _step(batch_size: int, variants: Sequence[str]) -> Job:
    argv = f"benchmarks.step --batch-size {batch_size} --repeats 1 --add --only".split()
    return Job(
        name=f"step-{batch_size}-{variants[0]}", argv=(*argv, *variants), file=f"step-{batch_size}"
    )


def _methods(batch_size: int) -> Job:
    argv = f"benchmarks.step --method all --batch-size {batch_size} --repeats 1".split()
    return Job(name="step-methods", argv=tuple(argv))


def _train(name: str, *options: str) -> Job:
    return Job(name=name, argv=("benchmarks.train", "--repeats", "1", *options), takes_data=True)


def cpu_jobs() -> list[Job]:
    """A short run of each regime."""
    short = ("--repeats", "1", "--images", "400")
    return [
        Job(
            name="loader",
            argv=("benchmarks.loader", *short, "--only", "decode", "cpu", "reference-crops"),
            takes_data=True,
        ),
        Job(name="decode", argv=("benchmarks.decode", *short, "--only", "pillow"), takes_data=True),
        Job(name="augment", argv=("benchmarks.augment", "--repeats", "1", "--only", "eager")),
        _step(64, ["eager", "textbook-fp32", "textbook-amp-nhwc"]),
        _train("train-cpu", "--loader", "cpu", "--steps", "10"),
        _step(64, ["compiled"]),
        _methods(64),
    ]


def run(job: Job, out: Path, data: Path, seconds: float) -> str:
    """Runs a job for at most `seconds` and returns its outcome in words."""
    argv = [*job.argv]
    if job.takes_data:
        argv += ["--data", str(data)]
    if job.argv[0].startswith("benchmarks."):
        argv += ["--json", str(out / f"{job.file or job.name}.json")]
    with open(out / f"{job.name}.log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *argv],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with the processes it started
            process.wait()
            return "out of time"
        except BaseException:  # Ctrl-C does not reach another session
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    if code not in (0, INCOMPLETE):
        return f"failed with code {code}: see {job.name}.log"
    (out / f"{job.name}.done").touch()
    return f"failed in part: see {job.name}.log" if code else "done"


def main() -> int:
    """Runs the command line; returns 1 if a job failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, required=True, help="time limit for all jobs")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    add_data(parser)
    args = parser.parse_args()
    if torch.cuda.is_available():
        parser.error("there is a GPU: run python -m benchmarks.gpu")
    data = photographs(args)
    end = time.monotonic() + 60 * args.minutes
    args.out.mkdir(parents=True, exist_ok=True)
    failed = False
    for job in cpu_jobs():
        if (args.out / f"{job.name}.done").exists():
            print(f"{job.name}: done before", flush=True)
            continue
        started = time.monotonic()
        left = end - started
        outcome = run(job, args.out, data, left) if left > 0 else "not started: out of time"
        failed = failed or outcome.startswith("failed")
        print(f"{job.name}: {outcome} ({time.monotonic() - started:.0f} s)", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
