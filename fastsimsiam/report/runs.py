"""What the files of a run say: its config, curves, verdict and facts."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fastsimsiam.config.run import Config
from fastsimsiam.config.stored import from_dict
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.inspect import describe_std
from fastsimsiam.methods.collapse import collapse_threshold
from fastsimsiam.methods.registry import METHODS
from fastsimsiam.runs.checkpoint import CheckpointStore, load
from fastsimsiam.system.progress import clock

_ANNOUNCED = re.compile(r"(\d+) images of (\d+) classes")
# A curve is a few hundred pixels wide; a run of ImageNet logs 25,000 lines.
_MOST_POINTS = 600


@dataclass(frozen=True, kw_only=True)
class Run:
    """What lies in the folder of a run.

    Attributes:
        name: that tells it from the other runs of the page.
        path: the folder.
        config: of the newest checkpoint; of summary.json where there is none.
        lines: of metrics.jsonl.
        summary: summary.json; empty while the run goes on.
        log: lines of log.txt.
        step: of the newest checkpoint; None where there is none.
        fingerprint: of the training images, see `build.fingerprint`; empty where it is not known.
        changed: when metrics.jsonl was last written, in local time.
    """

    name: str
    path: Path
    config: Config
    lines: Sequence[dict[str, Any]]
    summary: dict[str, Any]
    log: Sequence[str]
    step: int | None
    fingerprint: str
    changed: datetime

    @property
    def counts(self) -> tuple[int, int | None] | None:
        """Images and classes of the training split, as far as the run's files tell."""
        for line in reversed(self.log):
            if found := _ANNOUNCED.search(line):
                return int(found[1]), int(found[2])
        number = self.fingerprint.partition(" ")[0]
        return (int(number), None) if number.isdigit() else None

    @property
    def steps_per_epoch(self) -> float:
        """Optimizer steps of an epoch."""
        trained = [line for line in self.lines if line.get("epoch")]
        if trained:
            return float(trained[-1]["step"] / trained[-1]["epoch"])
        return max(1.0, self.counts[0] // self.config.batch_size) if self.counts else 1.0

    @property
    def scores(self) -> list[str]:
        """Names of the kNN figures in the log, the headline first."""
        names = {name for line in self.lines for name in line if name.startswith("knn_top1_k")}
        headline = [f"knn_top1_k{k}" for k in self.config.knn.k]
        return [n for n in headline if n in names] + sorted(names.difference(headline))

    def values(self, name: str) -> list[tuple[float, float]]:
        """(epoch, value) of every line that has the figure."""
        per_epoch = self.steps_per_epoch
        return [
            (line.get("epoch", line["step"] / per_epoch), line[name])
            for line in self.lines
            if isinstance(line.get(name), (int, float))
        ]

    def curve(self, name: str) -> tuple[list[float], list[float]]:
        """Epochs and values, at most 600: of longer runs the means of consecutive lines."""
        points = self.values(name)
        width = -(-len(points) // _MOST_POINTS) or 1
        parts = [points[first : first + width] for first in range(0, len(points), width)]
        return (
            [_short(part[-1][0]) for part in parts],
            [_short(sum(value for _, value in part) / len(part)) for part in parts],
        )

    @property
    def is_thinned(self) -> bool:
        """Whether curves are means of several lines."""
        return len(self.lines) > _MOST_POINTS


def _short(value: float) -> float:
    """Six digits are more than a chart shows, and a third of the bytes."""
    return float(f"{value:.6g}")


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Reads runs; where folders have the same name, their parents' are added.

    Raises:
        UserError: a folder is missing, or holds no run.
    """
    same = len({path.resolve().name for path in paths}) < len(paths)
    return [
        _read(path, "/".join(path.resolve().parts[-2:]) if same else path.resolve().name)
        for path in paths
    ]


def _read(path: Path, name: str) -> Run:
    if not path.is_dir():
        raise UserError(f"there is no run {path}: pass a folder that pretrain wrote with --out")
    metrics = path / "metrics.jsonl"
    if not metrics.is_file():
        raise UserError(f"{path} holds no run: expected {metrics}, which pretrain --out writes")
    summary = _read_summary(path / "summary.json")
    step, fingerprint = None, ""
    if saved := CheckpointStore(path, keep=1).paths():
        checkpoint = load(saved[-1])
        config, step, fingerprint = checkpoint.config, checkpoint.step, checkpoint.data
    elif "config" in summary:
        config = from_dict(summary["config"])
    else:
        raise UserError(
            f"{path} does not tell its config yet: expected checkpoints/step-*.pt or summary.json; "
            f"wait for the run's first checkpoint"
        )
    log = path / "log.txt"
    return Run(
        name=name,
        path=path,
        config=config,
        lines=_read_lines(metrics),
        summary=summary,
        log=log.read_text(errors="replace").splitlines() if log.is_file() else [],
        step=step,
        fingerprint=fingerprint,
        changed=datetime.fromtimestamp(metrics.stat().st_mtime).astimezone(),
    )


def _read_summary(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        stored = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): remove it, the rest will do") from error
    if not isinstance(stored, dict):
        raise UserError(f"{path} is not what pretrain writes: remove it, the rest will do")
    return stored


def _read_lines(path: Path) -> list[dict[str, Any]]:
    found = []
    text = path.read_text(errors="replace").splitlines()
    for number, line in enumerate(text, start=1):
        try:
            values = json.loads(line)
        except ValueError as error:
            if number == len(text):  # a run that is being written, or was cut short
                break
            raise UserError(f"{path}, line {number} is not JSON: remove the line") from error
        if not isinstance(values, dict) or "step" not in values:
            raise UserError(f"{path}, line {number} has no step: remove the line")
        found.append(values)
    if not found:
        raise UserError(f"{path} is empty: wait until the run has logged its first step")
    return found


def verdict(run: Run) -> tuple[str, str]:
    """Whether a network has collapsed, by the last collapse figure: a word or two, and a sentence."""
    values = run.values("collapse_std")
    if not values:
        return "unknown", "no verdict: the run has not logged a step yet"
    std = values[-1][1]
    # As the trainer warns: behind a BatchNorm the figure of a batch cannot fall to 0.
    batch = run.config.batch_size // run.config.accumulate
    loss = (run.values("loss") or [(0.0, 0.0)])[-1][1]
    method = METHODS[type(run.config.method)]
    warning = method.warning({"loss": loss, "collapse_std": std}, batch)
    text = describe_std(0.0 if warning else std)
    figure = (
        f"the last std of z/|z| times \u221aD is {std:.2f}; 1 is healthy, below "
        f"{collapse_threshold(batch):.2f} is collapsed at batch {batch}"
    )
    return text.partition(":")[0], f"{text} ({figure})"


def facts(run: Run) -> list[tuple[str, str]]:
    """What a reader wants to know first, as (name, value)."""
    config = run.config
    counts = run.counts
    done = max(line["step"] for line in run.lines) / run.steps_per_epoch
    found = [("recipe", config.recipe), ("network", f"{config.arch}, {config.image_size} px")]
    if counts:
        classes = f" of {counts[1]} classes" if counts[1] else ""
        found.append(("training images", f"{counts[0]:,}{classes}"))
    found.append(("epochs", f"{done:.4g} of {config.epochs}, batch {config.batch_size}"))
    seconds = run.summary.get("seconds")
    took = f", took {clock(seconds)}" if isinstance(seconds, (int, float)) else ", not finished"
    found.append(("last written", f"{run.changed:%Y-%m-%d %H:%M}{took}"))
    for name in run.scores:
        values = run.values(name)
        before = f" (untrained {values[0][1]:.1f} %)" if values[0][0] == 0 and done else ""
        k = name.removeprefix("knn_top1_k")
        found.append((f"kNN top-1, k {k}", f"{values[-1][1]:.1f} %{before}"))
    if not run.scores:
        found.append(("kNN top-1", "not evaluated in training"))
    return found
