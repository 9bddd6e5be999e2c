"""Nearest training images and predicted classes of images the network was not trained on.

Shapes: N training images (the bank), Q query images, D features, K neighbors, C classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastsimsiam.config.evaluation import Split
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.context import EvalContext
from fastsimsiam.evaluate.knn import usable_k
from fastsimsiam.evaluate.neighbors import nearest, vote
from fastsimsiam.evaluate.trained_method import method_with_certainty
from fastsimsiam.plan.order import epoch_order
from fastsimsiam.storage.base import Storage
from fastsimsiam.system.progress import ImageProgress

NEIGHBORS = 6
"""Neighbors shown beside a query image."""
_QUERIES_OF_A_FLAT_SET = 2000


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """Images and their features; broken images are left out.

    Attributes:
        storage: the images' storage.
        index: (N,) numbers of the images in the storage.
        features: (N, D), rows of length 1.
        label: (N,) class numbers, on the features' device.
        kappa: (N,) the method's certainty; None for methods without.
    """

    storage: Storage
    index: npt.NDArray[np.int64]
    features: Tensor
    label: Tensor
    kappa: npt.NDArray[np.float32] | None

    def pick(self, rows: npt.NDArray[np.int64]) -> "Embedded":
        """Returns the images of these rows."""
        where = torch.as_tensor(rows.copy(), device=self.features.device)
        return Embedded(
            storage=self.storage,
            index=self.index[rows],
            features=self.features[where],
            label=self.label[where],
            kappa=None if self.kappa is None else self.kappa[rows],
        )


@dataclass(frozen=True, kw_only=True)
class Neighborhood:
    """Query images, their nearest training images, and the classes these vote for.

    Attributes:
        queries: the Q query images.
        bank: the N training images.
        similarity: (Q, K) cosine similarities, falling; K is at least `NEIGHBORS` where N allows.
        position: (Q, K) rows of the bank.
        predicted: (Q,) class numbers.
        k: number of neighbors that vote.
        of_training: whether the queries are training images, each excluded from its neighbors.
    """

    queries: Embedded
    bank: Embedded
    similarity: npt.NDArray[np.float32]
    position: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]
    k: int
    of_training: bool

    @property
    def label(self) -> npt.NDArray[np.int64]:
        """(Q,) true class numbers."""
        label: npt.NDArray[np.int64] = self.queries.label.cpu().numpy()
        return label

    @property
    def accuracy(self) -> float:
        """Share of correct predictions, 0 to 1."""
        return float((self.predicted == self.label).mean())

    def counts(self) -> npt.NDArray[np.int64]:
        """Returns (C, C) counts of queries, true class by predicted class."""
        counts = np.zeros((len(self.bank.storage.classes),) * 2, np.int64)
        np.add.at(counts, (self.label, self.predicted), 1)
        return counts

    def one_of_each_class(self, number: int) -> list[int]:
        """Returns up to `number` rows of the queries, in random order, classes taking turns."""
        remaining: dict[int, list[int]] = {}
        for row in epoch_order(len(self.label), 0, 0).tolist():
            remaining.setdefault(int(self.label[row]), []).append(row)
        rows: list[int] = []
        while remaining and len(rows) < number:
            for label in sorted(remaining):
                rows.append(remaining[label].pop(0))
                if not remaining[label]:
                    del remaining[label]
        return rows[:number]


def find_neighbors(session: EvalContext) -> Neighborhood:
    """Extracts the features of a data set and finds every query's nearest training images.

    The bank is the whole training split. Queries are the validation images, or 2,000 training images
    where there is no validation split.

    Args:
        session: the network, its data, and k and temperature of its kNN.

    Raises:
        UserError: an image is broken, or there are too few.
    """
    train = session.train
    knn = session.config.knn
    bank = _embed(session, "train")
    if session.eval_split == "val":
        queries, query_rows = _embed(session, "val"), None
    else:
        rows = epoch_order(len(bank.index), 0, 0)[:_QUERIES_OF_A_FLAT_SET].copy()
        queries, query_rows = bank.pick(rows), torch.as_tensor(rows, device=bank.label.device)
    candidates = len(bank.index) - (query_rows is not None)
    if candidates < 1 or not len(queries.index):
        raise UserError(f"{train.root} has too few images for a search of neighbors: add some")
    k = usable_k(knn.k, candidates)[0]
    similarity, position = _nearest(queries, bank, min(max(k, NEIGHBORS), candidates), query_rows)
    predicted = vote(
        similarity[:, :k],
        bank.label[position[:, :k]],
        temperature=knn.temperature,
        num_classes=len(train.classes),
    )
    return Neighborhood(
        queries=queries,
        bank=bank,
        similarity=similarity.cpu().numpy(),
        position=position.cpu().numpy(),
        predicted=predicted.cpu().numpy(),
        k=k,
        of_training=query_rows is not None,
    )


def _nearest(
    queries: Embedded, bank: Embedded, k: int, query_rows: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As `evaluate.neighbors.nearest`, excluding row `query_rows` (Q,) of the bank from each query."""
    if query_rows is None:
        return nearest(queries.features, bank.features, k)
    similarity, position = nearest(queries.features, bank.features, k + 1)
    # An image is not always its own first neighbor: copies of it are as near.
    others = position != query_rows[:, None]
    others[:, -1] &= ~others[:, :-1].all(dim=1)
    shape = (len(position), k)
    return similarity[others].reshape(shape), position[others].reshape(shape)


def _embed(session: EvalContext, split: Split) -> Embedded:
    method = method_with_certainty(session.pretrained, session.device)
    with ImageProgress("features", unit="batches") as progress, torch.no_grad():
        found = session.extract(split, progress, measure=method.certainty if method else None)
    return Embedded(
        storage=session.splits[split],
        index=found.index,
        features=found.unit,
        label=found.label,
        kappa=None if found.measured is None else found.measured.cpu().numpy(),
    )


def shown_neighbors(neighborhood: Neighborhood, row: int) -> Iterator[tuple[int, int, float]]:
    """Yields (number in the storage, class, similarity) of a query's `NEIGHBORS` nearest images."""
    bank = neighborhood.bank
    rows = neighborhood.position[row, :NEIGHBORS].tolist()
    for position, similarity in zip(rows, neighborhood.similarity[row].tolist(), strict=False):
        yield int(bank.index[position]), int(bank.label[position]), similarity
