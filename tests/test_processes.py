"""Processes of a loader: results in order, no shared memory, and a dead one is an error, not a hang."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import CPU
from small_places import exit_code

from fastsimsiam.doctor.synthetic import repeated
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.features import center_plan
from fastsimsiam.loaders.base import Batch, LoaderOptions
from fastsimsiam.loaders.prefetch import ahead
from fastsimsiam.loaders.registry import build_loader
from fastsimsiam.storage.beton import open_beton
from fastsimsiam.storage.class_folder import open_split
from fastsimsiam.system.processes import InProcesses
from fastsimsiam.tools.pack import PackOptions, pack


def _square(number: int) -> int:
    return number * number


@pytest.mark.parametrize("processes", [1, 3, 20])
def test_results_come_in_order(processes: int) -> None:
    with closing(InProcesses(_square, range(3, 10), processes, "test process")) as results:
        assert list(results) == [number * number for number in range(3, 10)]
    with closing(InProcesses(_square, range(0), processes, "test process")) as results:
        assert list(results) == []


def _large(number: int) -> npt.NDArray[np.uint8]:
    """More than a pipe holds: a process that is killed has sent half of it."""
    return np.full(1 << 20, number, np.uint8)


@pytest.mark.parametrize("when", ["before a result", "within one"])
def test_a_dead_process_is_one_line(when: str) -> None:
    def die_second(number: int) -> npt.NDArray[np.uint8]:
        if number == 1 and when == "before a result":
            os.kill(os.getpid(), signal.SIGKILL)
        return _large(number)

    with closing(InProcesses(die_second, range(4), 2, "test process")) as results:
        arrived = iter(results)
        assert next(arrived)[-1] == 0
        if when == "within one":
            time.sleep(0.2)  # its pipe is full by now
            results.processes[1].kill()
        with pytest.raises(UserError, match=r"a test process has died \(signal 9, SIGKILL\)"):
            next(arrived)


def test_signals_to_the_group_are_not_for_them() -> None:
    """Ctrl-C and schedulers signal all processes of a run: one of them saves and ends the others."""
    with closing(InProcesses(_large, range(4), 2, "test process")) as results:
        arrived = iter(results)
        next(arrived)  # the first process runs, and so do its signal handlers
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            os.kill(results.processes[0].pid or 0, number)
        assert [result[0] for result in arrived] == [1, 2, 3]
        processes = results.processes
    assert not results.processes
    for process in processes:
        with pytest.raises(ValueError, match="closed"):
            process.is_alive()


def test_they_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    """Also if that was killed and could not clean up."""
    child = os.fork()
    if child == 0:
        results = InProcesses(_large, range(40), 3, "test process")
        text = " ".join(str(process.pid) for process in results.processes)
        (tmp_path / "partial").write_text(text)
        (tmp_path / "partial").rename(tmp_path / "pids")
        time.sleep(60)
    _wait_until((tmp_path / "pids").exists)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pids = (tmp_path / "pids").read_text().split()
    assert len(pids) == 3
    _wait_until(lambda: not any(_runs(pid) for pid in pids))


def _runs(pid: str) -> bool:
    """A zombie, which nobody waits for in a container without init, has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _wait_until(happens: object) -> None:
    assert callable(happens)
    end = time.monotonic() + 10
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_reference_loader_needs_no_shared_memory(class_folders: Path) -> None:
    """A container has 64 MB of it, or less: a DataLoader's workers die by SIGBUS there, or hang."""
    storage = open_split(class_folders, "train")
    options = LoaderOptions(device=torch.device("cpu"), workers=2)

    def load() -> int:
        with closing(build_loader("reference", storage, options)) as loader:
            batches = list(loader.iterate(center_plan(storage, 64, 1.0)))
        return 0 if sum(len(batch.index) for batch in batches) == len(storage) else 1

    assert exit_code(load, tmpfs=Path("/dev/shm"), size="16k") == 0


def test_pack_needs_no_shared_memory(class_folders: Path, tmp_path: Path) -> None:
    """The writer of FFCV keeps the table of images in it."""
    storage = repeated(open_split(class_folders, "train"), 300)
    target = tmp_path / "a.beton"

    def pack_here() -> int:
        pack(storage, target, PackOptions(), workers=1)
        return 0

    assert exit_code(pack_here, tmpfs=Path("/dev/shm"), size="4k") == 0
    assert len(open_beton(target)) == len(storage)


def test_an_error_at_the_start_of_a_thread_arrives() -> None:
    """An iterator without it would wait for ever."""

    def make() -> Iterator[Batch]:
        raise UserError("not even begun")

    caught: list[BaseException] = []

    def take() -> None:
        try:
            next(ahead(make, CPU))
        except UserError as error:
            caught.append(error)

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    thread.join(10)
    assert str(caught) == "[UserError('not even begun')]"
