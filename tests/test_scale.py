"""Millions of images: the index and the plan stay quick, and memory stays flat."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import scale

IMAGES = 2_000_000


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """What `benchmarks.scale` measures of two million images."""
    folder = tmp_path_factory.mktemp("scale")
    cache = folder / "cache"
    before = os.environ["XDG_CACHE_HOME"]
    os.environ["XDG_CACHE_HOME"] = str(cache)
    try:
        (folder / "shards").mkdir()
        scale.make(folder / "shards", IMAGES, 200)
    finally:
        os.environ["XDG_CACHE_HOME"] = before
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scale", "--measure", str(folder / "shards")],
        env=os.environ | {"XDG_CACHE_HOME": str(cache)},
        cwd=Path(scale.__file__).parents[2],
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def test_opening_takes_little_time_and_memory(measured: dict[str, float]) -> None:
    assert measured["images"] == IMAGES
    # A hundred million in ten seconds is 0.2 for these; a loop in Python over them takes seconds.
    assert measured["open_seconds"] < 2
    assert measured["peak_mib_after_opening"] - measured["peak_mib_of_libraries"] < 200


def test_a_batch_of_the_plan_is_quick_at_any_position(measured: dict[str, object]) -> None:
    milliseconds = measured["milliseconds"]
    assert isinstance(milliseconds, dict)
    assert {name: min(samples) for name, samples in milliseconds.items() if min(samples) > 2} == {}
    assert measured["peak_mib"] - measured["peak_mib_after_opening"] < 50  # type: ignore[operator]
