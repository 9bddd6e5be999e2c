"""What a run says at its end: only what is true of one that was stopped, too."""

from collections.abc import Iterator, Mapping, Sequence
from signal import Signals

from fastsimsiam.optim.schedule import ScheduleSteps


def how_it_ended(steps: ScheduleSteps, step: int, signal: int) -> str:
    """How far a run has come.

    Args:
        steps: durations of the run.
        step: optimizer steps done.
        signal: number of the signal that has stopped it, or 0.
    """
    if signal:
        return f"stopped at step {step} of {steps.stop}"
    if steps.stop < steps.total:
        return f"done (--max-steps: {steps.stop} of {steps.total} steps)"
    return "done"


def how_to_go_on(step: int, signal: Signals) -> str:
    """What a run that was stopped says.

    Args:
        step: optimizer steps done.
        signal: what has stopped it.
    """
    if step:
        return f"{signal.name}: saved at step {step}; go on with --resume"
    return f"{signal.name}: stopped before the first step; the same command starts again"


def since_untrained(history: Sequence[Mapping[str, float]], step: int) -> Iterator[str]:
    """Yields a line for each kNN score of the untrained network and of a later one.

    Args:
        history: the lines of metrics.jsonl.
        step: optimizer steps done; a score of an earlier step is named so.
    """
    for name in dict.fromkeys(name for line in history for name in line if name.startswith("knn_")):
        scores = [(line["step"], line[name]) for line in history if name in line]
        (first_step, first), (last_step, last) = scores[0], scores[-1]
        if first_step == 0 < last_step:
            at = "" if last_step == step else f" (at step {last_step:g})"
            yield f"{name}: {first:.2f} untrained -> {last:.2f}{at}"
