"""Cores and memory: what control groups and other programs leave of the machine."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from fastsimsiam.system import cgroups, resources

GB = 10**9
NONE_V1 = "9223372036854771712"
V2 = "35 24 0:30 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw"
V1_CPU = "36 24 0:31 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct"
V1_MEMORY = "37 24 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"


def machine(root: Path, own: str, mounts: list[str], files: Mapping[str, object]) -> Path:
    """A tree of files as a kernel shows them to a process: its groups, the mounts, the limits."""
    shown = {
        "proc/self/cgroup": own,
        "proc/self/mountinfo": "\n".join(["22 1 8:1 / / rw - ext4 /dev/sda rw", *mounts]),
        "proc/meminfo": "MemTotal: 16000000 kB\nMemFree: 500 kB\nMemAvailable: 9000000 kB",
        **{f"sys/fs/cgroup/{name}": content for name, content in files.items()},
    }
    for name, content in shown.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")
    return root


def test_version_2_counts_every_group_above(tmp_path: Path) -> None:
    files = {
        "pod/job/cpu.max": "max 100000",
        "pod/job/memory.max": "max",
        "pod/cpu.max": "50000 100000",
        "pod/memory.max": 2 * GB,
        "pod/memory.current": GB,
        "pod/memory.stat": f"anon 5\nactive_file {GB // 4}\ninactive_file {GB // 4}\nslab 7",
    }
    root = machine(tmp_path, "0::/pod/job", [V2], files)
    assert cgroups.limits(root) == cgroups.Limits(cores=0.5, memory=2 * GB, memory_left=3 * GB // 2)
    assert resources.num_cores(root) == 1
    assert resources.host_memory(root) == 2 * GB
    assert resources.available_memory(root) == 3 * GB // 2
    said = resources.container_limits(root)
    assert said is not None
    assert said.startswith("limits of this container or job: 0.5 of ")
    assert said.endswith("2.0 of 16.4 GB of memory")


def test_version_2_in_a_container_begins_at_its_own_group(tmp_path: Path) -> None:
    """With a namespace the process is in /; without one its path is that of the host."""
    files = {"cpu.max": "150000 100000", "memory.max": "max", "memory.high": GB}
    for own, mount in (
        ("0::/", V2),
        ("0::/docker/1234", V2.replace(" / ", " /docker/1234 ", 1)),
        ("0::/../outside", V2),
        ("0::/docker/1234", V2),
    ):
        limits = cgroups.limits(machine(tmp_path, own, [mount], files))
        assert (limits.cores, limits.memory, limits.memory_left) == (1.5, GB, None)


def test_version_1_has_a_tree_for_each_controller(tmp_path: Path) -> None:
    own = "5:memory:/docker/1\n4:cpu,cpuacct:/docker/1/nested\n1:name=systemd:/elsewhere\n0::/"
    files = {
        "cpu,cpuacct/docker/1/nested/cpu.cfs_quota_us": -1,
        "cpu,cpuacct/docker/1/nested/cpu.cfs_period_us": 100_000,
        "cpu,cpuacct/docker/1/cpu.cfs_quota_us": 25_000,
        "cpu,cpuacct/docker/1/cpu.cfs_period_us": 50_000,
        "memory/docker/1/memory.limit_in_bytes": NONE_V1,
        "memory/docker/1/memory.usage_in_bytes": GB,
        "memory/docker/1/memory.stat": f"total_active_file 9\nhierarchical_memory_limit {4 * GB}",
        "memory/memory.limit_in_bytes": NONE_V1,
    }
    root = machine(tmp_path, own, [V1_CPU, V1_MEMORY], files)
    assert cgroups.limits(root) == cgroups.Limits(cores=0.5, memory=4 * GB, memory_left=3 * GB + 9)
    hybrid = [V1_CPU, V2.replace("/cgroup ", "/cgroup/unified ", 1)]
    assert cgroups.limits(machine(tmp_path, own, hybrid, files)) == cgroups.Limits(
        cores=0.5, memory=None, memory_left=None
    )


def test_mounts_are_found_where_they_are(tmp_path: Path) -> None:
    mount = r"35 24 0:30 / /sys/fs/cgroup/with\040space rw shared:9 - cgroup2 none rw"
    files = {"with space/a/cpu.max": "10000 10000"}
    assert cgroups.limits(machine(tmp_path, "0::/a", [mount], files)).cores == 1.0


@pytest.mark.parametrize("content", ["", "max", "0 0", "nonsense", "-5 100000", "\0"])
def test_what_cannot_be_read_limits_nothing(tmp_path: Path, content: str) -> None:
    files = {"cpu.max": content, "memory.max": content, "memory.stat": content}
    root = machine(tmp_path, "0::/", [V2, "garbage", "1 2 3 - x"], files)
    nothing = cgroups.Limits(cores=None, memory=None, memory_left=None)
    assert cgroups.limits(root) == nothing
    assert cgroups.limits(tmp_path / "no such machine") == nothing
    assert resources.num_cores(root) == len(resources.allowed_cpus())
    assert resources.host_memory(root) == 16_000_000 * 1024
    assert resources.available_memory(root) == 9_000_000 * 1024
    assert resources.container_limits(root) is None


def test_ulimit_counts_as_memory() -> None:
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (10 * GB, before[1]))
    try:
        assert resources.host_memory() <= 10 * GB
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def test_a_quota_limits_the_threads_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS")
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(resources, "allowed_cpus", lambda: {0, 1, 2, 3})
    monkeypatch.setattr(resources, "num_cores", lambda: 4)
    resources.limit_threads()
    assert not os.environ
    monkeypatch.setattr(resources, "num_cores", lambda: 2)
    os.environ["OMP_NUM_THREADS"] = "3"  # the user's
    resources.limit_threads()
    assert [os.environ[name] for name in names] == ["3", "2"]


REPORT = """
import json, sys
from fastsimsiam.cli import main
main(["--version"])
assert "torch" not in sys.modules
import os
from fastsimsiam.system import resources
limits = resources.cgroups.limits()
print(json.dumps([resources.num_cores(), limits.cores, limits.memory, os.environ["OMP_NUM_THREADS"]]))
"""


def test_a_real_quota_and_memory_limit() -> None:
    """In nested groups, the limit on the outer one; where this machine lets a test create groups."""
    with ExitStack() as stack:
        groups = [stack.enter_context(nested_group(kind)) for kind in ("cpu", "memory")]
        enter = [f"echo $$ > {inner}/cgroup.procs" for _, inner in groups]
        command = " && ".join([*enter, 'exec "$0" -c "$1"'])
        environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
        child = subprocess.run(
            ["sh", "-c", command, sys.executable, REPORT],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
    cores, quota, memory, threads = json.loads(child.stdout.splitlines()[-1])
    assert (cores, quota, memory, threads) == (1, 0.5, 2 << 30, "1")


@contextmanager
def nested_group(controller: str) -> Iterator[tuple[Path, Path]]:
    """Two new groups of version 1 below that of this process, with a limit on the outer one."""
    own = [line.split(":") for line in Path("/proc/self/cgroup").read_text().splitlines()]
    path = next((path for _, names, path in own if controller in names.split(",")), None)
    top = Path("/sys/fs/cgroup", controller, (path or "").lstrip("/"))
    outer = top / f"fastsimsiam-test-{os.getpid()}"
    try:
        outer.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be created here ({error.strerror})")
    inner = outer / "inner"
    try:
        inner.mkdir()
        if controller == "cpu":
            (outer / "cpu.cfs_quota_us").write_text("50000")
        else:
            (outer / "memory.limit_in_bytes").write_text(str(2 << 30))
        yield outer, inner
    finally:
        inner.rmdir()
        outer.rmdir()
