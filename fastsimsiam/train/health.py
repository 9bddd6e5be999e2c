"""What the metrics of a run say about its health; each thing is told once."""

import math
from collections.abc import Iterator, Mapping, Sequence

from fastsimsiam.loaders.base import Batch
from fastsimsiam.methods.base import Method
from fastsimsiam.methods.collapse import COLLAPSED_STD, EQUAL_STD, equal_outputs

_PATIENCE = 100
"""Steps after which outputs that are nearly equal are told: some networks begin so."""


class Health:
    """Watches metrics for numbers that are none, and for outputs that are all alike."""

    def __init__(self, method: type[Method], batch_size: int) -> None:
        """Takes the method's class, and the images per forward pass on one device."""
        self._method = method
        self._batch_size = batch_size
        self._equal_since: int | None = None
        self._told: set[str] = set()

    def warnings(
        self, step: int, metrics: Mapping[str, float], parts: Sequence[Batch], *, last: bool
    ) -> Iterator[str]:
        """Yields what the user should be told and was not yet, a sentence each.

        Args:
            step: optimizer steps done.
            metrics: means of the loss and the method's metrics since the last log step.
            parts: the latest batch; looked at, which waits for the device, if its outputs are alike.
            last: the run ends here.
        """
        odd = [name for name, value in metrics.items() if not math.isfinite(value)]
        if odd and self._is_new("number"):
            yield f"{', '.join(odd)} is not a finite number"
        collapse = self._collapse(step, metrics, last)
        if collapse and self._is_new("collapse"):
            yield collapse + _one_color(parts)

    def _collapse(self, step: int, metrics: Mapping[str, float], last: bool) -> str | None:
        std = metrics.get("collapse_std", math.inf)
        told_apart = self._method.told_apart(metrics, self._batch_size)
        before, equal = self._equal_since, std < (EQUAL_STD if told_apart else COLLAPSED_STD)
        self._equal_since = (step if before is None else before) if equal else None
        if not math.isfinite(std):
            return None
        told_by_method = self._method.warning(metrics, self._batch_size)
        if told_by_method or not equal:
            return told_by_method
        steps = 0 if before is None else step - before
        if std >= EQUAL_STD and steps < _PATIENCE and not (last and steps):
            return None
        return equal_outputs(metrics)

    def _is_new(self, what: str) -> bool:
        new = what not in self._told
        self._told.add(what)
        return new


def _one_color(parts: Sequence[Batch]) -> str:
    """A sentence if views of a batch show a single color, else nothing."""
    views = alike = 0
    for part in parts:
        for crops in part.crops:
            pixels = crops.flatten(2, 3)  # (B, V, H * W, 3)
            same = (pixels.amax(2) == pixels.amin(2)).all(-1)
            views += same.numel()
            alike += int(same.sum())
    if not alike:
        return ""
    return (
        f" {alike} of the {views} views of this batch are of a single color: look at the images, and "
        "at what `fastsimsiam views` draws of them."
    )
