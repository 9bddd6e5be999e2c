"""Full and small file systems for tests: in a child process, which alone sees them."""

import ctypes
import multiprocessing
import os
import resource
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

_CLONE_NEWNS = 0x20000
_NOT_MOUNTED = 99


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writing more than `size` bytes to a file fails with EFBIG, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def exit_code(work: Callable[[], int], *, tmpfs: Path, size: str, timeout: float = 60) -> int:
    """The exit code of `work` in a child process to which `tmpfs` is a file system of `size`.

    It is the negative number of a signal that ended it. Skips the test where mounting is not allowed.
    """
    child = multiprocessing.get_context("fork").Process(target=_child, args=(work, tmpfs, size))
    child.start()
    child.join(timeout)
    hangs = child.exitcode is None
    child.kill()
    child.join()
    if child.exitcode == _NOT_MOUNTED:
        pytest.skip("mounting is not allowed here")
    assert not hangs, "the child process hangs"
    return child.exitcode


def _child(work: Callable[[], int], tmpfs: Path, size: str) -> None:
    torch.set_num_threads(1)
    libc = ctypes.CDLL(None)
    mounted = (
        libc.unshare(_CLONE_NEWNS) == 0
        # Private, or the parent process sees the mount.
        and libc.mount(b"none", b"/", None, 0x44000, None) == 0
        and libc.mount(b"tmpfs", bytes(tmpfs), b"tmpfs", 0, f"size={size}".encode()) == 0
    )
    if not mounted:
        os._exit(_NOT_MOUNTED)
    try:
        code = work()
    except BaseException:
        traceback.print_exc()
        code = 1
    os._exit(code)
