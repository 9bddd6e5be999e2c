"""Two processes under torchrun train as one does."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_every_method import WITH_TARGET, config_of
from throwaway_method import throwaway

from fastsimsiam.config.optimizer import OptimizerConfig
from fastsimsiam.config.run import CheckpointConfig, Config, KnnConfig
from fastsimsiam.methods.registry import build_method
from fastsimsiam.runs.checkpoint import CheckpointStore, load
from fastsimsiam.runs.folder import claimed
from fastsimsiam.train.pretrain import pretrain

SCRIPT = """
import json, sys
sys.path.insert(0, TESTS)
import tiny_backbone
import throwaway_method
from fastsimsiam.config.stored import from_dict
from fastsimsiam.train.pretrain import pretrain
pretrain(from_dict(json.loads(sys.argv[1])), resume=sys.argv[2] if len(sys.argv) > 2 else False)
"""

TORCHRUN = "-m torch.distributed.run --standalone --nproc-per-node 2".split()
TORCHRUN.insert(0, sys.executable)


def launch(config: Config, script: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Runs a config on two processes."""
    from fastsimsiam.config.stored import to_dict

    script.write_text(SCRIPT.replace("TESTS", repr(str(Path(__file__).parent))))
    return subprocess.run(
        [*TORCHRUN, str(script), json.dumps(to_dict(config)), *more],
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_two_processes_resumed_in_between_equal_two_accumulated_parts(
    tiny_config: Config, tmp_path: Path
) -> None:
    """Two ranks of 8 samples, with BatchNorm per rank, have the gradients of two parts of 8.

    The parts are the same samples: rank r of a step has what part r has. Running statistics differ
    (each rank has its own), so the weights are compared.
    """
    gentle = replace(tiny_config, max_steps=2, log_every=1, optimizer=OptimizerConfig(lr=0.05))
    two = replace(gentle, out=tmp_path / "two", workers=1)
    assert launch(replace(two, max_steps=1), tmp_path / "run.py").returncode == 0
    done = launch(two, tmp_path / "run.py", "auto")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("--resume auto: the run goes on from step-00000001.pt") == 1
    assert done.stdout.count("resumed at step 1") == 1
    for warning in ("broadcast_buffers", "strides do not match", "Warning"):
        assert warning not in done.stderr
    one = replace(gentle, out=tmp_path / "one", accumulate=2)
    pretrain(one)
    ours = load(CheckpointStore(two.out, 1).paths()[-1])
    theirs = load(CheckpointStore(one.out, 1).paths()[-1])
    assert ours.step == theirs.step == 2
    for name, value in theirs.method.items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(ours.method[name], value, atol=1e-5, rtol=1e-4)
    lines = [json.loads(line) for line in (two.out / "metrics.jsonl").read_text().splitlines()]
    reference = [json.loads(line) for line in (one.out / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == pytest.approx(
        [line["loss"] for line in reference], abs=1e-3
    )
    # Another number of processes goes on with it, and is told what is not the same.
    assert pretrain(replace(two, max_steps=3), resume=True).steps == 3
    told = (two.out / "log.txt").read_text()
    assert "BatchNorm takes its statistics of 16 images instead of 8" in told


def test_a_queue_is_the_same_on_all_ranks_and_resumes_to_the_bit(
    tiny_config: Config, tmp_path: Path
) -> None:
    """The throw-away method on two ranks: hooks run beside DistributedDataParallel."""
    base = replace(
        throwaway(),
        data=tiny_config.data,
        workers=1,
        epochs=1,
        out=tmp_path / "parts",
        checkpoint=CheckpointConfig(every_epochs=0.1, min_minutes=0.0),
    )
    whole = replace(base, out=tmp_path / "whole", max_steps=3)
    for config, more in (
        (replace(base, max_steps=2), ()),
        (replace(base, max_steps=3), ("auto",)),
        (whole, ()),
    ):
        done = launch(config, tmp_path / "run.py", *more)
        assert done.returncode == 0, done.stderr
    resumed = load(CheckpointStore(base.out, 1).paths()[-1]).method
    expected = load(CheckpointStore(whole.out, 1).paths()[-1]).method
    assert resumed["pointer"] == 3 * 16 % 40  # the keys of both ranks
    for name, value in expected.items():
        assert torch.equal(resumed[name], value), name


METHODS_OF_TWO_RANKS = """
import json, os, sys
sys.path.insert(0, TESTS)
import tiny_backbone
import torch
from fastsimsiam.config.stored import from_dict
from fastsimsiam.train.pretrain import pretrain
from fastsimsiam.train.trainer import Trainer
fit = Trainer.fit
def fit_and_keep(self, *options):
    number = fit(self, *options)
    torch.save(self.method.state_dict(), self.config.out / f"rank{os.environ['RANK']}.pt")
    return number
Trainer.fit = fit_and_keep
for stored in json.loads(sys.argv[1]):
    pretrain(from_dict(stored))
"""


def test_every_kind_of_method_is_the_same_on_all_ranks(class_folders: Path, tmp_path: Path) -> None:
    """Queue, target and online weights; BatchNorm's running statistics are each rank's own."""
    from fastsimsiam.config.stored import to_dict

    configs = {
        name: replace(
            config_of(name, class_folders, tmp_path / name), accumulate=1, max_steps=3, workers=1
        )
        for name in ("moco-v2", "simclr", "moco-v3", "byol", "swav")
    }
    script = tmp_path / "run.py"
    script.write_text(METHODS_OF_TWO_RANKS.replace("TESTS", repr(str(Path(__file__).parent))))
    done = subprocess.run(
        [*TORCHRUN, str(script), json.dumps([to_dict(config) for config in configs.values()])],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for name, config in configs.items():
        first, second = (torch.load(config.out / f"rank{rank}.pt") for rank in range(2))
        stored = load(CheckpointStore(config.out, 1).paths()[-1])
        assert (stored.step, stored.ranks) == (3, 2), name
        fresh = build_method(config).state_dict()
        own = []
        for key, value in first.items():
            assert torch.equal(stored.method[key], value), (name, key)
            if "running_" in key:
                own.append(torch.equal(second[key], value))
            else:
                assert torch.equal(second[key], value), (name, key)
        assert own, name
        assert not all(own), name  # the ranks had other images
        parts = ["backbone.conv1.weight", "projector.0.weight"]
        if name in WITH_TARGET:
            parts += [f"target.{part}" for part in parts]
        if name == "moco-v2":
            parts += ["queue.keys"]
            assert stored.method["queue.pointer"] == 3 * 32 % 40  # of both ranks and views
        for part in parts:
            assert not torch.equal(first[part], fresh[part]), (name, part)


def test_a_folder_in_use_is_refused_on_all_ranks(tiny_config: Config, tmp_path: Path) -> None:
    with claimed(tiny_config.out, print):
        done = launch(replace(tiny_config, workers=1), tmp_path / "run.py", "auto")
    assert done.returncode != 0
    assert f"is in use by another run (process {os.getpid()} on" in done.stderr
    assert [path.name for path in tiny_config.out.iterdir()] == ["run.lock"]


FAILING = """
import json, os, sys, time
sys.path.insert(0, TESTS)
import tiny_backbone
from fastsimsiam.cli import main
for number, argv in enumerate(json.loads(sys.argv[1])):
    print(f"-- case {number}", file=sys.stderr, flush=True)
    started = time.monotonic()
    try:
        code = main(argv)
    except SystemExit as left:
        code = left.code
    took = time.monotonic() - started
    print(json.dumps([number, int(os.environ["RANK"]), code, took]), flush=True)
"""


def test_an_error_of_one_rank_is_one_line_and_ends_the_others(
    tiny_config: Config, tmp_path: Path
) -> None:
    """Errors of all ranks, of the first alone, and of the second alone in mid-training."""
    data = tmp_path / "data"
    shutil.copytree(tiny_config.data, data)
    for broken in (data / "train" / "bee").glob("*.JPEG"):
        broken.write_bytes(broken.read_bytes()[:-100] + bytes(100))
    (tmp_path / "file").touch()
    shared = (
        "pretrain imagenette --arch tiny_resnet --batch-size 16 --image-size 32 --device cpu "
        "--precision fp32 --compile off --loader cpu --workers 1 --log-every 1 --knn.every-epochs 0 "
        "--method.projector-layers 2 --method.projector-dim 64 --method.predictor-dim 16"
    ).split()
    good, out = ["--data", str(tiny_config.data)], str(tmp_path / "run")
    cases = [
        [*shared, *good, "--out", out, "--epochs", "none"],
        [*shared, *good, "--out", out, "--batch-size", "15"],
        [*shared, *good, "--out", str(tmp_path / "file" / "run")],
        [*shared, "--data", str(data), "--out", out],
    ]
    expected = (
        "--epochs",
        "--batch-size 15 cannot be shared by 2 processes",
        "cannot write to --out",
        "cannot be decoded",
    )
    script = tmp_path / "run.py"
    script.write_text(FAILING.replace("TESTS", repr(str(Path(__file__).parent))))
    done = subprocess.run(
        [*TORCHRUN, str(script), json.dumps(cases)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    told = [line for line in done.stderr.splitlines() if "fastsimsiam: error" in line]
    assert len(told) == len(cases), told
    for line, words in zip(told, expected, strict=True):
        assert re.search(words, line), line
    ends = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert sorted(end[:3] for end in ends) == [[n, r, 2] for n in range(4) for r in range(2)]
    assert max(end[3] for end in ends) < 30


SLOW = """
import itertools, time
import fastsimsiam.loaders.bad_images as loader
read, seen = loader.read_rgb, itertools.count()
def slow(storage, index, **options):
    if storage.root.name == "val" and next(seen) >= 24:  # the untrained network is scored at once
        time.sleep(1)
    return read(storage, index, **options)
loader.read_rgb = slow
"""


def test_a_signal_ends_all_ranks_while_one_evaluates(tiny_config: Config, tmp_path: Path) -> None:
    from fastsimsiam.config.stored import to_dict

    config = replace(
        tiny_config, workers=1, knn=KnnConfig(every_epochs=1, k=(5,)), epochs=1, log_every=1
    )
    script = tmp_path / "run.py"
    tests = repr(str(Path(__file__).parent))
    script.write_text(
        SCRIPT.replace("TESTS", tests).replace("pretrain(from", SLOW + "pretrain(from")
    )
    process = subprocess.Popen(
        [*TORCHRUN, str(script), json.dumps(to_dict(config))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = config.out / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not CheckpointStore(config.out, 1).paths() or '"step": 6' not in metrics.read_text():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)  # the first rank evaluates for 24 seconds, the other waits for it
    sent = time.time()
    process.send_signal(signal.SIGTERM)
    out, error = process.communicate(timeout=60)
    assert (config.out / "summary.json").stat().st_mtime - sent < 10
    assert "SIGTERM: saved at step 6; go on with --resume" in out
    assert "Connection closed" not in error
    assert load(CheckpointStore(config.out, 1).paths()[-1]).step == 6


def test_an_error_before_the_run_is_one_line_of_one_rank(tiny_config: Config) -> None:
    """The launcher ends the other rank by a signal, of which that rank says nothing."""
    missing = tiny_config.out.with_name("nowhere")
    argv = ["pretrain", "imagenette", "--data", str(missing), "--out", str(tiny_config.out)]
    done = subprocess.run(
        [*TORCHRUN, "-m", "fastsimsiam", *argv, "--device", "cpu"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if "fastsimsiam: " in line]
    assert "does not exist" in line
