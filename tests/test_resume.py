"""Checkpoints and resume: whatever kills a run, it goes on as if nothing had happened."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_trainer import trainer

from fastsimsiam.config.optimizer import OptimizerConfig
from fastsimsiam.config.run import Config
from fastsimsiam.errors import UserError
from fastsimsiam.runs.checkpoint import CheckpointStore, load
from fastsimsiam.train.pretrain import pretrain


def command(config: Config, *more: str) -> list[str]:
    """The command line of `tiny_config`."""
    options = (
        "--batch-size 16 --image-size 32 --device cpu --precision fp32 --compile off --loader cpu "
        "--workers 2 --log-every 1 --method.projector-layers 2 --method.projector-dim 64 "
        "--method.predictor-dim 16 --knn.every-epochs 0 --arch shufflenet_v2_x0_5 "
        "--checkpoint.every-epochs 0.34 "
        "--checkpoint.min-minutes 0"
    ).split()
    run = ["--data", str(config.data), "--out", str(config.out), "--epochs", str(config.epochs)]
    start = [sys.executable, "-m", "fastsimsiam", "pretrain", "imagenette"]
    return [*start, *run, *options, *more]


def wait_for_step(config: Config, process: "subprocess.Popen[str]", step: int) -> None:
    """Waits until a run has logged a step."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        file = config.out / "metrics.jsonl"
        if file.exists() and len(file.read_text().splitlines()) >= step:
            return
        assert process.poll() is None, "the run ended early"
        time.sleep(0.02)
    raise AssertionError("the run made no progress")


def start(config: Config, *more: str) -> "subprocess.Popen[str]":
    """Starts a run of its own process."""
    return subprocess.Popen(
        command(config, *more), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True
    )


def newest(config: Config) -> Path:
    """The newest checkpoint."""
    return CheckpointStore(config.out, keep=1).paths()[-1]


def assert_same_state(one: Path, two: Path) -> None:
    """Compares every tensor of two checkpoints bit for bit."""
    first, second = load(one), load(two)
    assert first.step == second.step
    for name, value in first.method.items():
        assert torch.equal(value, second.method[name]), name
    for number, state in first.optimizer["state"].items():
        other = second.optimizer["state"][number]
        assert state.keys() == other.keys() != set()
        assert all(torch.equal(value, other[name]) for name, value in state.items()), number


def test_sigkill_then_resume_equals_an_uninterrupted_run(
    tiny_config: Config, tmp_path: Path
) -> None:
    config = replace(tiny_config, epochs=4)
    whole = replace(config, out=tmp_path / "whole")
    process = start(config)
    wait_for_step(config, process, 9)  # in mid-epoch; where it dies is up to chance
    process.send_signal(signal.SIGKILL)
    process.wait()
    step = load(newest(config)).step
    assert 0 < step < 24
    finished = subprocess.run(command(config, "--resume"), capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert f"resumed at step {step}" in finished.stdout
    # In a process of its own too: another test may have changed the threads of this one.
    subprocess.run(command(whole), check=True, stdout=subprocess.DEVNULL)
    assert_same_state(newest(config), newest(whole))

    def trace(run: Config) -> list[tuple[int, float]]:
        lines = map(json.loads, (run.out / "metrics.jsonl").read_text().splitlines())
        return [(line["step"], line["loss"]) for line in lines]

    # No step is missing, none is there twice, and all losses are those of the whole run.
    assert trace(config) == trace(whole)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_and_leave(tiny_config: Config, number: int, code: int) -> None:
    config = replace(tiny_config, epochs=200)
    process = start(config, "--knn.every-epochs", "100")
    wait_for_step(config, process, 4)
    process.send_signal(number)
    assert process.wait(timeout=60) == code
    logged = (config.out / "metrics.jsonl").read_text().splitlines()
    assert load(newest(config)).step == json.loads(logged[-1])["step"]
    log = (config.out / "log.txt").read_text()
    assert "go on with --resume" in log
    # What is not true of an interrupted run is not said of it.
    step = load(newest(config)).step
    assert f"stopped at step {step} of 1200 in" in log
    assert "untrained ->" not in log
    assert "done in" not in log


def test_a_truncated_checkpoint_falls_back_loudly(tiny_config: Config) -> None:
    pretrain(tiny_config)
    paths = CheckpointStore(tiny_config.out, 1).paths()
    paths[-1].write_bytes(paths[-1].read_bytes()[:-1000])
    pretrain(tiny_config, resume=True)
    log = (tiny_config.out / "log.txt").read_text()
    assert f"WARNING: {paths[-1]} is damaged" in log
    assert "falling back" in log
    assert "resumed at step 9" in log
    for path in CheckpointStore(tiny_config.out, 1).paths():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="all checkpoints in .* are damaged"):
        pretrain(tiny_config, resume=True)


def test_a_checkpoint_of_an_unknown_method_is_not_called_damaged(tiny_config: Config) -> None:
    pretrain(replace(tiny_config, max_steps=2))
    (path,) = CheckpointStore(tiny_config.out, 1).paths()
    stored = torch.load(path, weights_only=True)
    stored["config"]["method"]["name"] = "nobody"
    torch.save(stored, path)
    with pytest.raises(UserError, match=r"step-00000002\.pt: .* unknown method: nobody"):
        pretrain(tiny_config, resume=True)
    del stored["optimizer"]
    torch.save(stored, path)
    with pytest.raises(UserError, match="all checkpoints in .* are damaged"):
        pretrain(tiny_config, resume=True)


def test_another_config_is_refused_by_key(tiny_config: Config) -> None:
    pretrain(replace(tiny_config, max_steps=2))
    other = replace(
        tiny_config,
        epochs=3,
        optimizer=OptimizerConfig(lr=0.2),
        views=(tiny_config.views[0], replace(tiny_config.views[1], blur=0.0)),
    )
    with pytest.raises(UserError) as caught:
        pretrain(other, resume=True)
    for key in ("epochs (2 -> 3)", "views.1.blur (0.5 -> 0.0)", "optimizer.lr (0.1 -> 0.2)"):
        assert key in str(caught.value)
    assert "views.0" not in str(caught.value)
    # What does not change the result may differ.
    assert pretrain(replace(tiny_config, workers=1, log_every=1), resume=True).steps == 12


def test_other_images_are_refused(tiny_config: Config, class_folders: Path, tmp_path: Path) -> None:
    pretrain(replace(tiny_config, max_steps=2))
    other = replace(tiny_config, data=_with_one_less(class_folders, tmp_path))
    with pytest.raises(
        UserError, match=r"images changed since the run .*: 1 image is missing \(.*png\)"
    ):
        pretrain(other, resume=True)
    (tiny_config.out / "images.npz").unlink()  # as in runs of earlier versions
    with pytest.raises(UserError, match="the training images changed since the checkpoint"):
        pretrain(other, resume=True)


def _with_one_less(class_folders: Path, tmp_path: Path) -> Path:
    data = tmp_path / "fewer"
    for split in ("train", "val"):
        for source in (class_folders / split).rglob("*.*"):
            target = data / source.relative_to(class_folders)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(source, target)
    next((data / "train").rglob("*.png")).unlink()
    return data


def test_resume_without_a_checkpoint_is_refused(tiny_config: Config) -> None:
    with pytest.raises(UserError, match="no checkpoint in .*: drop --resume"):
        pretrain(tiny_config, resume=True)


def test_the_time_of_a_run_that_has_not_started_is_that_of_its_earlier_parts(
    tiny_config: Config,
) -> None:
    made, recorder = trainer(tiny_config)
    assert made.elapsed() == 0.0
    made.seconds = 12.5
    assert made.elapsed() == 12.5
    recorder.close()
    made.loader.close()


def test_the_time_of_all_parts_is_told(tiny_config: Config) -> None:
    pretrain(replace(tiny_config, max_steps=3))
    (file,) = CheckpointStore(tiny_config.out, keep=1).paths()
    state = load(file)
    assert 0 < state.seconds < 60
    CheckpointStore(tiny_config.out, keep=1).save(replace(state, seconds=state.seconds + 1000))
    pretrain(tiny_config, resume=True)
    told = json.loads((tiny_config.out / "summary.json").read_text())["seconds"]
    assert 1000 + state.seconds < told < 1100


def test_a_finished_run_can_be_resumed(tiny_config: Config) -> None:
    pretrain(tiny_config)
    assert pretrain(tiny_config, resume=True).steps == 12


def test_checkpoints_are_atomic_and_the_newest_are_kept(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrain(tiny_config)
    store = CheckpointStore(tiny_config.out, keep=2)
    state = load(store.paths()[-1])
    before = [path.name for path in store.paths()]

    def full_disk(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full_disk)
        with pytest.raises(UserError, match="cannot write checkpoint .*No space left"):
            store.save(replace(state, step=13))
    assert [path.name for path in store.paths()] == before
    assert not list(tiny_config.out.rglob("*.partial"))
    synced: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", synced.append)
        store.save(replace(state, step=13))
    assert len(synced) == 2  # the file and the name of it
    store.save(replace(state, step=13))
    assert [path.name for path in store.paths()] == ["step-00000012.pt", "step-00000013.pt"]


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'exploded'}",)

    torch.save({"format": 1, "bomb": Bomb()}, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"x\.pt holds objects of posix\.system"):
        load(tmp_path / "x.pt")
    assert not (tmp_path / "exploded").exists()
