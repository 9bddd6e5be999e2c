"""All regimes on the machine at hand, the most valuable first, in a given time.

    python -m benchmarks.suite --minutes 25 --out RESULTS --data PHOTOS

Each job is a benchmark of its own and leaves a result file as soon as it is done; what the time does
not suffice for is named. On a GPU: the step's variants at two batch sizes and parts of them, end to end
through each loader, decoding, color, and the tests that need one. On a CPU: a quick look at every
regime. Jobs that are done in this folder are passed over: the same words again go on where the time was
up, and another folder begins anew.
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

from benchmarks.harness import LEFT_OUT, add_data, photographs
from fastsimsiam.system.optional import has_dali
from fastsimsiam.system.resources import num_cores


@dataclass(frozen=True, kw_only=True)
class Job:
    """A benchmark to run.

    Attributes:
        name: of its result file.
        words: what follows `python -m`.
        reads: takes `--data`.
        file: that receives the result, without its ending; several jobs may add to one.
    """

    name: str
    words: tuple[str, ...]
    reads: bool = False
    file: str = ""


def _step(batch_size: int, variants: Sequence[str]) -> Job:
    words = (
        "benchmarks.step",
        "--batch-size",
        str(batch_size),
        "--repeats",
        "1",
        "--add",
        "--only",
        *variants,
    )
    return Job(name=f"step-{batch_size}-{variants[0]}", words=words, file=f"step-{batch_size}")


def _train(name: str, *words: str) -> Job:
    return Job(name=name, words=("benchmarks.train", "--repeats", "1", *words), reads=True)


def gpu_jobs() -> list[Job]:
    """In order of value."""
    return [
        _step(256, ["compiled"]),
        # Warnings that no CPU run has seen are not errors here.
        Job(
            name="tests",
            words=("pytest", "-m", "gpu", "-q", "-W", "default", "-p", "no:cacheprovider"),
        ),
        _step(256, ["textbook-amp-nhwc", "textbook-amp", "textbook-fp32", "eager"]),
        Job(name="batch-norm", words=("benchmarks.batch_norm",)),
        Job(name="stem", words=("benchmarks.stem",)),
        _step(256, ["compiled-fused-bn-sums"]),
        _step(512, ["compiled"]),
        _train("train-folder", "--loader", "folder"),
        *([_train("train-dali", "--loader", "dali")] if has_dali() else []),
        _train("train-folder-nvjpeg", "--loader", "folder", "--decoder", "nvjpeg"),
        _train("train-folder-frames", "--loader", "folder", "--crops", "device"),
        Job(name="augment", words=("benchmarks.augment", "--repeats", "1")),
        Job(
            name="decode",
            words=("benchmarks.decode", "--repeats", "1", "--workers", str(num_cores())),
            reads=True,
        ),
        _step(256, ["compiled-space-to-depth"]),
        _step(256, ["compiled-fused-bn"]),
        _step(256, ["compiled-1x1-matmul"]),
        _step(256, ["compiled-cuda-graphs"]),
        _step(256, ["compiled-cudnn-guess"]),
        _step(256, ["compiled-padded-stem"]),
        _step(256, ["compiled-joint-views"]),
        _step(256, ["compiled-aten-bn"]),
        _step(256, ["compiled-foreach-sgd"]),
        _step(512, ["eager"]),
        _step(256, ["compiled-autotuned"]),
    ]


def cpu_jobs() -> list[Job]:
    """A run of each regime."""
    return [
        Job(
            name="loader",
            words=(
                "benchmarks.loader",
                "--repeats",
                "1",
                "--images",
                "400",
                "--only",
                "decode",
                "folder",
                "reference-crops",
            ),
            reads=True,
        ),
        Job(
            name="decode",
            words=("benchmarks.decode", "--repeats", "1", "--images", "400", "--only", "pillow"),
            reads=True,
        ),
        Job(name="augment", words=("benchmarks.augment", "--repeats", "1", "--only", "eager")),
        _step(64, ["eager", "textbook-fp32", "textbook-amp-nhwc"]),
        _train("train-folder", "--loader", "folder", "--steps", "10"),
        _step(64, ["compiled"]),
    ]


def run(job: Job, out: Path, data: Path, seconds: float) -> str:
    """Runs a job for so long at most; what became of it."""
    words = [*job.words]
    if job.reads:
        words += ["--data", str(data)]
    if job.words[0].startswith("benchmarks."):
        words += ["--json", str(out / f"{job.file or job.name}.json")]
    with open(out / f"{job.name}.log", "w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *words],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with the processes it has started
            process.wait()
            return "out of time"
        except BaseException:  # Ctrl-C does not reach a session of its own
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    if code not in (0, LEFT_OUT):
        return f"failed with code {code}: see {job.name}.log"
    (out / f"{job.name}.done").touch()
    return f"failed in part: see {job.name}.log" if code else "done"


def main() -> int:
    """Runs the command line; 1 where a job has failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, required=True, help="in all")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    add_data(parser)
    args = parser.parse_args()
    data = photographs(args)
    end = time.monotonic() + 60 * args.minutes
    args.out.mkdir(parents=True, exist_ok=True)
    failed = False
    for job in gpu_jobs() if torch.cuda.is_available() else cpu_jobs():
        if (args.out / f"{job.name}.done").exists():
            print(f"{job.name}: done before", flush=True)
            continue
        started = time.monotonic()
        left = end - started
        became = run(job, args.out, data, left) if left > 0 else "not begun: out of time"
        failed = failed or became.startswith("failed")
        print(f"{job.name}: {became} ({time.monotonic() - started:.0f} s)", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
