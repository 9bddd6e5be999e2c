"""The same tests for every method: compiled, killed and resumed, through all loaders, evaluated."""

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import require
from damage.warm import Warm
from test_trainer import losses, trainer

from fastsimsiam.commands.pretrain import _arguments
from fastsimsiam.config.run import Config
from fastsimsiam.evaluate.pretrained import load_backbone
from fastsimsiam.methods.registry import METHODS
from fastsimsiam.recipes import catalogue
from fastsimsiam.runs.checkpoint import CheckpointStore, load
from fastsimsiam.system.compiler import why_compile_fails
from fastsimsiam.train.pretrain import pretrain

# A recipe for each method, and what makes its heads small.
HEADS = "--method.hidden-dim 32 --method.projection-dim 16"
KEYS = "--method.queue-size 40 --method.bn-group-size 4"
QUEUE = f"{HEADS} {KEYS}"
SMALL_CROPS = " ".join(f"--views.{view}.size 16" for view in range(2, 8))
RUNS = {
    "byol": f"byol-imagenette {HEADS} --accumulate 2",
    "byol-no-momentum": f"byol-no-momentum-imagenette {HEADS}",
    "moco-v1": f"moco-v1-imagenette --method.projection-dim 16 {KEYS} --optimizer.milestones 1",
    "moco-v2": f"moco-v2-imagenette {QUEUE} --accumulate 2",
    "moco-v3": f"moco-v3-imagenette {HEADS}",
    "simclr": f"simclr-imagenette {HEADS}",
    "simsiam": "imagenette --method.projector-layers 2 --method.projector-dim 64",
    "supcon": f"supcon-imagenette {HEADS}",
    "swav": f"swav-imagenette {HEADS} {SMALL_CROPS} --method.prototypes 20 --method.queue-size 40 "
    "--method.queue-start-epoch 1 --method.freeze-prototypes-epochs 0.5 --optimizer.lr 0.0001",
    "vi-simsiam": "vi-simsiam-imagenette --method.projector-layers 2 --method.projector-dim 64",
}
WITH_TARGET = {"byol", "moco-v1", "moco-v2", "moco-v3"}
# The recipe's views and loss, on a tiny network; a low rate amplifies rounding little.
SMALL = (
    "--arch two_layers --epochs 2 --batch-size 16 --image-size 32 --optimizer.lr 0.01 "
    "--optimizer.warmup-epochs 0.5 --device cpu --precision fp32 --compile off --loader cpu "
    "--workers 2 --log-every 1 --knn.every-epochs 0 --checkpoint.every-epochs 0.34 "
    "--checkpoint.min-minutes 0"
).split()
STEPS = 12


def arguments(name: str, data: Path, out: Path) -> list[str]:
    """The command line of a run of `STEPS` steps."""
    recipe, *options = RUNS[name].split()
    return [recipe, "--data", str(data), "--out", str(out), *SMALL, *options]


def config_of(name: str, data: Path, out: Path) -> Config:
    parsed = _arguments(arguments(name, data, out))
    assert parsed
    return parsed.config


def test_no_method_is_left_out() -> None:
    tried = {type(catalogue.recipe(words.split()[0]).method) for words in RUNS.values()}
    assert tried == {config for config in METHODS if config.__module__.startswith("fastsimsiam.")}


@pytest.mark.parametrize("name", RUNS)
def test_it_compiles_whole_without_recompiling(
    name: str, class_folders: Path, tmp_path: Path
) -> None:
    torch._dynamo.reset()
    traces = []
    for compiled in (False, True):
        out = tmp_path / ("compiled" if compiled else "eager")
        config = replace(config_of(name, class_folders, out), max_steps=10)
        made, recorder = trainer(config)
        if compiled:
            made.compute.compile(fullgraph=True, dynamic=False, backend="aot_eager")
        with torch._dynamo.config.patch(error_on_recompile=True):
            made.fit()
        recorder.close()
        made.loader.close()
        assert made.step == 10
        traces.append(losses(config))
    # Of so few images training soon amplifies rounding to the size of the loss.
    assert traces[1][:4] == pytest.approx(traces[0][:4], rel=2e-3, abs=2e-3)


@pytest.mark.skipif(why_compile_fails("cpu") is not None, reason="cannot compile for a CPU")
def test_inductor_computes_what_eager_does(class_folders: Path, tmp_path: Path) -> None:
    """MoCo with groups, shuffled keys and a queue; `aot_eager` above generates no code.

    Without the color, which test_trainer.py compiles with SimSiam and takes most of the time.
    """
    torch._dynamo.reset()
    traces = []
    for compiled in (False, True):
        out = tmp_path / ("compiled" if compiled else "eager")
        made, recorder = trainer(replace(config_of("moco-v2", class_folders, out), max_steps=3))
        if compiled:
            made.method.compile(fullgraph=True, dynamic=False, backend="inductor")
        with torch._dynamo.config.patch(error_on_recompile=True):
            made.fit()
        recorder.close()
        made.loader.close()
        assert made.step == 3
        traces.append(losses(made.config))
    assert len(traces[0]) == 3
    assert traces[1] == pytest.approx(traces[0], rel=2e-3, abs=2e-3)


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    server = Warm({"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))})
    yield server
    server.close()


def assert_same(one: Any, two: Any, key: str = "") -> None:
    """Compares tensors bit for bit, in dicts of any depth."""
    if isinstance(one, dict):
        assert one.keys() == two.keys(), key
        for name, value in one.items():
            assert_same(value, two[name], f"{key}.{name}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, two), key
    elif isinstance(one, (list, tuple)):
        for number, (first, second) in enumerate(zip(one, two, strict=True)):
            assert_same(first, second, f"{key}.{number}")
    else:
        assert one == two, key


@pytest.mark.parametrize("name", RUNS)
def test_killed_and_resumed_it_is_the_same_to_the_bit(
    name: str, class_folders: Path, tmp_path: Path, warm: Warm
) -> None:
    """Weights, target, queue, pointer, optimizer and generators."""
    out, whole, log = tmp_path / "killed", tmp_path / "whole", tmp_path / "log"
    step = random.Random(name).randrange(3, STEPS)
    killed = ["pretrain", *arguments(name, class_folders, out), "--resume", "auto"]
    pid = warm.start(killed, log)
    metrics = out / "metrics.jsonl"
    while warm.poll(pid) is None and (
        not metrics.exists() or metrics.read_text().count("\n") < step
    ):
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    assert warm.wait(pid) == -signal.SIGKILL, log.read_text()
    assert warm.run(killed, log) == 0, log.read_text()
    assert warm.run(["pretrain", *arguments(name, class_folders, whole)], log) == 0, log.read_text()
    one, two = (load(CheckpointStore(path, 1).paths()[-1]) for path in (out, whole))
    assert one.step == two.step == STEPS
    for part in ("method", "optimizer", "rng"):
        assert_same(getattr(one, part), getattr(two, part), part)
    # Evaluation takes the network that is trained, not the one that follows it.
    backbone = load_backbone(out).state_dict()
    online = {key: value for key, value in one.method.items() if key.startswith("backbone.")}
    assert_same(backbone, {key.removeprefix("backbone."): value for key, value in online.items()})
    targets = [key for key in one.method if "target" in key and key.endswith("conv1.weight")]
    assert bool(targets) == (name in WITH_TARGET)
    assert not any(torch.equal(one.method[key], backbone["conv1.weight"]) for key in targets[:1])
    trace = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [line["step"] for line in trace if "loss" in line] == list(range(1, STEPS + 1))


@pytest.mark.parametrize("name", RUNS)
def test_all_loaders_give_the_same_losses(name: str, class_folders: Path, tmp_path: Path) -> None:
    require("dali")
    traces = {}
    for loader in ("cpu", "resident", "dali"):
        config = config_of(name, class_folders, tmp_path / loader)
        pretrain(replace(config, loader=loader, max_steps=4))
        traces[loader] = losses(replace(config, loader=loader))
    assert traces["resident"] == pytest.approx(traces["cpu"], rel=2e-3, abs=2e-3)
    assert traces["dali"] == pytest.approx(traces["cpu"], rel=3e-2, abs=3e-2)
