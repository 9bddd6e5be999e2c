"""Damaged files of every kind that commands read: one line or an answer, no traceback, no hang."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from damage.harness import LONG, Run
from damage.mutate import mutated
from damage.warm import Warm
from fastsimsiam.evaluate.pretrained import load_backbone

COUNT = 40 if LONG else 2


def assert_answered(code: int, log: Path, what: str) -> None:
    text = log.read_text(errors="replace")
    assert "Traceback" not in text, f"{what}: {text}"
    assert code in (0, 2), f"{what}: {code} {text}"
    errors = [line for line in text.splitlines() if line.startswith("fastsimsiam: error: ")]
    assert len(errors) == (code == 2), f"{what}: {text}"


def spoil(file: Path, rng: random.Random) -> None:
    file.write_bytes(mutated(file.read_bytes(), rng))


FILES: dict[str, Callable[[Path], Path]] = {
    "checkpoint": lambda run: max((run / "checkpoints").iterdir()),
    "metrics": lambda run: run / "metrics.jsonl",
    "summary": lambda run: run / "summary.json",
    "log": lambda run: run / "log.txt",
}


@pytest.mark.parametrize("kind", FILES)
def test_damaged_files_of_a_run(
    warm: Warm, whole: Run, few_images: Path, tmp_path: Path, kind: str
) -> None:
    rng = random.Random(kind)
    for number in range(COUNT):
        run = Run(tmp_path / str(number), few_images)
        shutil.copytree(whole.folder, run.folder)
        spoil(FILES[kind](run.out), rng)
        for name, argv in (
            ("knn", ["knn", run.out, "--data", few_images, "--k", "5"]),
            ("report", ["report", run.out, "--out", run.folder / "r.html"]),
            ("resume", run.command()),
        ):
            log = run.folder / f"{name}.log"
            assert_answered(warm.run(argv, log, **run.options()), log, f"{name} {number}")
        shutil.rmtree(run.folder)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_weights(
    warm: Warm, whole: Run, few_images: Path, tmp_path: Path, suffix: str
) -> None:
    rng = random.Random(suffix)
    good = tmp_path / f"good{suffix}"
    if suffix == ".pth":
        torch.save(load_backbone(whole.out).state_dict(), good)
    else:
        assert warm.run(["export", whole.out, good], tmp_path / "log") == 0
    for number in range(COUNT):
        file = tmp_path / f"{number}{suffix}"
        file.write_bytes(mutated(good.read_bytes(), rng))
        log = tmp_path / f"{number}.log"
        code = warm.run(["knn", file, "--data", few_images, "--k", "5"], log)
        assert_answered(code, log, f"weights {number}")


def test_a_damaged_index_is_never_believed(
    warm: Warm, whole: Run, few_images: Path, tmp_path: Path
) -> None:
    rng = random.Random("index")
    indices = sorted((whole.folder / "cache").rglob("index-*"))
    assert len(indices) == 2  # of train and val
    wanted = json.loads((whole.out / "summary.json").read_text())["data"]
    for number in range(COUNT):
        run = Run(tmp_path / str(number), few_images)
        shutil.copytree(whole.folder, run.folder)
        shutil.rmtree(run.out)
        for index in indices:
            spoil(run.folder / index.relative_to(whole.folder), rng)
        code = warm.run([*run.command(), "--max-steps", "1"], run.log, **run.options())
        assert code == 0, run.log.read_text()
        assert json.loads((run.out / "summary.json").read_text())["data"] == wanted
        shutil.rmtree(run.folder)


def test_pipes_and_devices_never_hang_a_command(
    warm: Warm, whole: Run, few_images: Path, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    data = tmp_path / "data" / "train" / "a"
    data.mkdir(parents=True)
    os.mkfifo(data / "pipe.jpg")
    for number, argv in enumerate(
        (
            ["knn", pipe, "--data", few_images],
            ["knn", "/dev/zero", "--data", few_images],
            ["knn", whole.out, "--data", pipe],
            ["knn", whole.out, "--data", tmp_path / "data"],
            ["pack", pipe, tmp_path / "p.beton"],
            ["views", pipe, "--out", tmp_path / "v.png"],
            ["report", pipe, "--out", tmp_path / "r.html"],
            ["pretrain", "imagenette", "--data", few_images, "--out", pipe],
        )
    ):
        log = tmp_path / f"{number}.log"
        assert warm.run(argv, log, seconds=30) == 2, log.read_text()
        assert_answered(2, log, str(argv))


def test_nothing_in_a_checkpoint_is_run(warm: Warm, few_images: Path, tmp_path: Path) -> None:
    """A pickle that would create a file when it is loaded."""

    class Creates:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return open, (str(tmp_path / "ran"), "w")

    torch.save({"state_dict": Creates()}, tmp_path / "evil.pth")
    log = tmp_path / "log"
    code = warm.run(["knn", tmp_path / "evil.pth", "--data", few_images], log)
    assert_answered(code, log, "evil")
    assert code == 2
    assert not (tmp_path / "ran").exists()
