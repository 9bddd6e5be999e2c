"""Weighted k-nearest-neighbour classification of frozen features.

Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", arXiv
1805.01978, section 3.4: neighbours vote with weight exp(cosine similarity / temperature).
Shapes: N bank, Q queries, D features, K neighbours, C classes.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from fastsimsiam.config.run import KnnConfig
from fastsimsiam.evaluate.features import center_plan, extract
from fastsimsiam.loaders.base import Loader
from fastsimsiam.methods.base import Method
from fastsimsiam.plan.batches import CenterPlan
from fastsimsiam.storage.base import Report, Storage

_QUERY_CHUNK = 1024
_BANK_CHUNK = 131_072


def nearest(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest bank features of each query by cosine similarity.

    Only a block of the similarity matrix exists at a time.

    Args:
        queries: (Q, D) of length 1.
        bank: (N, D) of length 1.
        k: neighbours, at most N.

    Returns:
        Similarities (Q, k) in float32, falling, and bank positions (Q, k).
    """
    similar, position = [], []
    for start in range(0, len(queries), _QUERY_CHUNK):
        query = queries[start : start + _QUERY_CHUNK]
        best = query.new_empty((len(query), 0), dtype=torch.float32)
        where = torch.empty((len(query), 0), dtype=torch.int64, device=query.device)
        for first in range(0, len(bank), _BANK_CHUNK):
            block = (query @ bank[first : first + _BANK_CHUNK].T).float()
            value, index = block.topk(min(k, block.shape[1]), dim=1)
            best, where = torch.cat([best, value], 1), torch.cat([where, index + first], 1)
            best, kept = best.topk(min(k, best.shape[1]), dim=1)
            where = where.gather(1, kept)
        similar.append(best)
        position.append(where)
    return torch.cat(similar), torch.cat(position)


def knn_accuracy(
    bank: Tensor,
    bank_label: Tensor,
    queries: Tensor,
    query_label: Tensor,
    *,
    k: Sequence[int],
    temperature: float,
    num_classes: int,
) -> dict[int, float]:
    """Top-1 accuracy for several numbers of neighbours.

    Args:
        bank: training features (N, D) of length 1.
        bank_label: (N,).
        queries: validation features (Q, D) of length 1.
        query_label: (Q,).
        k: numbers of neighbours, each at most N.
        temperature: of the weights.
        num_classes: C.

    Returns:
        k -> share of right answers, 0 to 1.
    """
    similarity, position = nearest(queries, bank, max(k))
    label = bank_label[position]
    result = {}
    for count in k:
        answer = vote(
            similarity[:, :count],
            label[:, :count],
            temperature=temperature,
            num_classes=num_classes,
        )
        result[count] = (answer == query_label).float().mean().item()
    return result


def vote(similarity: Tensor, label: Tensor, *, temperature: float, num_classes: int) -> Tensor:
    """The class that neighbours vote for, weighted by exp(similarity / temperature).

    Args:
        similarity: (Q, K) cosine similarities, falling.
        label: (Q, K) classes of the neighbours.
        temperature: of the weights.
        num_classes: C.

    Returns:
        (Q,) class numbers.
    """
    # Relative to the nearest one, so that the exponential cannot overflow.
    weight = ((similarity - similarity[:, :1]) / temperature).exp()
    votes = torch.zeros(len(label), num_classes, device=label.device)
    return votes.scatter_add_(1, label, weight).argmax(dim=1)


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


def usable_k(k: Sequence[int], bank_size: int) -> list[int]:
    """The numbers of neighbours that a bank has; all of it where none fits."""
    return [count for count in k if count <= bank_size] or [bank_size]


def build_knn(
    train: tuple[Loader, Storage],
    val: tuple[Loader, Storage],
    *,
    knn: KnnConfig,
    image_size: int,
    device: torch.device,
    dtype: torch.dtype,
    report: Report | None = None,
) -> KnnEvaluator:
    """KNN of a validation split against a training split, each given as its loader and storage."""
    return KnnEvaluator(
        bank=(train[0], center_plan(train[1], image_size, knn.crop_fraction)),
        queries=(val[0], center_plan(val[1], image_size, knn.crop_fraction)),
        k=usable_k(knn.k, len(train[1])),
        temperature=knn.temperature,
        num_classes=len(train[1].classes),
        device=device,
        dtype=dtype,
        report=report,
    )
