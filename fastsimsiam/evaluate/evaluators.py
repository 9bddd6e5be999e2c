"""Evaluators: what the trainer calls between epochs. Each yields (name, value)."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch

from fastsimsiam.evaluate.features import extract
from fastsimsiam.evaluate.knn import knn_accuracy
from fastsimsiam.loaders.batch import Loader
from fastsimsiam.methods.base import Method
from fastsimsiam.plan.batches import CenterPlan


class Evaluator(Protocol):
    """Scores a method without changing it."""

    def __call__(self, method: Method) -> Iterator[tuple[str, float]]:
        """Yields figures by name."""


class KnnEvaluator:
    """kNN top-1 of the backbone's features, training split as the bank."""

    def __init__(
        self,
        *,
        bank: tuple[Loader, CenterPlan],
        queries: tuple[Loader, CenterPlan],
        k: Sequence[int],
        temperature: float,
        num_classes: int,
        device: torch.device,
        dtype: torch.dtype,
        report: Callable[[int, int], None] | None = None,
    ) -> None:
        """Takes loaders and plans of both splits; the rest as in `knn_accuracy` and `extract`."""
        self._bank = bank
        self._queries = queries
        self._k = k
        self._temperature = temperature
        self._num_classes = num_classes
        self._device = device
        self._dtype = dtype
        self._report = report

    def __call__(self, method: Method) -> Iterator[tuple[str, float]]:
        """Yields `knn_top1_k<k>` in percent."""
        sides = []
        for loader, plan in (self._bank, self._queries):
            sides.append(
                extract(
                    method.backbone, loader, plan,
                    device=self._device, dtype=self._dtype, report=self._report,
                )
            )  # fmt: skip
        (bank, bank_label), (queries, query_label) = sides
        scores = knn_accuracy(
            bank, bank_label, queries, query_label,
            k=self._k, temperature=self._temperature, num_classes=self._num_classes,
        )  # fmt: skip
        for k, score in scores.items():
            yield f"knn_top1_k{k}", 100.0 * score
