"""Durations in steps, and the learning rate as a function of the step."""

import math
from dataclasses import dataclass

from fastsimsiam.config.optimizer import OptimizerConfig
from fastsimsiam.config.run import Config


@dataclass(frozen=True, kw_only=True)
class ScheduleSteps:
    """The durations of a run in optimizer steps.

    Attributes:
        steps_per_epoch: steps of one epoch.
        total: steps of the whole schedule.
        stop: step at which the run ends, at most `total`.
        checkpoint_every: steps between checkpoints.
        knn_every: steps between evaluations; 0 is never.
    """

    steps_per_epoch: int
    total: int
    stop: int
    checkpoint_every: int
    knn_every: int


def schedule_steps(config: Config, steps_per_epoch: int) -> ScheduleSteps:
    """Converts the config's epochs to steps; no other function does."""
    total = config.epochs * steps_per_epoch
    return ScheduleSteps(
        steps_per_epoch=steps_per_epoch,
        total=total,
        stop=min(total, config.max_steps or total),
        checkpoint_every=max(1, round(config.checkpoint.every_epochs * steps_per_epoch)),
        knn_every=config.knn.every_epochs * steps_per_epoch,
    )


def learning_rate(
    optimizer: OptimizerConfig, *, batch_size: int, step: int, steps: ScheduleSteps
) -> float:
    """The learning rate of a step: a linear warm-up, then half a cosine or milestones.

    Of the n steps of a warm-up from 0, step i (counted from 0) has (i + 1) / n of the peak; with i / n,
    as in the code of SimCLR, BYOL and MoCo v3, the first step changes nothing. A warm-up from above 0
    includes both ends, as in SwAV's: i / (n - 1) of the way from the start to the peak.

    The cosine is at the peak in the first step, or epoch, after the warm-up, and would be at its final
    value in the first one after the run.

    Args:
        optimizer: base learning rate, warm-up, and how the learning rate falls.
        batch_size: samples per step.
        step: number of the step, from 0.
        steps: durations of the run.
    """
    peak = peak_lr(optimizer, batch_size)
    epochs = steps.total / steps.steps_per_epoch
    epoch = step / steps.steps_per_epoch
    if epoch < optimizer.warmup_epochs:
        warmup = math.ceil(optimizer.warmup_epochs * steps.steps_per_epoch)
        start = optimizer.warmup_start_factor
        if start == 0:
            return peak * (step + 1) / warmup
        return peak * (start + (1.0 - start) * step / max(warmup - 1, 1))
    if optimizer.decay == "milestones":
        return peak * 0.1 ** sum(epoch >= milestone for milestone in optimizer.milestones)
    if optimizer.schedule == "epoch":
        epoch = math.floor(epoch)
    done = (epoch - optimizer.warmup_epochs) / max(epochs - optimizer.warmup_epochs, 1e-9)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(max(done, 0.0), 1.0)))
    final = optimizer.final_lr_factor
    return peak * (final + (1.0 - final) * cosine)


def peak_lr(optimizer: OptimizerConfig, batch_size: int) -> float:
    """The largest learning rate of the schedule: the base learning rate, scaled by the batch size."""
    if optimizer.lr_scaling == "none":
        return optimizer.lr
    if optimizer.lr_scaling == "sqrt":
        return optimizer.lr * math.sqrt(batch_size / 256)
    return optimizer.lr * batch_size / 256
