"""`pretrain --profile N`."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from fastsimsiam.config.run import Config
from fastsimsiam.train.interrupt import Interrupt
from fastsimsiam.train.pretrain import pretrain
from fastsimsiam.train.profiler import most_expensive
from fastsimsiam.train.trainer import Trainer


def test_a_trace_and_the_most_expensive_are_written(tiny_config: Config) -> None:
    assert pretrain(tiny_config, profile=2).steps == 12
    trace = json.loads((tiny_config.out / "trace.json").read_text())
    names = [event.get("name", "") for event in trace["traceEvents"]]
    assert names.count("Optimizer.step#SGD.step") == 2
    log = (tiny_config.out / "log.txt").read_text().splitlines()
    start = next(i for i, line in enumerate(log) if "the 10 most expensive of 2 steps" in line)
    shares = [float(line.split("%")[0]) for line in log[start + 1 : start + 11]]
    assert shares == sorted(shares, reverse=True)
    assert 40 < sum(shares) <= 100.5
    assert any("conv" in line for line in log[start + 1 : start + 11])


def test_a_run_that_is_too_short_says_so(tiny_config: Config) -> None:
    pretrain(replace(tiny_config, max_steps=6), profile=2)
    assert not (tiny_config.out / "trace.json").exists()
    assert (
        "--profile 2: the run was too short, it takes 8 steps"
        in (tiny_config.out / "log.txt").read_text()
    )


def test_a_trace_that_cannot_be_written_does_not_end_the_run(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = Trainer.fit

    def fit_with_folder(trainer: Trainer, interrupt: Interrupt) -> int:
        (tiny_config.out / "trace.json").mkdir()  # before the run it would be refused
        return fit(trainer, interrupt)

    monkeypatch.setattr(Trainer, "fit", fit_with_folder)
    assert pretrain(tiny_config, profile=1).steps == 12
    log = (tiny_config.out / "log.txt").read_text()
    assert "WARNING: the trace" in log
    assert "trace.json is a folder, not a file" in log
    assert "the 10 most expensive of 1 steps" in log


def test_annotations_are_not_kernels() -> None:
    def event(key: str, device: str, *, time: float, annotation: bool = False) -> SimpleNamespace:
        return SimpleNamespace(
            key=key,
            device_type=SimpleNamespace(name=device),
            self_device_time_total=time,
            self_cpu_time_total=0.0,
            is_user_annotation=annotation,
        )

    events = [
        event("conv", "CUDA", time=3.0),
        event("norm", "CUDA", time=1.0),
        event("Optimizer.step#SGD.step", "CUDA", time=4.0, annotation=True),
        event("aten::conv2d", "CPU", time=3.0),
    ]
    lines = most_expensive(events, gpu=True)
    assert [line.split()[-1] for line in lines] == ["conv", "norm"]
    assert [line.split()[0] for line in lines] == ["75.0%", "25.0%"]
