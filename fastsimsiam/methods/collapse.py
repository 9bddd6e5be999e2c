"""How near a network is to giving all images the same output. Shapes: B batch, D dimensions."""

import math
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

COLLAPSED_STD = 0.1
"""Features of different images below it are as good as equal."""
EQUAL_STD = 1e-3
"""Outputs of no network with fresh weights are as equal as this."""
_MOST_THRESHOLD = 0.5
_LEAST_ACCURACY = 0.01
LOWER_RATE = (
    "Lower --optimizer.lr or --optimizer.weight-decay, or raise --optimizer.warmup-epochs; a "
    "--method.temperature of 1 or less separates images more."
)
"""Advice that holds for losses that compare images."""


def collapse_std(z: Tensor) -> Tensor:
    """How far z is from collapse: mean over dimensions of std(z / |z|), times sqrt(D).

    Args:
        z: projections (B, D).

    Returns:
        A scalar: about 1 for directions spread over the sphere, 0 where all outputs are equal;
        arXiv 2011.10566, section 4.1.
    """
    direction = F.normalize(z.detach().float(), dim=1)
    mean_std: Tensor = direction.std(dim=0, correction=0).mean()
    return mean_std * math.sqrt(z.shape[1])


def collapse_threshold(rows: int) -> float:
    """The `collapse_std` of a batch in training below which the network may have collapsed.

    Behind a BatchNorm not all outputs of a batch can be equal: one is left opposite to all others, and
    `collapse_std` is about 2 / sqrt(rows). Of fewer than 16 it is no smaller than that of healthy
    networks, so the threshold stays at 0.5.

    Args:
        rows: outputs that it was taken of, on one device.
    """
    return min(_MOST_THRESHOLD, max(COLLAPSED_STD, 3.0 / math.sqrt(rows)))


def above_chance(metrics: Mapping[str, float], chance: float) -> bool:
    """Whether `contrast_accuracy` is among the metrics, and well above that of guessing.

    Args:
        metrics: means over some log steps.
        chance: accuracy of guessing, 0 to 1.
    """
    enough = min((1.0 + chance) / 2.0, max(_LEAST_ACCURACY, 3.0 * chance))
    return metrics.get("contrast_accuracy", 0.0) > enough


def collapse_warning(
    metrics: Mapping[str, float], rows: int, advice: str = "", *, confirmed: bool = True
) -> str | None:
    """What to tell of a collapse, in sentences; None where `collapse_std` is large enough or missing.

    Args:
        metrics: means of the loss and of the method's metrics.
        rows: outputs on one device that `collapse_std` was taken of.
        advice: sentences that name the options to change.
        confirmed: another metric speaks of a collapse as well. If not, only outputs that are equal are
            told, whatever the other metrics are.
    """
    limit = collapse_threshold(rows) if confirmed else EQUAL_STD
    if metrics.get("collapse_std", math.inf) >= limit:
        return None
    return f"{equal_outputs(metrics)} {advice}".rstrip()


def equal_outputs(metrics: Mapping[str, float]) -> str:
    """The sentence that tells of equal outputs, with the metrics that show it."""
    names = {
        "collapse_std": "std*sqrt(D)",
        "loss": "loss",
        "contrast_accuracy": "contrast_accuracy",
    }
    healthy = {"collapse_std": ", healthy is about 1"}
    shown = "; ".join(
        f"{title} {metrics[name]:.3f}{healthy.get(name, '')}"
        for name, title in names.items()
        if name in metrics
    )
    return (
        f"all images get the same output ({shown}): the network has collapsed, or the images are all "
        "alike."
    )
