"""The process that measures: runs phases one after the other, each within its time limit."""

import argparse
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from benchmarks.gpu.files import FINISHED, LOST, RUNNING, result_path, write
from benchmarks.harness import machine
from fastsimsiam.loaders.base import Batch
from fastsimsiam.train.trainer import Trainer

Result = dict[str, Any]


class OutOfTimeError(Exception):
    """A phase ran past its limit."""


@dataclass(kw_only=True)
class Bench:
    """What phases share.

    Attributes:
        args: the command line.
        device: where to measure.
        batch_size: images per step; smaller than asked for where memory ended.
        trainer: the compiled trainer, once there is one.
        held: a batch of its loader, on the device.
        compiled, fuse: what is compiled and fused of it.
        stack: closes loaders and recorders at the end.
        background: the process of the tests, while it runs.
        notes: values that later phases compare with.
    """

    args: argparse.Namespace
    device: torch.device
    batch_size: int
    trainer: Trainer | None = None
    held: Batch | None = None
    compiled: str = "step"
    fuse: str = "off"
    stack: ExitStack = field(default_factory=ExitStack)
    background: Any = None
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        """The folder of the results."""
        folder: Path = self.args.out
        return folder

    @property
    def left(self) -> float:
        """Seconds until the whole run has to end."""
        return float(self.args.end - time.time())


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A measurement.

    Attributes:
        name: name of its file.
        seconds: its time limit.
        run: measures, and returns what its file holds.
        least: seconds below which it is not worth starting.
        needs: the phase that builds the trainer it uses, run again in a process that has none.
    """

    name: str
    seconds: float
    run: Callable[[Bench], Result]
    least: float = 5.0
    needs: str | None = None


@contextmanager
def limit(seconds: float) -> Iterator[None]:
    """Raises OutOfTimeError in the main thread after `seconds`."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise OutOfTimeError(f"more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    # Again every second: a first exception may vanish in a callback.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def run_phase(phase: Phase, bench: Bench) -> bool:
    """Runs a phase and writes its file; returns whether it was measured."""
    seconds = min(phase.seconds, bench.left)
    write(bench.out / RUNNING, {"phase": phase.name, "until": time.time() + seconds})
    print(f"--- {phase.name} (at most {seconds:.0f} s)", flush=True)
    started = time.perf_counter()
    result: Result
    try:
        with limit(seconds):
            result = phase.run(bench)
    except Exception as error:
        traceback.print_exc()
        result = {"failed": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    result["phase_seconds"] = time.perf_counter() - started
    context = machine() | {"commit": bench.args.commit or machine()["commit"]}
    write(result_path(bench.out, phase.name), {"machine": context, **result})
    took = result["phase_seconds"]
    print(f"--- {phase.name}: {result.get('failed', 'done')} ({took:.1f} s)", flush=True)
    return "failed" not in result


def _leave_if_broken(bench: Bench) -> None:
    """Ends the process if its GPU context is lost: every later phase would fail, too."""
    if bench.device.type != "cuda":
        return
    try:
        torch.cuda.synchronize()
    except Exception as error:
        print(f"the GPU is lost to this process: {error}", flush=True)
        (bench.out / RUNNING).unlink(missing_ok=True)
        os._exit(LOST)


def work(phases: list[Phase], bench: Bench) -> None:
    """Runs all phases without a file, as long as time is left."""
    named = {phase.name: phase for phase in phases}
    with bench.stack:
        for phase in phases:
            if result_path(bench.out, phase.name).exists():
                continue
            if bench.left < phase.least:
                print(f"--- {phase.name}: no time left", flush=True)
                continue
            if phase.needs in named and bench.trainer is None:
                again = replace(named[phase.needs], name=f"{phase.needs}-again")
                if result_path(bench.out, again.name).exists() or not run_phase(again, bench):
                    continue
            if not run_phase(phase, bench):
                _leave_if_broken(bench)
        (bench.out / RUNNING).unlink(missing_ok=True)
        if bench.background is not None:
            bench.background.kill()
    (bench.out / FINISHED).touch()
