"""Runs commands in processes that are forked from one that has imported everything.

A command starts in milliseconds instead of seconds, so that hundreds of deaths can be tried. Each is a
process that can be killed at any moment and have its own limits. Run as a script, this file is the
server.
"""

import contextlib
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PATIENCE = 120.0
"""Seconds after which a command counts as hanging."""
_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link")


class Warm:
    """The server, as its client sees it."""

    def __init__(self, environment: dict[str, str]) -> None:
        """Starts the server with additional environment variables."""
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        )

    def _ask(self, **request: object) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def start(
        self,
        argv: Sequence[object],
        log: Path,
        *,
        die_at: int | None = None,
        watched: Sequence[Path] = (),
        file_size: int | None = None,
        environment: dict[str, str] | None = None,
    ) -> int:
        """Starts `fastsimsiam ARGV` and returns its process number.

        Args:
            argv: the arguments.
            log: file for its output.
            die_at: number of the change to `watched` before which it kills itself; None: never. The
                number of changes is appended to `log` with the suffix `.changes` when it ends.
            watched: folders in which files that are opened for writing, renamed or removed count.
            file_size: bytes that a file may have; a longer one fails with EFBIG, as on a full disk.
            environment: additional environment variables.
        """
        pid: int = self._ask(
            argv=[str(argument) for argument in argv],
            log=str(log),
            die_at=die_at,
            watched=[str(folder) for folder in watched],
            file_size=file_size,
            environment=environment or {},
        )
        return pid

    def poll(self, pid: int) -> int | None:
        """The exit code of a command, negative for a signal; None while it runs."""
        code: int | None = self._ask(poll=pid)
        return code

    def wait(self, pid: int, seconds: float = PATIENCE) -> int:
        """Waits for a command; kills it and fails where it hangs."""
        deadline = time.monotonic() + seconds
        while (code := self.poll(pid)) is None:
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
                raise AssertionError(f"the command still runs after {seconds:.0f} s")
            time.sleep(0.005)
        return code

    def run(
        self, argv: Sequence[object], log: Path, seconds: float = PATIENCE, **options: Any
    ) -> int:
        """Starts a command and waits for it."""
        return self.wait(self.start(argv, log, **options), seconds)

    def close(self) -> None:
        """Ends the server."""
        self._process.communicate(timeout=PATIENCE)


def _die_at_change(number: int | None, watched: Sequence[str], tally: str) -> None:
    """Has this process kill itself before its n-th change to the watched folders."""
    count = 0
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def hook(event: str, details: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open":
            path, _, flags = details
            if not isinstance(flags, int) or not flags & writes:
                return
        elif event in _CHANGES:
            path = details[0]
        else:
            return
        if isinstance(path, int) or not os.fsdecode(path).startswith(tuple(watched)):
            return
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1
        with open(tally, "w") as file:  # outside the watched folders
            file.write(str(count))

    sys.addaudithook(hook)


def _child(request: dict[str, Any], output: int) -> None:
    from fastsimsiam import cli

    for stream in (1, 2):
        os.dup2(output, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(request["environment"])
    if request["file_size"]:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python does at its start
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_size"],) * 2)
    if request["watched"]:
        _die_at_change(request["die_at"], request["watched"], request["log"] + ".changes")
    code = 1  # of a traceback
    try:
        code = cli.main(request["argv"])
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _serve() -> None:
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import tiny_backbone  # noqa: F401

    from fastsimsiam.commands import embed, export, knn, pack, pretrain  # noqa: F401
    from fastsimsiam.evaluate import knn as evaluate_knn  # noqa: F401
    from fastsimsiam.tools import embed as tools_embed  # noqa: F401
    from fastsimsiam.tools import export as tools_export  # noqa: F401
    from fastsimsiam.tools import pack as tools_pack  # noqa: F401
    from fastsimsiam.train import pretrain as train_pretrain  # noqa: F401

    logs: dict[int, tuple[int, str]] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            if pid:
                _keep_output(*logs.pop(pid))
            print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
            continue
        # A pipe, since a limit on file sizes would hold for a file as well.
        read, write = os.pipe()
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 1 << 20)
        pid = os.fork()
        if pid == 0:
            _child(request, write)
        os.close(write)
        logs[pid] = (read, request["log"])
        print(json.dumps(pid), flush=True)


def _keep_output(read: int, log: str) -> None:
    """Appends what is in the pipe of a command that has ended to its log."""
    os.set_blocking(read, False)  # a process that the command has left behind may hold the pipe
    with open(log, "ab") as file, contextlib.suppress(BlockingIOError):
        while block := os.read(read, 1 << 16):
            file.write(block)
    os.close(read)


if __name__ == "__main__":
    _serve()
