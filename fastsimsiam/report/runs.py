"""The contents of a run's folder: config, metrics, diagnosis and facts."""

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from fastsimsiam.config.run import Config
from fastsimsiam.config.stored import from_dict
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.inspect import describe_std
from fastsimsiam.methods.collapse import COLLAPSED_STD, collapse_threshold
from fastsimsiam.methods.registry import find_method
from fastsimsiam.runs.checkpoint import CheckpointStore, load, newest_good
from fastsimsiam.runs.metrics import (
    METRICS_FILE,
    SUMMARY_FILE,
    is_number,
    read_metrics,
    read_summary,
)
from fastsimsiam.system.files import read_text
from fastsimsiam.system.progress import clock

_Content = TypeVar("_Content")
_ANNOUNCED = re.compile(r"(\d+) images of (\d+) classes")
KNN_PREFIX = "knn_top1_k"
"""Prefix of the names of kNN scores, before k."""
# A curve is a few hundred pixels wide; an ImageNet run logs 25,000 lines.
_MOST_POINTS = 600


@dataclass(frozen=True, kw_only=True)
class Run:
    """The contents of a run's folder.

    Attributes:
        name: name of the run, unique on the page.
        path: the run's folder.
        config: configuration in the newest checkpoint, or in summary.json without a checkpoint.
        lines: lines of metrics.jsonl.
        summary: contents of summary.json; empty until the run has ended.
        log: lines of log.txt.
        step: step of the newest checkpoint; None without a checkpoint.
        fingerprint: fingerprint of the training images, see `storage.base.fingerprint`; empty if
            unknown.
        changed: time of the last write to metrics.jsonl, in local time.
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
        """Numbers of training images and classes; None where the run's files do not tell."""
        for line in reversed(self.log):
            if match := _ANNOUNCED.search(line):
                return int(match[1]), int(match[2])
        number = self.fingerprint.partition(" ")[0]
        return (int(number), None) if number.isdigit() else None

    @property
    def steps_per_epoch(self) -> float:
        """Optimizer steps per epoch."""
        trained = [line for line in self.lines if line.get("epoch")]
        if trained:
            return float(trained[-1]["step"] / trained[-1]["epoch"])
        return max(1.0, self.counts[0] // self.config.batch_size) if self.counts else 1.0

    @property
    def scores(self) -> list[str]:
        """Names of the kNN scores in the log, the headline first."""
        names = {name for name in self.metrics if name.startswith(KNN_PREFIX)}
        configured = [f"{KNN_PREFIX}{k}" for k in self.config.knn.k]
        return [n for n in configured if n in names] + sorted(names.difference(configured))

    @property
    def metrics(self) -> list[str]:
        """Names of all scalar metrics in the log, in the order of their first appearance."""
        names = dict.fromkeys(
            name for line in self.lines for name, value in line.items() if is_number(value)
        )
        return [name for name in names if name not in ("step", "epoch")]

    def values(self, name: str) -> list[tuple[float, float]]:
        """Returns (epoch, value) of every line that has the metric."""
        per_epoch = self.steps_per_epoch
        return [
            (line.get("epoch", line["step"] / per_epoch), line[name])
            for line in self.lines
            if is_number(line.get(name))
        ]

    def curve(self, name: str) -> tuple[list[float], list[float]]:
        """Returns epochs and values, at most 600: a longer run's consecutive lines are averaged."""
        points = self.values(name)
        width = -(-len(points) // _MOST_POINTS) or 1
        parts = [points[first : first + width] for first in range(0, len(points), width)]
        return (
            [_short(part[-1][0]) for part in parts],
            [_short(sum(value for _, value in part) / len(part)) for part in parts],
        )

    @property
    def method(self) -> str:
        """Name of the run's method."""
        return self.config.method.name

    @property
    def is_thinned(self) -> bool:
        """Whether a curve's point is the mean of several lines."""
        return len(self.lines) > _MOST_POINTS


def _short(value: float) -> float:
    """Rounds to six digits: more than a chart shows, at a third of the bytes."""
    return float(f"{value:.6g}")


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Reads runs; names of folders that are not unique get their parent's name in front.

    Raises:
        UserError: a folder is missing, or holds no run.
    """
    same = len({path.resolve().name for path in paths}) < len(paths)
    return [
        _read(path, "/".join(path.resolve().parts[-2:]) if same else path.resolve().name)
        for path in paths
    ]


def _read(path: Path, name: str) -> Run:
    if path.exists() and not path.is_dir():
        raise UserError(
            f"{path} is a file: pass the folder of a run, which pretrain wrote with --out"
        )
    if not path.is_dir():
        raise UserError(f"there is no run {path}: pass a folder that pretrain wrote with --out")
    metrics = path / METRICS_FILE
    text = read_text(metrics)
    if text is None:
        raise UserError(f"{path} holds no run: expected {metrics}, which pretrain --out writes")
    saved = CheckpointStore(path, keep=1).paths()
    # Without a checkpoint the config is in the summary.
    summary = (_optional(lambda: read_summary(path)) or {}) if saved else read_summary(path)
    step, fingerprint = None, ""
    if saved:
        _, checkpoint = newest_good(path, _warn, load)
        config, step, fingerprint = checkpoint.config, checkpoint.step, checkpoint.data
    elif "config" in summary:
        try:
            config = from_dict(summary["config"])
        except UserError as error:
            raise UserError(f"{path / SUMMARY_FILE}: {error}") from error
    else:
        raise UserError(
            f"{path} has no config yet: expected checkpoints/step-*.pt or summary.json; wait for the "
            "run's first checkpoint"
        )
    log = _optional(lambda: read_text(path / "log.txt")) or ""
    return Run(
        name=name,
        path=path,
        config=config,
        lines=_read_lines(metrics, text),
        summary=summary,
        log=log.splitlines(),
        step=step,
        fingerprint=fingerprint,
        changed=datetime.fromtimestamp(metrics.stat().st_mtime).astimezone(),
    )


def _warn(text: str) -> None:
    print(text, file=sys.stderr)


def _optional(read: Callable[[], _Content]) -> _Content | None:
    """What `read` returns; None, with a note, if a part that the report can do without is damaged."""
    try:
        return read()
    except UserError as error:
        _warn(f"left out: {error}")
        return None


def _read_lines(path: Path, text: str) -> list[dict[str, Any]]:
    lines, others = read_metrics(text)
    # The run may be writing the last line, or was killed while it did.
    others = [number for number in others if number <= text.count("\n")]
    if others:
        _warn(
            f"left out: {len(others)} lines of {path} that no run has written, the first: {others[0]}"
        )
    if not lines:
        what = "has no line of a run" if text.strip() else "is empty"
        raise UserError(f"{path} {what}: wait until the run has logged its first step")
    return [values for _, values in lines]


def diagnosis(run: Run) -> tuple[str, str]:
    """Whether the network has collapsed, by the run's last metrics.

    Returns:
        The state (`healthy`, `half collapsed`, `collapsed`, `warning` or `unknown`), and a sentence.
    """
    trained = [line for line in run.lines if is_number(line.get("loss"))]
    if not trained:
        return "unknown", "no diagnosis: the run has not logged a step yet"
    metrics = {name: value for name, value in trained[-1].items() if is_number(value)}
    # Metrics are computed per forward pass. The run does not record its number of processes.
    batch = run.config.batch_size // run.config.accumulate
    method = find_method(run.config.method)
    warning = method.warning(metrics, batch)
    std = metrics.get("collapse_std")
    limit = collapse_threshold(batch * (len(run.config.views) if method.joint_views else 1))
    if warning and (std is None or std >= limit):
        return "warning", warning.rstrip(".")
    if not warning and method.told_apart(metrics, batch):
        accuracy = metrics["contrast_accuracy"]
        return "healthy", f"healthy: images are told apart (contrast_accuracy {accuracy:.2f})"
    if std is None:
        return "unknown", "no diagnosis: the method logs no collapse metric"
    metric = f"the last std of z/|z| times \u221aD is {std:.2f}; 1 is healthy"
    if warning:
        text = describe_std(0.0)
        metric += f", below {limit:.2f} is collapsed at batch {batch}"
    elif "contrast_accuracy" in metrics:  # the method says that it has not collapsed
        text = describe_std(max(std, COLLAPSED_STD))
    else:
        text = describe_std(std)
    return text.partition(":")[0], f"{text} ({metric})"


def facts(run: Run) -> list[tuple[str, str]]:
    """Returns the key facts of a run, as (name, value)."""
    config = run.config
    counts = run.counts
    epochs_done = max(line["step"] for line in run.lines) / run.steps_per_epoch
    rows = [
        ("recipe", config.recipe),
        ("method", run.method),
        ("network", f"{config.arch}, {config.image_size} px"),
    ]
    if counts:
        classes = f" of {counts[1]} classes" if counts[1] else ""
        rows.append(("training images", f"{counts[0]:,}{classes}"))
    rows.append(("epochs", f"{epochs_done:.4g} of {config.epochs}, batch {config.batch_size}"))
    seconds = run.summary.get("seconds")
    took = f", took {clock(seconds)}" if isinstance(seconds, (int, float)) else ", not finished"
    rows.append(("last written", f"{run.changed:%Y-%m-%d %H:%M}{took}"))
    for name in run.scores:
        values = run.values(name)
        untrained = values[0][0] == 0 and epochs_done
        before = f" (untrained {values[0][1]:.1f} %)" if untrained else ""
        k = name.removeprefix(KNN_PREFIX)
        rows.append((f"kNN top-1, k {k}", f"{values[-1][1]:.1f} %{before}"))
    if not run.scores:
        rows.append(("kNN top-1", "not evaluated in training"))
    return rows
