"""When a run logs and saves."""

from dataclasses import replace

import pytest
import torch
from conftest import CPU

from fastsimsiam.config.run import CheckpointConfig, Config
from fastsimsiam.runs.checkpoint import CheckpointStore
from fastsimsiam.train import intervals
from fastsimsiam.train.distributed import World
from fastsimsiam.train.intervals import SaveClock, log_every
from fastsimsiam.train.pretrain import pretrain


def test_lines_are_farther_apart_on_a_gpu(tiny_config: Config) -> None:
    gpu = torch.device("cuda", 0)
    assert [log_every(replace(tiny_config, log_every=None), at) for at in (CPU, gpu)] == [10, 100]
    assert [log_every(tiny_config, at) for at in (CPU, gpu)] == [2, 2]


def test_a_checkpoint_is_due_after_steps_and_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(intervals.time, "monotonic", lambda: now)
    clock = SaveClock(3, CheckpointConfig(min_minutes=0.5))
    assert not clock.is_due(3, World(), CPU)
    now += 30
    assert not clock.is_due(4, World(), CPU)
    assert clock.is_due(6, World(), CPU)
    clock.restart()
    assert not clock.is_due(6, World(), CPU)
    assert SaveClock(3, CheckpointConfig(min_minutes=0)).is_due(3, World(), CPU)


def test_a_short_run_saves_once(tiny_config: Config) -> None:
    """Twelve steps take less than a minute; the last one is saved whatever the time."""
    pretrain(replace(tiny_config, checkpoint=CheckpointConfig(every_epochs=0.5)))
    assert [path.name for path in CheckpointStore(tiny_config.out, 1).paths()] == [
        "step-00000012.pt"
    ]
