"""What the tests of this folder share: a tiny run, and what must be true of it at its end."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from damage.warm import Warm
from fastsimsiam.runs.checkpoint import CheckpointStore, load

LONG = os.environ.get("FASTSIMSIAM_DAMAGE") == "long"
"""Whether this is `make damage` rather than a part of all tests."""
OPTIONS = (
    "--epochs 3 --batch-size 8 --image-size 32 --device cpu --precision fp32 --compile off "
    "--loader cpu --workers 2 --log-every 1 --arch micro_resnet --method.projector-layers 2 "
    "--method.projector-dim 16 --method.predictor-dim 8 --knn.every-epochs 1 "
    "--checkpoint.every-epochs 0.67 --checkpoint.min-minutes 0 --checkpoint.keep 2"
).split()
TIMED = ("images_per_second", "data_wait")


@dataclass(frozen=True)
class Run:
    """A run in a folder of its own, with its own index cache."""

    folder: Path
    data: Path

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def command(self) -> list[object]:
        where = ["--data", self.data, "--out", self.out]
        return ["pretrain", "imagenette", *where, *OPTIONS, "--resume", "auto"]

    def options(self) -> dict[str, Any]:
        cache = self.folder / "cache"
        return {"watched": [self.out, cache], "environment": {"XDG_CACHE_HOME": str(cache)}}

    def changes(self) -> int:
        """Changes to files that the last process made."""
        return int(self.log.with_name("log.changes").read_text())

    def metrics(self) -> list[dict[str, float]]:
        """The lines of metrics.jsonl without what depends on time."""
        lines = map(json.loads, (self.out / "metrics.jsonl").read_text().splitlines())
        return [{k: v for k, v in line.items() if k not in TIMED} for line in lines]


def assert_as_whole(run: Run, whole: Run) -> None:
    """The run ended as if nothing had happened to it."""
    names = [path.name for path in CheckpointStore(run.out, 1).paths()]
    assert names == [path.name for path in CheckpointStore(whole.out, 1).paths()]
    for name in names:
        one, two = (load(place.out / "checkpoints" / name) for place in (run, whole))
        assert one.method.keys() == two.method.keys()
        assert all(torch.equal(value, two.method[key]) for key, value in one.method.items())
    assert run.metrics() == whole.metrics()
    present = {path.name for path in run.out.rglob("*")} | {
        path.name for path in (run.folder / "cache").rglob("*")
    }
    assert not [name for name in present if "partial" in name or name.startswith("tmp")]


def finish(warm: Warm, run: Run) -> None:
    code = warm.run(run.command(), run.log, **run.options())
    assert code == 0, run.log.read_text()
    assert "Traceback" not in run.log.read_text()
