"""The folder of a run: one writer, nobody else's files, nothing left behind by killed processes."""

import errno
import fcntl
import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fastsimsiam.commands.parse import write_json
from fastsimsiam.config.run import Config
from fastsimsiam.errors import UserError
from fastsimsiam.runs.folder import claimed, require_own
from fastsimsiam.system.files import written_whole
from fastsimsiam.train.pretrain import pretrain

HOLDER = """
import os, sys, time
from pathlib import Path
from fastsimsiam.runs.folder import claimed
with claimed(Path(sys.argv[1]), print):
    child = os.fork()
    if child:
        print(os.getpid(), child, flush=True)
    time.sleep(600)
"""


def start_holder(out: Path) -> tuple["subprocess.Popen[str]", int]:
    """Starts a process that holds a run's folder and has forked a child; returns it and the child."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(out)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    return process, int(process.stdout.readline().split()[1])


def test_the_second_run_of_a_folder_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    """Also if a process that the first one has forked lives on, as loaders' workers may."""
    out = tmp_path / "run"
    process, child = start_holder(out)
    try:
        with (
            pytest.raises(UserError, match=rf"in use by another run \(process {process.pid} on \w"),
            claimed(out, print),
        ):
            raise AssertionError
        process.send_signal(signal.SIGKILL)
        process.wait()
        os.kill(child, 0)  # it is alive
        with claimed(out, print):
            pass
    finally:
        process.kill()
        os.kill(child, signal.SIGKILL)
        process.communicate()


def test_the_lock_outlives_a_forked_process_and_a_reader(tmp_path: Path) -> None:
    with claimed(tmp_path, print):
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)
        (tmp_path / "run.lock").read_text()  # a lock of POSIX would be lost here
        with pytest.raises(UserError, match="in use"), claimed(tmp_path, print):
            raise AssertionError


def test_two_runs_of_one_process_exclude_each_other(tiny_config: Config) -> None:
    """One of them trains, the other one is refused and changes nothing."""
    results: list[object] = []

    def run() -> None:
        try:
            results.append(pretrain(replace(tiny_config, max_steps=4)).steps)
        except UserError as error:
            results.append(str(error))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    texts = [result for result in results if isinstance(result, str)]
    assert 4 in results
    assert len(texts) == 1
    # The second may also come after the end of the first.
    assert re.search("in use by another run|already holds a run", texts[0])
    lines = (tiny_config.out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4]


def test_a_file_system_without_locks_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    said: list[str] = []
    with claimed(tmp_path / "run", said.append), written_whole(tmp_path / "x", "x") as file:
        file.write_text("whole")
    (line,) = said
    assert line.startswith(f"WARNING: the file system of {tmp_path / 'run'} has no locks (No locks")
    assert (tmp_path / "x").read_text() == "whole"


@pytest.mark.parametrize(
    "name",
    "log.txt summary.json curves.png metrics.jsonl trace.json images.npz run.lock "
    "checkpoints/model.ckpt tensorboard/events.out".split(),
)
def test_files_that_no_run_has_written_are_not_overwritten(tiny_config: Config, name: str) -> None:
    file = tiny_config.out / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    with pytest.raises(
        UserError, match=f"holds {name.partition('/')[0]}, which no run of"
    ) as caught:
        pretrain(tiny_config)
    assert "pass another --out" in str(caught.value)
    assert file.read_text() == "mine"
    assert [path for path in tiny_config.out.rglob("*") if path.is_file()] == [file]


def test_other_files_beside_a_run_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    require_own(tmp_path)
    with claimed(tmp_path, print):
        pass
    (tmp_path / "log.txt").write_text("of the run")
    require_own(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("summary.json", json.dumps({"config": {}, "steps": 3})),
        ("metrics.jsonl", '{"step": 3, "loss": 0.5}\n'),
        ("log.txt", "loader cpu (asked for); device cpu (there is no GPU); precision\n"),
        ("checkpoints/step-00000003.pt", ""),
        ("checkpoints/step-00000003.pt.partial", ""),
    ],
)
def test_runs_of_earlier_versions_are_known_by_their_files(
    tmp_path: Path, name: str, text: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    (tmp_path / "curves.png").write_text("")
    require_own(tmp_path)


def make_file(out: Path) -> None:
    out.write_text("mine")


def make_link_to_nothing(out: Path) -> None:
    out.symlink_to(out.with_name("nowhere"))


def make_child_of_a_file(out: Path) -> None:
    out.parent.rmdir()
    out.parent.write_text("mine")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (make_file, "is a file, not a folder"),
        (os.mkfifo, "is a named pipe, not a folder"),
        (make_link_to_nothing, "is a link that leads nowhere"),
        (make_child_of_a_file, r"\(Not a directory\)"),
    ],
)
def test_a_place_that_is_no_folder_is_named(
    tiny_config: Config, tmp_path: Path, make: Callable[[Path], None], reason: str
) -> None:
    (tmp_path / "in").mkdir()
    out = tmp_path / "in" / "run"
    make(out)
    with pytest.raises(UserError, match=f"--out {out} .*{reason}"):
        pretrain(replace(tiny_config, out=out))


@pytest.mark.parametrize("place", ["/dev/null", "/proc/run"])
def test_places_of_the_system_are_refused_with_the_reason(tiny_config: Config, place: str) -> None:
    with pytest.raises(UserError, match=rf"--out {place} ") as caught:
        pretrain(replace(tiny_config, out=Path(place)))
    assert "free some space" not in str(caught.value)


@pytest.mark.parametrize(
    ("number", "fix"),
    [
        (errno.EACCES, "get permission to write there"),
        (errno.EROFS, "choose a place that can be written"),
        (errno.ENOSPC, "free some space"),
    ],
)
def test_the_advice_follows_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, fix: str
) -> None:
    def refuse(*arguments: object, **options: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    for write in (
        lambda: claimed(tmp_path, print).__enter__(),
        lambda: write_json(tmp_path / "x.json", {}),
    ):
        with pytest.raises(UserError, match=f"{re.escape(os.strerror(number))}.*: {fix}"):
            write()


@pytest.mark.parametrize("name", ["metrics.jsonl", "log.txt", "checkpoints"])
def test_what_is_not_of_its_kind_in_a_run_is_refused(tmp_path: Path, name: str) -> None:
    with claimed(tmp_path, print):
        pass
    (secret := tmp_path / "secret").write_text("mine")
    (tmp_path / name).symlink_to(secret)
    with pytest.raises(UserError, match=f"{name} is a link, not a f"):
        require_own(tmp_path)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=f"{name} is a named pipe, not a f"):
        require_own(tmp_path)


def test_checkpoints_may_be_on_another_disk(tmp_path: Path) -> None:
    with claimed(tmp_path, print):
        pass
    (tmp_path / "disk").mkdir()
    (tmp_path / "checkpoints").symlink_to(tmp_path / "disk")
    require_own(tmp_path)


def test_a_run_killed_at_its_first_write_can_start(tmp_path: Path) -> None:
    (tmp_path / "run.lock").write_text("")
    require_own(tmp_path)
    with claimed(tmp_path, print):
        pass


def test_leftovers_of_killed_runs_are_removed_at_the_start(tiny_config: Config) -> None:
    folder = tiny_config.out / "checkpoints"
    folder.mkdir(parents=True)
    for name in (
        "checkpoints/step-00000005.pt.partial",
        "checkpoints/step-00000007.pt.0123abcd.partial",
        "metrics.jsonl.0123abcd.partial",
        "summary.json.partial",
    ):
        (tiny_config.out / name).write_text("half")
    (folder / "mine.partial").write_text("mine")
    pretrain(replace(tiny_config, max_steps=2))
    left = [path.name for path in tiny_config.out.rglob("*.partial")]
    assert left == ["mine.partial"]


WRITER = """
import sys, time
from pathlib import Path
from fastsimsiam.system.files import written_whole
with written_whole(Path(sys.argv[1]), "it") as file:
    file.write_text("half")
    print(file, flush=True)
    time.sleep(600)
"""


def test_two_writers_of_one_file_do_not_meet_and_the_dead_leave_nothing(tmp_path: Path) -> None:
    target = tmp_path / "x.json"
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(target)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    theirs = Path(process.stdout.readline().strip())
    try:
        write_json(target, {"mine": 1})
        assert json.loads(target.read_text()) == {"mine": 1}
        assert theirs.read_text() == "half"  # of a process that is alive
    finally:
        process.kill()
        process.communicate()
    assert theirs.exists()
    write_json(target, {"mine": 2})
    assert os.listdir(tmp_path) == ["x.json"]


@pytest.mark.parametrize("kind", ["a named pipe", "a folder", "a device"])
def test_a_target_that_is_no_file_is_neither_replaced_nor_waited_for(
    tmp_path: Path, kind: str
) -> None:
    target = tmp_path / "x.json"
    if kind == "a named pipe":
        os.mkfifo(target)
    elif kind == "a folder":
        target.mkdir()
    else:
        try:  # a device of the test's own: a failure would replace it
            os.mknod(target, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("only root makes devices")
    with pytest.raises(UserError, match=f"--json {target} is {kind}, not a file"):
        write_json(target, {})
    assert not target.is_file()


def test_a_target_that_is_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_json(tmp_path / "link", [1])
    write_json(tmp_path / "link", [2])
    assert (tmp_path / "link").is_symlink()
    assert json.loads((tmp_path / "file").read_text()) == [2]


def test_a_long_name_is_written(tmp_path: Path) -> None:
    write_json(tmp_path / f"{'x' * 250}.json", [1])
    assert len(os.listdir(tmp_path)) == 1


def test_a_lock_is_taken_in_no_time(tmp_path: Path) -> None:
    started = time.perf_counter()
    for _ in range(50):
        with claimed(tmp_path, print):
            pass
    assert time.perf_counter() - started < 2
