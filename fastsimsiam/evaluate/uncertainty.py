"""`fastsimsiam uncertainty`: whether a network knows which images it gets wrong.

Each image of the validation split is classified by its nearest neighbors among the training images.
Measures of certainty are asked which of the answers are right, which images are damaged, and which are
of another data set:

- kappa: what the method learned for this, if it did (VI-SimSiam)
- norm: length of the backbone's features
- margin: weight of the neighbors' first class minus that of the second, over the weight of all

Norm and margin need no training for it, so that they are what kappa has to beat.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from fastsimsiam.config.evaluation import EvalOptions
from fastsimsiam.config.location import spelled
from fastsimsiam.config.run import KnnConfig
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.context import EvalContext, open_eval_context
from fastsimsiam.evaluate.corruptions import CORRUPTIONS, LEAST_SIDE
from fastsimsiam.evaluate.features import Features, center_plan, centered_features
from fastsimsiam.evaluate.neighbors import nearest, votes
from fastsimsiam.evaluate.selective import accuracy_by_quantile, auroc, least_aurc, risk_coverage
from fastsimsiam.evaluate.trained_method import method_with_certainty
from fastsimsiam.loaders.base import Loader
from fastsimsiam.methods.base import Method
from fastsimsiam.plan.batches import CenterPlan
from fastsimsiam.storage.base import fingerprint
from fastsimsiam.storage.open import open_split, whole_or_val
from fastsimsiam.storage.passed_over import notes
from fastsimsiam.system.progress import ImageProgress

K = 20
"""Number of neighbors by default."""
BINS = 10
"""Parts of equal size in which accuracy is told."""
_POINTS = 200
"""Largest number of points of a risk-coverage curve that are kept."""
_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Measure:
    """How well a measure of certainty orders images.

    Attributes:
        accuracy: share of right answers in parts of equal size, least certain first.
        aurc: area under the risk-coverage curve; lower is better.
        auroc_errors: share of pairs of a right and a wrong answer of which the right one is more
            certain; None if all answers are right, or all wrong.
        auroc_corrupted: corruption -> share of pairs of a clean and a damaged image of which the clean
            one is more certain.
        auroc_ood: likewise, of an image of the data set and one of another; None without another.
        coverage, risk: points of the risk-coverage curve.
        median: median certainty of the clean images, of each corruption, and of the other data set.
    """

    accuracy: Sequence[float]
    aurc: float
    auroc_errors: float | None
    auroc_corrupted: Mapping[str, float]
    auroc_ood: float | None
    coverage: Sequence[float]
    risk: Sequence[float]
    median: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class UncertaintyResult:
    """Measures of certainty of a checkpoint.

    Attributes:
        measures: `kappa` where the method has it, `norm` and `margin`.
        top1: kNN accuracy in percent.
        least_aurc: AURC of a measure that makes no mistake.
        k: number of neighbors.
        bank, queries: number of training and of validation images.
        ood_images: number of images of the other data set; None without one.
        bad_images: path -> reason, for broken images that were left out.
        checkpoint: the file or folder that was evaluated.
        step: optimizer steps of the checkpoint; None where the file does not record them.
        data: the data set.
        ood: the other data set.
        notes: what the user should know about the result.
    """

    measures: Mapping[str, Measure]
    top1: float
    least_aurc: float
    k: int
    bank: int
    queries: int
    ood_images: int | None
    bad_images: Mapping[str, str]
    checkpoint: Path
    step: int | None
    data: Path
    ood: Path | None
    notes: Sequence[str]

    def as_dict(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        return asdict(self) | {
            "notes": list(self.notes),
            "checkpoint": str(self.checkpoint),
            "data": spelled(self.data),
            "ood": None if self.ood is None else spelled(self.ood),
        }


def uncertainty(
    checkpoint: Path | str,
    data: Path | str,
    *,
    ood: Path | str | None = None,
    k: int | None = None,
    options: EvalOptions | None = None,
) -> UncertaintyResult:
    """Measures how well a network knows which images it gets wrong.

    Args:
        checkpoint: a file or the folder of a run; `load_backbone` lists the formats.
        data: folder with train/ and val/.
        ood: another data set, of other classes; its validation split, or all of a flat one.
        k: number of neighbors; None: 20, or as many as there are training images.
        options: how to evaluate.

    Raises:
        UserError: an argument, the file or the data is wrong; the message says what to change.
    """
    if k is not None and k < 1:
        raise UserError(f"--k is {k}: give 1 or more")
    with open_eval_context(checkpoint, data, options or EvalOptions()) as context:
        if k is not None and k > len(context.train):
            raise UserError(
                f"--k {k} is more than the {len(context.train)} training images: lower it"
            )
        if context.config.image_size < LEAST_SIDE:
            raise UserError(
                f"--image-size is {context.config.image_size}: give {LEAST_SIDE} or more, so that "
                "images can be damaged"
            )
        context.require_labels()
        method = method_with_certainty(context.pretrained, context.device)
        other = _open_other(context, Path(ood)) if ood is not None else None
        with ImageProgress("features", unit="batches") as progress:
            bank = context.extract("train", progress)
            measure = _Certainty(context, bank, min(k or K, len(bank)), method)
            val = (context.loader("val"), context.centered("val"))
            clean = measure(*val, report=progress)
            corrupted = {
                name: measure(*val, change=make(), report=progress)
                for name, make in CORRUPTIONS.items()
            }
            unknown = measure(*other, report=progress) if other else None
        correct = clean.answer == clean.label
        return UncertaintyResult(
            measures={
                name: _measure(name, clean, correct, corrupted, unknown) for name in clean.certainty
            },
            top1=100.0 * float(correct.mean()),
            least_aurc=least_aurc(correct),
            k=measure.k,
            bank=len(bank),
            queries=len(correct),
            ood_images=None if unknown is None else len(unknown.label),
            bad_images=context.bad_images,
            checkpoint=Path(checkpoint),
            step=context.pretrained.step,
            data=Path(data),
            ood=None if ood is None else Path(ood),
            notes=tuple(context.notes),
        )


@dataclass(frozen=True, kw_only=True)
class _Answers:
    """Of N images.

    Attributes:
        certainty: measure -> (N,) the larger the more certain.
        answer, label: (N,) class numbers.
    """

    certainty: Mapping[str, _Floats]
    answer: npt.NDArray[np.int64]
    label: npt.NDArray[np.int64]


class _Certainty:
    """Classifies images and says how certain each measure is of them."""

    def __init__(self, context: EvalContext, bank: Features, k: int, method: Method | None) -> None:
        self._context = context
        self._bank = bank
        self.k = k
        self._method = method

    def __call__(
        self,
        loader: Loader,
        plan: CenterPlan,
        *,
        change: Callable[[Tensor], Tensor] | None = None,
        report: Callable[[int, int], None],
    ) -> _Answers:
        context = self._context
        parts: list[dict[str, Tensor]] = []
        for h, batch in centered_features(
            context.pretrained.backbone,
            loader,
            plan,
            constants=context.pretrained.normalize,
            device=context.device,
            dtype=context.dtype,
            source=context.pretrained.path,
            change=change,
            report=report,
        ):
            parts.append(dict(self._values(h)) | {"label": batch.label})
        columns = {name: torch.cat([p[name] for p in parts]).cpu().numpy() for name in parts[0]}
        answer, label = columns.pop("answer"), columns.pop("label")
        certainty = {name: values.astype(np.float64) for name, values in columns.items()}
        return _Answers(certainty=certainty, answer=answer, label=label)

    def _values(self, h: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Measures and answers of features (B, D)."""
        if self._method is not None:
            with torch.no_grad():
                kappa = self._method.certainty(h)
            assert kappa is not None
            yield "kappa", kappa
        yield "norm", h.norm(dim=1)
        bank = self._bank
        similarity, position = nearest(F.normalize(h, dim=1).to(bank.unit.dtype), bank.unit, self.k)
        weights = votes(
            similarity,
            bank.label[position],
            temperature=KnnConfig.temperature,
            num_classes=len(self._context.train.classes),
        )
        best = weights.topk(min(2, weights.shape[1]), dim=1).values
        second = best[:, 1] if best.shape[1] > 1 else torch.zeros_like(best[:, 0])
        yield "margin", (best[:, 0] - second) / weights.sum(dim=1)
        yield "answer", weights.argmax(dim=1)


def _open_other(context: EvalContext, path: Path) -> tuple[Loader, CenterPlan]:
    """Loader and plan of the other data set: its validation split, or all of a flat one.

    Raises:
        UserError: it is the data set itself, or none.
    """
    with ImageProgress("opening the data", unit=None) as progress:
        storage = open_split(path, whole_or_val(path), report=progress)
    if any(fingerprint(storage) == fingerprint(own) for own in context.splits.values()):
        raise UserError(f"--ood {path} is the data set itself: give another")
    for note in (*notes(storage), f"--ood: {len(storage)} images of {storage.root}"):
        print(note, file=sys.stderr)
    plan = center_plan(storage, context.config.image_size, context.pretrained.crop_fraction)
    return context.open_besides("ood", storage), plan


def _measure(
    name: str,
    clean: _Answers,
    correct: npt.NDArray[np.bool_],
    corrupted: Mapping[str, _Answers],
    unknown: _Answers | None,
) -> Measure:
    certainty = clean.certainty[name]
    coverage, risk = risk_coverage(certainty, correct)
    kept = np.unique(np.linspace(0, len(risk) - 1, min(_POINTS, len(risk))).round().astype(int))
    others = {key: answers.certainty[name] for key, answers in corrupted.items()}
    auroc_corrupted = {key: auroc(certainty, values) for key, values in others.items()}
    if unknown is not None:
        others["ood"] = unknown.certainty[name]
    return Measure(
        accuracy=accuracy_by_quantile(certainty, correct, BINS),
        aurc=float(risk.mean()),
        auroc_errors=auroc(certainty[correct], certainty[~correct]),
        auroc_corrupted={key: value for key, value in auroc_corrupted.items() if value is not None},
        auroc_ood=None if unknown is None else auroc(certainty, unknown.certainty[name]),
        coverage=coverage[kept].tolist(),
        risk=risk[kept].tolist(),
        median={"clean": float(np.median(certainty))}
        | {key: float(np.median(values)) for key, values in others.items()},
    )
