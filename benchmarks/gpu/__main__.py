"""The command line of `benchmarks.gpu`: watches the process that measures."""

import argparse
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.files import FINISHED, LOST, RUNNING, result_path, results, write

GRACE = 12.0
"""Seconds after a phase's limit at which its process is killed: the phase did not end by itself."""


def command_line() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="Measures what is worth measuring on a GPU, within a time limit.",
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="time limit of all phases (9)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--archive", type=Path, help="archive of them (OUT.tar.gz)")
    parser.add_argument("--json", type=Path, help="write all results into this file, too")
    parser.add_argument("--data", type=Path, help="photographs (synthetic ones)")
    parser.add_argument("--imagenette", type=Path, help="Imagenette with train/ and val/")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="device (cuda)")
    parser.add_argument("--arch", default="resnet50", help="backbone (resnet50)")
    parser.add_argument("--image-size", type=int, default=224, help="pixels (224)")
    parser.add_argument("--batch-size", type=int, default=512, help="images per step (512)")
    parser.add_argument("--workers", type=int, help="loader threads (one per core)")
    parser.add_argument("--only", nargs="+", help="phases, in this order (all)")
    parser.add_argument(
        "--compile", choices=("step", "color", "off"), default="step", help="most to try (step)"
    )
    parser.add_argument("--fuse", default="auto", help="--fuse of pretrain in the trainer (auto)")
    parser.add_argument("--epochs", type=int, default=200, help="epochs on Imagenette (200)")
    parser.add_argument("--commit", help="commit of the code, where there is no git")
    parser.add_argument("--end", type=float, help=argparse.SUPPRESS)
    return parser


def main() -> int:
    """Runs the command line; returns 1 if a phase failed or was not reached."""
    args = command_line().parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.end is not None:
        from benchmarks.gpu.phases import run

        run(args)
        return 0
    args.end = time.time() + 60.0 * args.minutes
    archive = args.archive or args.out.with_name(args.out.name + ".tar.gz")
    (args.out / FINISHED).unlink(missing_ok=True)
    # The process that measures gets the same command, and the time at which it has to be over.
    words = [sys.executable, "-m", "benchmarks.gpu", *sys.argv[1:], "--end", str(args.end)]
    try:
        watch(words, args.out, archive, args.end)
    finally:
        pack(args.out, archive)
    from benchmarks.gpu.summary import collect, summary

    if args.json:
        # Results are published: of absolute paths only the file name is kept.
        argv = [Path(word).name if word.startswith("/") else word for word in sys.argv[1:]]
        command = " ".join(["python -m benchmarks.gpu", *argv])
        write(args.json, {"command": command, **collect(args.out)})
    print(summary(args.out), flush=True)
    whole = (args.out / FINISHED).exists()
    return int(not whole or any("failed" in file for file in results(args.out).values()))


def watch(words: Sequence[str], out: Path, archive: Path, end: float) -> None:
    """Starts the process that measures, again and again, until all phases are done or time is up.

    Args:
        words: its command line.
        out: folder of the results.
        archive: archive of the results, written after every phase.
        end: second since the epoch at which time is up.
    """
    while time.time() < end and not (out / FINISHED).exists():
        process = subprocess.Popen(words, start_new_session=True)
        why = _wait(process, out, archive, end)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        running = _running(out)
        if running is None:
            if process.returncode == LOST and time.time() < end:
                continue
            if process.returncode and not (out / FINISHED).exists():
                print(f"the process that measures ended with {process.returncode}", flush=True)
                return
            continue
        # The phase is not tried again: it would fail again.
        name, _ = running
        why = why or f"the process ended with code {process.returncode}"
        if not result_path(out, name).exists():
            print(f"--- {name}: {why}", flush=True)
            write(result_path(out, name), {"failed": why})
        (out / RUNNING).unlink(missing_ok=True)


def _wait(process: subprocess.Popen[bytes], out: Path, archive: Path, end: float) -> str:
    """Waits for the process; returns why it has to be killed, or nothing if it ended."""
    packed = 0
    while True:
        try:
            process.wait(0.5)
            return ""
        except subprocess.TimeoutExpired:
            pass
        now = time.time()
        if now > end + GRACE:
            return "the time of all phases was over"
        running = _running(out)
        if running is not None and now > running[1] + GRACE:
            return f"hung: killed {GRACE:.0f} s after its limit"
        done = len(list(out.glob("*.json")))
        if done > packed:
            packed = done
            pack(out, archive)


def _running(out: Path) -> tuple[str, float] | None:
    """The phase that runs, and when it has to be over."""
    try:
        now = json.loads((out / RUNNING).read_text())
    except (OSError, ValueError):
        return None
    return now["phase"], now["until"]


def pack(out: Path, archive: Path) -> None:
    """Packs all results; a reader sees the archive whole."""
    partial = archive.with_name(archive.name + ".partial")
    with tarfile.open(partial, "w:gz") as tar:
        for path in sorted(out.iterdir()):
            if path.is_file() and path.suffix in (".json", ".log", ".txt", ".jsonl"):
                tar.add(path, arcname=f"{out.name}/{path.name}")
    os.replace(partial, archive)


if __name__ == "__main__":
    sys.exit(main())
