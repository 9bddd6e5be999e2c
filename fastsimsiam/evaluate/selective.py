"""How well a measure of certainty orders images: those that are right before those that are wrong.

Shapes: N images. Images of equal certainty share their errors equally, as in a random order of them.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]


def auroc(higher: Floats, lower: Floats) -> float | None:
    """Share of pairs in which the first is larger, ties counted half: the area under the ROC curve.

    Args:
        higher: values that should be larger.
        lower: values that should be smaller.

    Returns:
        From 0 to 1, 0.5 where the values tell nothing; None where there are no pairs.
    """
    if not len(higher) or not len(lower):
        return None
    ordered = np.sort(lower)
    below = np.searchsorted(ordered, higher, side="left")
    ties = np.searchsorted(ordered, higher, side="right") - below
    return float((below + ties / 2).mean() / len(lower))


def risk_coverage(
    certainty: Floats, correct: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Error rate of the images that a measure is most certain of, for every number of them.

    Geifman and El-Yaniv, "Selective Classification for Deep Neural Networks", arXiv 1705.08500.

    Args:
        certainty: (N,) the larger the more certain.
        correct: (N,) whether the answer is right.

    Returns:
        Coverage (N,), 1/N to 1, and risk (N,), the error rate at that coverage. The mean of the risk is
        the area under the curve, AURC.
    """
    errors = _shared(certainty, ~correct)[::-1]
    numbers = np.arange(1, len(errors) + 1)
    return numbers / len(errors), np.cumsum(errors) / numbers


def least_aurc(correct: npt.NDArray[np.bool_]) -> float:
    """AURC of a measure that is less certain of every wrong answer than of every right one."""
    return float(risk_coverage(correct.astype(np.float64), correct)[1].mean())


def accuracy_by_quantile(
    certainty: Floats, correct: npt.NDArray[np.bool_], bins: int
) -> list[float]:
    """Share of right answers in parts of equal size, from the least certain to the most certain.

    Args:
        certainty: (N,) the larger the more certain.
        correct: (N,) whether the answer is right.
        bins: number of parts; fewer where there are fewer images.
    """
    parts = np.array_split(_shared(certainty, correct), min(bins, len(correct)))
    return [float(part.mean()) for part in parts]


def _shared(certainty: Floats, values: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Values in ascending order of certainty, with their mean where it is equal."""
    _, group, counts = np.unique(certainty, return_inverse=True, return_counts=True)
    means = np.bincount(group, weights=values) / counts
    in_order: npt.NDArray[np.float64] = means[np.sort(group)]
    return in_order
