"""Damaged images: no loader crashes or hangs, and all agree on what is broken and on what is shown."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import require

from damage.harness import LONG
from damage.mutate import encoded_images, mutated

COUNT = 1000 if LONG else 98
LOADERS = ("cpu", "resident", "reference", "dali")
# Largest difference of a loader's crops from those of `cpu`, in gray levels: resampling is rounded.
TOLERANCE = {"cpu": 0, "resident": 0, "reference": 2, "dali": 3, "ffcv": 2}


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mutated images of all kinds, and one intact image of each."""
    folder = tmp_path_factory.mktemp("mutants") / "train" / "a"
    folder.mkdir(parents=True)
    rng = random.Random(0)
    kinds = encoded_images()
    for name, data in kinds.items():
        (folder / f"intact-{name}").write_bytes(data)
    for number in range(COUNT):
        name = list(kinds)[number % len(kinds)]
        (folder / f"{number:04d}-{name}").write_bytes(mutated(kinds[name], rng))
    return folder.parents[1]


def verdict(loader: str, data: Path, out: Path) -> tuple[dict[str, Any], np.ndarray]:
    """What a loader makes of a data set."""
    if loader in ("dali", "ffcv"):
        require(loader)
    command = [
        sys.executable,
        str(Path(__file__).with_name("judge.py")),
        loader,
        str(data),
        str(out),
    ]
    environment = os.environ | {"XDG_CACHE_HOME": str(out.parent / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(out.with_suffix(".json").read_text()), np.load(out.with_suffix(".npy"))


@pytest.fixture(scope="module")
def by_cpu(
    damaged: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], np.ndarray]:
    return verdict("cpu", damaged, tmp_path_factory.mktemp("cpu") / "cpu")


def test_some_are_refused_and_no_intact_one(by_cpu: tuple[dict[str, Any], np.ndarray]) -> None:
    refused = by_cpu[0]["refused"]
    assert COUNT / 5 < len(refused) < COUNT
    assert not [name for name in refused if name.startswith("intact")]
    for name, reason in refused.items():
        assert name in reason
        assert " object at 0x" not in reason
        assert "\n" not in reason


@pytest.mark.parametrize("loader", LOADERS[1:])
def test_loaders_agree(
    damaged: Path, by_cpu: tuple[dict[str, Any], np.ndarray], loader: str, tmp_path: Path
) -> None:
    theirs, crops = verdict(loader, damaged, tmp_path / loader)
    mine, wanted = by_cpu
    assert theirs["refused"].keys() == mine["refused"].keys()
    difference = np.abs(crops.astype(int) - wanted.astype(int)).reshape(len(crops), -1).max(axis=1)
    off = {
        n: int(d) for n, d in zip(mine["names"], difference, strict=True) if d > TOLERANCE[loader]
    }
    assert not off
    if loader != "dali":
        assert theirs["warned"].keys() == mine["warned"].keys()


def test_what_is_packed_is_shown_alike_by_all(
    damaged: Path, by_cpu: tuple[dict[str, Any], np.ndarray], tmp_path: Path
) -> None:
    require("ffcv")
    packed = tmp_path / "train.beton"
    pack = ["pack", str(damaged / "train"), str(packed), "--on-bad-image", "skip"]
    done = subprocess.run(
        [sys.executable, "-m", "fastsimsiam", *pack], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    left_out = json.loads((tmp_path / "train.beton.json").read_text())["left_out"]
    assert {Path(name).name for name in left_out} == by_cpu[0]["refused"].keys()
    mine, wanted = verdict("cpu", packed, tmp_path / "packed-cpu")
    assert not mine["refused"]
    for loader in ("ffcv", "resident"):
        theirs, crops = verdict(loader, packed, tmp_path / f"packed-{loader}")
        assert not theirs["refused"]
        assert np.abs(crops.astype(int) - wanted.astype(int)).max() <= TOLERANCE[loader]
