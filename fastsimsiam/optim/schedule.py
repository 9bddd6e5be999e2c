"""When things happen: durations in steps, and the learning rate as a function of the step."""

import math
from dataclasses import dataclass

from fastsimsiam.config.run import Config, OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class Durations:
    """Every duration of a run, in optimiser steps.

    Attributes:
        steps_per_epoch: steps of one epoch.
        total: steps of the whole schedule.
        stop: where this run ends, at most `total`.
        checkpoint_every: steps between checkpoints.
        knn_every: steps between evaluations; 0 is never.
    """

    steps_per_epoch: int
    total: int
    stop: int
    checkpoint_every: int
    knn_every: int


def durations(config: Config, steps_per_epoch: int) -> Durations:
    """Turns the config's epochs into steps; the only place that does."""
    total = config.epochs * steps_per_epoch
    return Durations(
        steps_per_epoch=steps_per_epoch,
        total=total,
        stop=min(total, config.max_steps or total),
        checkpoint_every=max(1, round(config.checkpoint.every_epochs * steps_per_epoch)),
        knn_every=config.knn.every_epochs * steps_per_epoch,
    )


def learning_rate(
    optimizer: OptimizerConfig, *, batch_size: int, step: int, lengths: Durations
) -> float:
    """The learning rate of a step: linear warm-up, then half a cosine down to 0.

    Args:
        optimizer: base rate (per 256 samples), warm-up and granularity.
        batch_size: samples per step.
        step: from 0.
        lengths: of the run.
    """
    peak = starting_rate(optimizer, batch_size)
    epochs = lengths.total / lengths.steps_per_epoch
    epoch = step / lengths.steps_per_epoch
    if epoch < optimizer.warmup_epochs:
        return peak * (step + 1) / math.ceil(optimizer.warmup_epochs * lengths.steps_per_epoch)
    if optimizer.schedule == "epoch":
        epoch = math.floor(epoch)
    done = (epoch - optimizer.warmup_epochs) / max(epochs - optimizer.warmup_epochs, 1e-9)
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(max(done, 0.0), 1.0)))


def starting_rate(optimizer: OptimizerConfig, batch_size: int) -> float:
    """The rate at the top of the schedule, by the linear scaling rule."""
    return optimizer.lr * batch_size / 256
