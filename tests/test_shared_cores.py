"""Other programs on the cores of a run are told, and do not slow it down more than their share."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastsimsiam.config.run import Config
from fastsimsiam.system import barriers, shared_cores
from fastsimsiam.system.resources import allowed_cpus
from fastsimsiam.system.shared_cores import SharedCores
from fastsimsiam.train.pretrain import pretrain

TICK = os.sysconf("SC_CLK_TCK")
CORES = len(allowed_cpus())


class Machine:
    """A tree like /proc, whose clock and processor times a test sets."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.now = 1000.0
        self.used = self.stolen = 0.0
        self.processes: dict[int, tuple[int, float]] = {1: (0, 0.0), os.getpid(): (1, 0.0)}
        monkeypatch.setattr(shared_cores, "time", SimpleNamespace(monotonic=lambda: self.now))
        self.pass_time(0.0)

    def pass_time(self, seconds: float, *, used: float = 0.0, stolen: float = 0.0) -> None:
        """Adds processor time, in cores, and writes the files."""
        self.now += seconds
        self.used += used * seconds * TICK / CORES
        self.stolen += stolen * seconds * TICK / CORES
        lines = ["cpu 1 2 3"]
        for cpu in [*allowed_cpus(), 4096]:  # the last is not ours, and busy all the time
            busy = int(self.used) if cpu < 4096 else int(self.now * TICK)
            lines.append(f"cpu{cpu} {busy} 0 0 77 88 0 0 {int(self.stolen)} 0 0")
        (self.root / "proc").mkdir(exist_ok=True)
        (self.root / "proc/stat").write_text("\n".join([*lines, "intr 5", ""]))
        for pid, (parent, own) in self.processes.items():
            (self.root / f"proc/{pid}").mkdir(exist_ok=True)
            ticks = int(own * TICK)
            text = f"{pid} (a) name) S {parent} 1 1 0 -1 4 0 0 0 0 {ticks} 0 0 0 20 0 1 0 9\n"
            (self.root / f"proc/{pid}/stat").write_text(text)

    def run(self, pid: int, seconds: float, parent: int = 1) -> None:
        """Gives processor time to a process."""
        _, before = self.processes.get(pid, (parent, 0.0))
        self.processes[pid] = (parent, before + seconds)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """One on which nothing has run yet."""
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    return Machine(tmp_path, monkeypatch)


def test_other_programs_are_told(machine: Machine) -> None:
    cores = SharedCores(machine.root)
    machine.run(os.getpid(), 0.25 * CORES * 10)
    machine.pass_time(10, used=CORES)
    line = cores.line()
    assert line is not None
    assert line.startswith(
        f"the cores are shared: other programs use {0.75 * CORES:.1f} of {CORES} (load "
    )
    assert line.endswith("), and steps wait for them")


def test_the_family_of_a_process_is_not_others(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loader's processes, also of the second degree; and with torchrun the other ranks."""
    cores = SharedCores(machine.root)
    machine.run(os.getpid(), 0.1 * CORES * 10)
    machine.run(70001, 0.5 * CORES * 10, parent=os.getpid())
    machine.run(70002, 0.4 * CORES * 10, parent=70001)
    machine.pass_time(10, used=CORES)
    assert cores.line() is None
    machine.processes[os.getpid()] = (70010, machine.processes[os.getpid()][1])
    machine.run(70010, 0.0)
    machine.run(70011, 0.9 * CORES * 10, parent=70010)
    machine.pass_time(10, used=CORES)
    assert cores.line() is not None
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    cores = SharedCores(machine.root)
    machine.run(70011, 0.9 * CORES * 10, parent=70010)
    machine.pass_time(10, used=CORES)
    assert cores.line() is None


def test_idle_cores_are_not_waited_for(machine: Machine) -> None:
    cores = SharedCores(machine.root)
    machine.pass_time(10, used=0.6 * CORES)
    assert cores.line() is None
    machine.run(os.getpid(), 0.9 * CORES * 10)
    machine.pass_time(10, used=CORES)
    assert (cores.line() is None) == (0.1 * CORES < 0.5)


def test_a_host_that_gives_the_cores_to_others_is_told(machine: Machine) -> None:
    cores = SharedCores(machine.root)
    machine.run(os.getpid(), 0.4 * CORES * 10)
    machine.pass_time(10, used=0.4 * CORES, stolen=0.6 * CORES)
    assert "other virtual machines use" in str(cores.line())


def test_the_log_has_a_line_when_it_begins(machine: Machine) -> None:
    cores = SharedCores(machine.root)
    machine.pass_time(0.2, used=CORES)
    assert cores.news() is None  # too short to say
    machine.pass_time(0.2, used=CORES)
    assert cores.news() is not None
    machine.pass_time(20, used=CORES)
    assert cores.news() is None  # still so
    machine.pass_time(20)
    assert cores.news() is None
    machine.pass_time(20, used=CORES)
    assert cores.news() is None  # again, but too soon
    machine.pass_time(700)
    assert cores.news() is None
    machine.pass_time(20, used=CORES)
    assert cores.news() is not None


@pytest.mark.parametrize("content", [None, "", "cpu0 1 2 3\ncpu1 1 2 3\n", "nonsense"])
def test_a_system_that_does_not_tell_is_no_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc/stat").write_text(content)
    cores = SharedCores(tmp_path)
    assert cores.news() is None
    assert cores.line() is None


def test_real_programs_are_seen() -> None:
    """Busy ones, which are no children of this process."""
    command = "(while :; do :; done) >/dev/null & echo $!"
    pids = [
        int(subprocess.run(["sh", "-c", command], stdout=subprocess.PIPE, check=False).stdout)
        for _ in range(CORES + 1)
    ]
    try:
        cores = SharedCores()
        time.sleep(0.5)
        assert "the cores are shared: other programs use" in str(cores.line())
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)


def test_a_run_says_so(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At its start, of the time since the program has been loaded."""
    reading = shared_cores._read(Path("/"))
    assert reading is not None
    times, own = reading
    earlier = replace(times, used=times.used - 20 * CORES, at=times.at - 20)
    monkeypatch.setattr(shared_cores, "_loaded", (earlier, own))
    pretrain(replace(tiny_config, max_steps=1))
    assert "the cores are shared: other programs use" in capsys.readouterr().out


def test_the_users_own_setting_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(barriers.torch, "get_num_threads", lambda: 2)
    assert barriers.can_switch({}) == (sys.platform == "linux")
    assert not barriers.can_switch({"OMP_WAIT_POLICY": "active"})
    assert not barriers.can_switch({"GOMP_SPINCOUNT": "300000"})
    monkeypatch.setattr(barriers.torch, "get_num_threads", lambda: 1)
    assert not barriers.can_switch({})


WAITS = """
import json, subprocess, sys, time, torch
from fastsimsiam.system.barriers import ShortWaits, share_cores
numbers = torch.rand(1 << 20)

def spun():
    "Least and most milliseconds of processor time that threads spend after a loop, and its result."
    times = []
    for _ in range(8):
        total = numbers.sum().item()
        before = time.process_time()
        time.sleep(0.03)
        times.append(1000 * (time.process_time() - before))
    return min(times), max(times), total

alone = spun()
waits = ShortWaits()
waits.begin()
time.sleep(0.1)
short = spun()
waits.end()
long = spun()
assert share_cores() and share_cores()
busy = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(4)]
try:
    end = time.monotonic() + 10
    while (shared := spun())[0] > 0.5 and time.monotonic() < end:
        time.sleep(0.1)
finally:
    for process in busy:
        process.kill()
print(json.dumps([alone, short, long, shared]))
"""


@pytest.mark.skipif(CORES < 2 or sys.platform != "linux", reason="two cores of Linux are needed")
def test_waits_are_short_while_the_cores_are_shared() -> None:
    """Long ones burn the time of the very thread that is waited for."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    }
    child = subprocess.run(
        [sys.executable, "-c", WAITS],
        capture_output=True,
        text=True,
        check=True,
        env={**environment, "OMP_NUM_THREADS": str(CORES)},
    )
    alone, short, long, shared = json.loads(child.stdout)
    # On cores that are shared already a thread may not get to spin each time.
    assert alone[1] > 1, alone
    assert long[1] > 1, long
    assert short[0] < 0.5, short
    assert shared[0] < 0.5, shared
    assert {total for _, _, total in (alone, short, long, shared)} == {alone[2]}
