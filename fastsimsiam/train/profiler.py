"""`pretrain --profile N`: a trace of N steps and their most expensive kernels."""

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from fastsimsiam.errors import UserError
from fastsimsiam.system.files import written_whole

_STEPS_BEFORE = 5
"""Steps that are not recorded: compilation and warm-up."""
_SHOWN = 10


@contextmanager
def profiled(
    steps: int, out: Path, device: torch.device, say: Callable[[str], None]
) -> Iterator[Callable[[], None]]:
    """Records a number of steps with torch's profiler.

    Args:
        steps: number of steps to record; 0 records nothing.
        out: folder that receives `trace.json`.
        device: where to train; kernels are listed for a GPU, operators for a CPU.
        say: receives lines for the user.

    Yields:
        A function to call after each step.
    """
    if steps == 0:
        yield lambda: None
        return
    needed = _STEPS_BEFORE + 1 + steps
    done = 0

    def finished(profiler: Any) -> None:
        if done < needed:  # also called when a run ends before
            return
        path = out / "trace.json"
        try:
            with written_whole(path, "the trace") as file:
                profiler.export_chrome_trace(str(file))
                _require_whole(file)  # torch itself tells of no error
            written = f"trace: {path} (open it in ui.perfetto.dev)"
        except UserError as error:
            written = f"WARNING: {error}"
        say(f"the {_SHOWN} most expensive of {steps} steps:")
        for line in most_expensive(profiler.key_averages(), gpu=device.type == "cuda"):
            say(line)
        say(written)

    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    plan = schedule(wait=_STEPS_BEFORE, warmup=1, active=steps, repeat=1)
    options: dict[str, Any] = {"activities": activities, "schedule": plan}
    # There is one cycle; torch 2.11 warns that events of others would be lost.
    options |= {"on_trace_ready": finished, "acc_events": True}
    with profile(**options) as profiler:

        def after_step() -> None:
            nonlocal done
            done += 1
            profiler.step()

        yield after_step
    if done < needed:
        say(f"--profile {steps}: the run was too short, it takes {needed} steps")


def _require_whole(trace: Path) -> None:
    """Raises OSError unless a trace ends as JSON does."""
    with open(trace, "rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - 100))
        if not file.read().rstrip().endswith(b"}"):
            raise OSError(errno.ENOSPC, "it is cut short: No space left on device")


def most_expensive(averages: Sequence[Any], *, gpu: bool) -> list[str]:
    """A line for each of the most expensive kernels or operators, with its share of the time."""
    wanted = [
        event
        for event in averages
        # Annotations span kernels that are counted by themselves.
        if (not gpu or (event.device_type.name == "CUDA" and not event.is_user_annotation))
        and not event.key.startswith("ProfilerStep")  # the steps themselves
    ]
    times = {
        event.key: event.self_device_time_total if gpu else event.self_cpu_time_total
        for event in wanted
    }
    total = sum(times.values())
    names = sorted(times, key=lambda name: -times[name])[:_SHOWN]
    return [f"{times[name] / total:7.1%}  {times[name] / 1e3:10.2f} ms  {name}" for name in names]
