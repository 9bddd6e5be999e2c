"""Freed memory is kept where a CPU computes."""

import subprocess
import sys

import pytest
from test_trainer import trainer

from fastsimsiam import build, session
from fastsimsiam.config import Config
from fastsimsiam.freed_memory import keep_freed_memory
from fastsimsiam.session import EvalOptions, evaluating

_BLOCKS = """
import resource
import torch
from fastsimsiam.freed_memory import keep_freed_memory
{first}
for _ in range(10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 << 20)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(first: str) -> int:
    """Of writing to 64 MiB that have been freed before, in a process that did `first`."""
    done = subprocess.run(
        [sys.executable, "-c", _BLOCKS.format(first=first)],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout.split()[-1])


@pytest.mark.skipif(not keep_freed_memory(), reason="needs GNU's C library")
def test_freed_memory_costs_no_page_faults() -> None:
    assert page_faults("keep_freed_memory()") * 10 < page_faults("")


def test_trainer_and_evaluation_keep_freed_memory(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(build, "keep_freed_memory", lambda: asked.append("trainer"))
    monkeypatch.setattr(session, "keep_freed_memory", lambda: asked.append("evaluation"))
    made, recorder = trainer(tiny_config)
    assert made.fit() == 0
    recorder.close()
    made.loader.close()
    with evaluating(tiny_config.out, tiny_config.data, EvalOptions(device="cpu")):
        assert asked == ["trainer", "evaluation"]
