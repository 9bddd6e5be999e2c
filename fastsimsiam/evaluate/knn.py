"""kNN top-1 of a backbone: the command `knn`, and the evaluator that the trainer calls."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastsimsiam.config.evaluation import KNN_K, EvalOptions
from fastsimsiam.config.location import spelled
from fastsimsiam.config.run import KnnConfig
from fastsimsiam.config.views import NormalizeConfig
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.context import open_eval_context
from fastsimsiam.evaluate.features import center_plan, extract
from fastsimsiam.evaluate.finite import NotFiniteError
from fastsimsiam.evaluate.neighbors import knn_accuracy
from fastsimsiam.loaders.base import Loader
from fastsimsiam.methods.base import Method
from fastsimsiam.plan.batches import CenterPlan
from fastsimsiam.storage.base import Report, Storage
from fastsimsiam.system.progress import ImageProgress


@dataclass(frozen=True, kw_only=True)
class Top1:
    """Scores of a backbone.

    Attributes:
        percent: number of neighbors -> top-1 in percent.
        bank: number of training images; broken ones are left out.
        queries: number of validation images; broken ones are left out.
    """

    percent: Mapping[int, float]
    bank: int
    queries: int


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
        constants: NormalizeConfig,
        device: torch.device,
        dtype: torch.dtype,
        warn: Callable[[str], None] | None = None,
        report: Report | None = None,
    ) -> None:
        """Takes loader and plan of each split; for the rest see `knn_accuracy` and `extract`."""
        self._bank = bank
        self._queries = queries
        self._k = k
        self._temperature = temperature
        self._num_classes = num_classes
        self._constants = constants
        self._device = device
        self._dtype = dtype
        self._warn = warn
        self._report = report

    def __call__(self, method: Method) -> Iterator[tuple[str, float]]:
        """Yields `knn_top1_k<k>` in percent; nothing if features are not finite."""
        try:
            scores = self.top1(method.backbone)
        except NotFiniteError:
            # Training has its own check, and may recover: the statistics of BatchNorm lag behind.
            if self._warn:
                self._warn("the features are not finite: no kNN score this time")
            return
        for k, score in scores.percent.items():
            yield f"knn_top1_k{k}", score

    def top1(self, backbone: nn.Module, source: object = "the network") -> Top1:
        """Scores a backbone by the numbers of neighbors that do not exceed the bank.

        Args:
            backbone: images to features.
            source: what messages call its weights.

        Raises:
            NotFiniteError: features are NaN or infinite.
        """
        bank, queries = (
            extract(
                backbone,
                loader,
                plan,
                constants=self._constants,
                device=self._device,
                dtype=self._dtype,
                source=source,
                warn=self._warn,
                report=self._report,
            )
            for loader, plan in (self._bank, self._queries)
        )
        shares = knn_accuracy(
            bank.unit,
            bank.label,
            queries.unit,
            queries.label,
            k=usable_k(self._k, len(bank)),
            temperature=self._temperature,
            num_classes=self._num_classes,
        )
        percent = {k: 100.0 * share for k, share in shares.items()}
        return Top1(percent=percent, bank=len(bank), queries=len(queries))


def usable_k(k: Sequence[int], bank_size: int) -> list[int]:
    """The numbers of neighbors that do not exceed the bank; the whole bank if all do."""
    return [count for count in k if count <= bank_size] or [bank_size]


def build_knn(
    train: tuple[Loader, Storage],
    val: tuple[Loader, Storage],
    *,
    knn: KnnConfig,
    image_size: int,
    constants: NormalizeConfig,
    device: torch.device,
    dtype: torch.dtype,
    warn: Callable[[str], None] | None = None,
    report: Report | None = None,
) -> KnnEvaluator:
    """Builds the evaluator of a validation split against a training split.

    Args:
        train, val: loader and storage of each split.
        knn: numbers of neighbors, temperature and crop.
        image_size: side of the crops in pixels.
        constants: normalization of the training.
        device: device of the backbone.
        dtype: data type of its arithmetic.
        warn: told of features that are equal or not finite.
        report: called with (batches done, batches in all).
    """
    return KnnEvaluator(
        bank=(train[0], center_plan(train[1], image_size, knn.crop_fraction)),
        queries=(val[0], center_plan(val[1], image_size, knn.crop_fraction)),
        k=knn.k,
        temperature=knn.temperature,
        num_classes=len(train[1].classes),
        constants=constants,
        device=device,
        dtype=dtype,
        warn=warn,
        report=report,
    )


@dataclass(frozen=True, kw_only=True)
class KnnResult:
    """Weighted kNN classification of a validation split.

    Attributes:
        untrained: number of neighbors -> top-1 in percent, of the network before training.
        trained: number of neighbors -> top-1 in percent, of the checkpoint.
        bad_images: path -> reason, for broken images that were left out.
        checkpoint: the file or folder that was evaluated.
        step: optimizer steps of the checkpoint; None where the file does not record them.
        data: the data set.
        temperature: temperature of the neighbors' weights.
        bank: number of training images that were used.
        queries: number of validation images that were used.
        notes: what the user should know about the scores.
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
    notes: Sequence[str]

    def as_dict(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        return asdict(self) | {
            "checkpoint": str(self.checkpoint),
            "data": spelled(self.data),
            "notes": list(self.notes),
        }


def knn(
    checkpoint: Path | str,
    data: Path | str,
    *,
    k: Sequence[int] | None = None,
    temperature: float = KnnConfig.temperature,
    options: EvalOptions | None = None,
) -> KnnResult:
    """Classifies a validation split by the nearest neighbors among the training images.

    Args:
        checkpoint: a file or the folder of a run; `load_backbone` lists the formats.
        data: folder with train/ and val/.
        k: numbers of neighbors; None: those of 10, 20, 100 and 200 that do not exceed the bank.
        temperature: neighbors are weighted by exp(cosine similarity / temperature).
        options: how to evaluate.

    Raises:
        UserError: an argument, the file or the data is wrong; the message says what to change.
    """
    if k is not None and (not k or min(k) < 1):
        raise UserError(f"--k is {tuple(k)}: give numbers from 1 up")
    if not 0 < temperature < math.inf:
        raise UserError(f"--temperature is {temperature}: give more than 0")
    with open_eval_context(checkpoint, data, options or EvalOptions()) as context:
        if k is not None and max(k) > len(context.train):
            raise UserError(
                f"--k {max(k)} is more than the {len(context.train)} training images: lower it"
            )
        context.require_labels()
        counts = tuple(k or KNN_K)
        with ImageProgress("features", unit="batches") as progress:
            evaluator = KnnEvaluator(
                bank=(context.loader("train"), context.centered("train")),
                queries=(context.loader("val"), context.centered("val")),
                k=counts,
                temperature=temperature,
                num_classes=len(context.train.classes),
                constants=context.pretrained.normalize,
                device=context.device,
                dtype=context.dtype,
                warn=context.warn,
                report=progress,
            )
            untrained = evaluator.top1(context.untrained(), "the untrained network")
            trained = evaluator.top1(context.pretrained.backbone, context.pretrained.path)
        if too_large := [str(count) for count in counts if count > trained.bank]:
            instead = ", ".join(str(count) for count in trained.percent if count not in counts)
            context.warn(
                f"k {', '.join(too_large)} left out: the bank has {trained.bank} images"
                + (f"; k {instead} instead" if instead else "")
            )
        return KnnResult(
            untrained=untrained.percent,
            trained=trained.percent,
            bad_images=context.bad_images,
            checkpoint=Path(checkpoint),
            step=context.pretrained.step,
            data=Path(data),
            temperature=temperature,
            bank=trained.bank,
            queries=trained.queries,
            notes=tuple(context.notes),
        )
