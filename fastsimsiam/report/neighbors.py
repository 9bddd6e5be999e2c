"""Whom the network takes for alike: neighbors and classes of images it was not trained on.

Shapes: N training images (the bank), Q images asked about, D features, K neighbors, C classes.
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
from fastsimsiam.evaluate.features import extract
from fastsimsiam.evaluate.knn import usable_k
from fastsimsiam.evaluate.neighbors import nearest, vote
from fastsimsiam.plan.order import epoch_order
from fastsimsiam.storage.base import Storage
from fastsimsiam.system.progress import ImageProgress

NEIGHBORS = 6
"""Shown beside an image."""
_MOST_OF_A_FLAT_SET = 2000


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """Images and their features; broken images are left out.

    Attributes:
        storage: where they lie.
        index: (N,) their numbers in it.
        features: (N, D) of length 1.
        label: (N,) class numbers, on the features' device.
    """

    storage: Storage
    index: npt.NDArray[np.int64]
    features: Tensor
    label: Tensor

    def pick(self, rows: npt.NDArray[np.int64]) -> "Embedded":
        """Some of the rows."""
        where = torch.as_tensor(rows.copy(), device=self.features.device)
        return Embedded(
            storage=self.storage,
            index=self.index[rows],
            features=self.features[where],
            label=self.label[where],
        )


@dataclass(frozen=True, kw_only=True)
class Neighborhood:
    """Images, their nearest training images, and the classes that those vote for.

    Attributes:
        asked: the Q images.
        bank: the N training images.
        similarity: (Q, K) cosine similarities, falling; K is at least `NEIGHBORS` where N allows.
        position: (Q, K) rows of the bank.
        predicted: (Q,) class numbers.
        k: neighbors that voted.
        of_training: the images asked about are training images, each left out of its own bank.
    """

    asked: Embedded
    bank: Embedded
    similarity: npt.NDArray[np.float32]
    position: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]
    k: int
    of_training: bool

    @property
    def label(self) -> npt.NDArray[np.int64]:
        """(Q,) true class numbers."""
        found: npt.NDArray[np.int64] = self.asked.label.cpu().numpy()
        return found

    @property
    def accuracy(self) -> float:
        """Share of right answers, 0 to 1."""
        return float((self.predicted == self.label).mean())

    def counts(self) -> npt.NDArray[np.int64]:
        """(C, C) how often a class (row) was taken for a class (column)."""
        found = np.zeros((len(self.bank.storage.classes),) * 2, np.int64)
        np.add.at(found, (self.label, self.predicted), 1)
        return found

    def one_of_each_class(self, number: int) -> list[int]:
        """Up to `number` rows of the images asked about, classes in turns, else at random."""
        waiting: dict[int, list[int]] = {}
        for row in epoch_order(len(self.label), 0, 0).tolist():
            waiting.setdefault(int(self.label[row]), []).append(row)
        found: list[int] = []
        while waiting and len(found) < number:
            for name in sorted(waiting):
                found.append(waiting[name].pop(0))
                if not waiting[name]:
                    del waiting[name]
        return found[:number]


def examine(session: EvalContext) -> Neighborhood:
    """Features of a data set, and who is near whom.

    The bank is the whole training split. Asked about are the validation images, or 2,000 of the
    training images where there is no such split.

    Args:
        session: whose network, data, k and temperature count.

    Raises:
        UserError: a broken image, or too few of them.
    """
    train = session.train
    knn = session.config.knn
    bank = _embed(session, "train")
    if session.eval_split == "val":
        asked, own = _embed(session, "val"), None
    else:
        rows = epoch_order(len(bank.index), 0, 0)[:_MOST_OF_A_FLAT_SET].copy()
        asked, own = bank.pick(rows), torch.as_tensor(rows, device=bank.label.device)
    spare = len(bank.index) - (own is not None)
    if spare < 1 or not len(asked.index):
        raise UserError(f"{train.root} has too few images to look for neighbors among: add some")
    k = usable_k(knn.k, spare)[0]
    similarity, position = _nearest(asked, bank, min(max(k, NEIGHBORS), spare), own)
    predicted = vote(
        similarity[:, :k],
        bank.label[position[:, :k]],
        temperature=knn.temperature,
        num_classes=len(train.classes),
    )
    return Neighborhood(
        asked=asked,
        bank=bank,
        similarity=similarity.cpu().numpy(),
        position=position.cpu().numpy(),
        predicted=predicted.cpu().numpy(),
        k=k,
        of_training=own is not None,
    )


def _nearest(asked: Embedded, bank: Embedded, k: int, own: Tensor | None) -> tuple[Tensor, Tensor]:
    """As `evaluate.knn.nearest`; `own` (Q,) are the rows of the bank that are the images themselves."""
    if own is None:
        return nearest(asked.features, bank.features, k)
    similarity, position = nearest(asked.features, bank.features, k + 1)
    # An image need not come first among its neighbors: copies of it are as near.
    others = position != own[:, None]
    others[:, -1] &= ~others[:, :-1].all(dim=1)
    shape = (len(position), k)
    return similarity[others].reshape(shape), position[others].reshape(shape)


def _embed(session: EvalContext, split: Split) -> Embedded:
    storage, loader = session.splits[split], session.loader(split)
    with ImageProgress("features", unit="batches") as progress:
        features, label = extract(
            session.pretrained.backbone,
            loader,
            session.centered(split),
            device=session.device,
            dtype=session.dtype,
            report=progress,
        )
    every = Embedded(storage=storage, index=np.arange(len(storage)), features=features, label=label)
    # Another image stood in for a broken one, and would be its own nearest neighbor.
    broken = loader.bad_images
    if not broken:
        return every
    good = [row for row in range(len(storage)) if storage.name(row) not in broken]
    return every.pick(np.array(good, np.int64))


def shown_neighbors(found: Neighborhood, row: int) -> Iterator[tuple[int, int, float]]:
    """The nearest training images of an image: (number in the storage, class, similarity)."""
    label = found.bank.label
    nearest_rows = found.position[row, :NEIGHBORS].tolist()
    for position, similarity in zip(nearest_rows, found.similarity[row].tolist(), strict=False):
        yield int(found.bank.index[position]), int(label[position]), similarity
