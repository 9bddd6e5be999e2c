"""kNN top-1 of a backbone: the command `knn`, and the evaluator that the trainer calls."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastsimsiam.config.evaluation import KNN_K, EvalOptions
from fastsimsiam.config.run import KnnConfig
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.context import open_eval_context
from fastsimsiam.evaluate.features import center_plan, extract
from fastsimsiam.evaluate.neighbors import knn_accuracy
from fastsimsiam.loaders.base import Loader
from fastsimsiam.methods.base import Method
from fastsimsiam.plan.batches import CenterPlan
from fastsimsiam.storage.base import Report, Storage
from fastsimsiam.system.progress import ImageProgress


class KnnEvaluator:
    """Evaluator: kNN top-1 of the backbone's features, with the training split as the bank."""

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
        """Takes loader and plan of each split; for the rest see `knn_accuracy` and `extract`."""
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
        for k, score in self.top1(method.backbone).items():
            yield f"knn_top1_k{k}", score

    def top1(self, backbone: nn.Module) -> dict[int, float]:
        """Number of neighbors -> top-1 in percent of a backbone."""
        sides = []
        for loader, plan in (self._bank, self._queries):
            sides.append(
                extract(
                    backbone,
                    loader,
                    plan,
                    device=self._device,
                    dtype=self._dtype,
                    report=self._report,
                )
            )
        (bank, bank_label), (queries, query_label) = sides
        shares = knn_accuracy(
            bank,
            bank_label,
            queries,
            query_label,
            k=self._k,
            temperature=self._temperature,
            num_classes=self._num_classes,
        )
        return {k: 100.0 * share for k, share in shares.items()}


def usable_k(k: Sequence[int], bank_size: int) -> list[int]:
    """The numbers of neighbors that do not exceed the bank; the whole bank if all do."""
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
    """Builds the evaluator of a validation split against a training split.

    Args:
        train, val: loader and storage of each split.
        knn: numbers of neighbors, temperature and crop.
        image_size: side of the crops in pixels.
        device: device of the backbone.
        dtype: data type of its arithmetic.
        report: called with (batches done, batches in all).
    """
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


@dataclass(frozen=True, kw_only=True)
class KnnResult:
    """Weighted kNN classification of a validation split.

    Attributes:
        untrained: number of neighbors -> top-1 in percent, of the network before training.
        trained: number of neighbors -> top-1 in percent, of the checkpoint.
        bad_images: path -> reason, for broken images that were replaced by others.
        checkpoint: the file or folder that was evaluated.
        step: optimizer steps of the checkpoint; None where the file does not record them.
        data: the data set.
        temperature: temperature of the neighbors' weights.
        bank: number of training images.
        queries: number of validation images.
    """

    untrained: Mapping[int, float]
    trained: Mapping[int, float]
    bad_images: Mapping[str, str]
    checkpoint: Path
    step: int | None
    data: Path
    temperature: float
    bank: int
    queries: int

    def as_dict(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        return asdict(self) | {"checkpoint": str(self.checkpoint), "data": str(self.data)}


def knn(
    checkpoint: Path | str,
    data: Path | str,
    *,
    k: Sequence[int] = KNN_K,
    temperature: float = KnnConfig.temperature,
    options: EvalOptions | None = None,
) -> KnnResult:
    """Classifies a validation split by the nearest neighbors among the training images.

    Args:
        checkpoint: a file or the folder of a run; `load_backbone` lists the formats.
        data: folder with train/ and val/.
        k: numbers of neighbors.
        temperature: neighbors are weighted by exp(cosine similarity / temperature).
        options: how to evaluate.

    Raises:
        UserError: an argument, the file or the data is wrong; the message says what to change.
    """
    if not k or min(k) < 1:
        raise UserError(f"--k is {tuple(k)}: give numbers from 1 up")
    if temperature <= 0:
        raise UserError(f"--temperature is {temperature}: give more than 0")
    with open_eval_context(checkpoint, data, options or EvalOptions()) as context:
        if max(k) > len(context.train):
            raise UserError(
                f"--k {max(k)} is more than the {len(context.train)} training images: lower it"
            )
        with ImageProgress("features", unit="batches") as progress:
            evaluator = KnnEvaluator(
                bank=(context.loader("train"), context.centered("train")),
                queries=(context.loader("val"), context.centered("val")),
                k=k,
                temperature=temperature,
                num_classes=len(context.train.classes),
                device=context.device,
                dtype=context.dtype,
                report=progress,
            )
            untrained = evaluator.top1(context.untrained())
            trained = evaluator.top1(context.pretrained.backbone)
        return KnnResult(
            untrained=untrained,
            trained=trained,
            bad_images=context.bad_images,
            checkpoint=Path(checkpoint),
            step=context.pretrained.step,
            data=Path(data),
            temperature=temperature,
            bank=len(context.train),
            queries=len(context.splits["val"]),
        )
