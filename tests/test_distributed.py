"""Two processes under torchrun train as one does."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from throwaway_method import throwaway

from fastsimsiam.config.run import CheckpointConfig, Config, OptimizerConfig
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


def launch(config: Config, script: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Runs a config on two processes."""
    from fastsimsiam.config.stored import to_dict

    script.write_text(SCRIPT.replace("TESTS", repr(str(Path(__file__).parent))))
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    return subprocess.run(
        [*torchrun, str(script), json.dumps(to_dict(config)), *more],
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
        checkpoint=CheckpointConfig(every_epochs=0.1),
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


def test_a_folder_in_use_is_refused_on_all_ranks(tiny_config: Config, tmp_path: Path) -> None:
    with claimed(tiny_config.out, print):
        done = launch(replace(tiny_config, workers=1), tmp_path / "run.py", "auto")
    assert done.returncode != 0
    assert f"is in use by another run (process {os.getpid()} on" in done.stderr
    assert [path.name for path in tiny_config.out.iterdir()] == ["run.lock"]
