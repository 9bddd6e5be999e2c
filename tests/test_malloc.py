"""Freed memory is kept where a CPU computes, and large frames go back elsewhere."""

import ctypes
import platform
import subprocess
import sys

import pytest
from test_trainer import trainer

from fastsimsiam.config.evaluation import EvalOptions
from fastsimsiam.config.run import Config
from fastsimsiam.evaluate import context
from fastsimsiam.evaluate.context import open_eval_context
from fastsimsiam.train import build

_LARGE_BLOCKS = """
import ctypes
from resource import RUSAGE_SELF, getrusage
from fastsimsiam.system.malloc import keep_freed_memory, return_large_blocks
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]
libc.mallinfo2.restype = Info
def use(size):
    mapped, faults = libc.mallinfo2().hblks, getrusage(RUSAGE_SELF).ru_minflt
    block = libc.malloc(size)
    mapped = libc.mallinfo2().hblks > mapped
    libc.memset(block, 1, size)
    libc.free(block)
    return mapped, getrusage(RUSAGE_SELF).ru_minflt - faults
{call}
use({size}), use({size})
mapped, faults = use({size})
print("mapped" if mapped else "heap", "fresh" if faults > 1000 else "kept")
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or not hasattr(ctypes.CDLL(None), "mallinfo2"),
    reason="needs GNU's C library, 2.33 or newer",
)
@pytest.mark.parametrize(
    ("call", "mebibytes", "said"),
    [
        ("", 64, "mapped fresh"),
        ("keep_freed_memory()", 64, "heap kept"),
        # By itself the library keeps blocks as large as the largest that was freed.
        ("", 16, "heap kept"),
        ("return_large_blocks()", 16, "mapped fresh"),
        ("keep_freed_memory(); return_large_blocks()", 64, "heap kept"),
    ],
)
def test_what_becomes_of_freed_blocks(call: str, mebibytes: int, said: str) -> None:
    code = _LARGE_BLOCKS.replace("{call}", call).replace("{size}", str(mebibytes << 20))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == said


def test_trainer_and_evaluation_keep_freed_memory(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(build, "keep_freed_memory", lambda: asked.append("trainer"))
    monkeypatch.setattr(context, "keep_freed_memory", lambda: asked.append("evaluation"))
    made, recorder = trainer(tiny_config)
    assert made.fit() == 0
    recorder.close()
    made.loader.close()
    with open_eval_context(tiny_config.out, tiny_config.data, EvalOptions(device="cpu")):
        assert asked == ["trainer", "evaluation"]
