"""`fastsimsiam finetune`: trains a pretrained network and a classifier on labeled images.

SimCLRv2 (arXiv 2006.10029, section 3): the classifier is put on a middle layer of the projector, and
all layers are trained on few labels; `distill` then teaches a student on all images.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from fastsimsiam.augment.photometric import Photometric
from fastsimsiam.config.evaluation import EvalOptions
from fastsimsiam.config.supervised import FinetuneConfig
from fastsimsiam.evaluate.classifier import (
    hidden_layers,
    new_classifier,
    stored_values,
    training_plan,
    validation,
)
from fastsimsiam.evaluate.context import EvalContext, open_eval_context
from fastsimsiam.evaluate.features import intact_batches
from fastsimsiam.evaluate.labels import choose_labeled, labels_digest, write_list
from fastsimsiam.evaluate.supervised import SupervisedState, Training, accuracy, start, train
from fastsimsiam.evaluate.training_file import TrainingFile, digest
from fastsimsiam.plan.batches import TrainPlan, require_a_batch
from fastsimsiam.system.progress import ImageProgress


@dataclass(frozen=True, kw_only=True)
class FinetuneResult:
    """A network that was trained further on labeled images.

    Attributes:
        top1: validation accuracy in percent after the last epoch.
        top5: likewise, of the five likeliest classes.
        labeled: number of images whose labels were used.
        head_layers: layers of the projector below the classifier.
        losses: mean training loss of each epoch.
        seconds: duration of training and validation.
        config: options of the training.
        bad_images: path -> reason, for broken images that were left out.
        checkpoint: the file or folder that was trained further.
        step: optimizer steps of its pretraining; None where the file does not record them.
        data: the data set.
        file: the classifier; labels.txt beside it lists the labeled images.
        train_images, val_images: number of images of each split.
        notes: what the user should know about the scores.
    """

    top1: float
    top5: float
    labeled: int
    head_layers: int
    losses: Sequence[float]
    seconds: float
    config: FinetuneConfig
    bad_images: Mapping[str, str]
    checkpoint: Path
    step: int | None
    data: Path
    file: Path
    train_images: int
    val_images: int
    notes: Sequence[str]

    def as_dict(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        return asdict(self) | {
            key: str(getattr(self, key)) for key in ("checkpoint", "data", "file")
        }


def finetune(
    checkpoint: Path | str,
    data: Path | str,
    out: Path | str,
    *,
    config: FinetuneConfig | None = None,
    resume: bool = False,
    options: EvalOptions | None = None,
) -> FinetuneResult:
    """Trains a pretrained network, and a classifier on it, on labeled images of random crops.

    Args:
        checkpoint: a file or the folder of a run; `load_backbone` lists the formats.
        data: folder with train/ and val/.
        out: folder of the classifier, written after each epoch, and of the list of labeled images.
        config: options of the training; a batch size that nobody gave is lowered to the images.
        resume: continue the training in `out`.
        options: how to evaluate.

    Raises:
        UserError: an argument, the file or the data is wrong; the message says what to change.
    """
    config = config or FinetuneConfig()
    out = Path(out)
    file = TrainingFile.open(out, resume, name="finetune.pt", what="fine-tuning")
    assert file is not None
    with open_eval_context(checkpoint, data, options or EvalOptions()) as context:
        context.warn_of_one_class()
        labeled = choose_labeled(config.labels, context.train, config.seed)
        config = _fitted(config, labeled, context)
        require_a_batch(len(labeled), config.batch_size)
        head_layers = _head_layers(config, labeled, context)
        torch.manual_seed(config.seed)
        classifier = new_classifier(context, head_layers)
        state = start(classifier, config.optimizer, context.device)
        identity = _identity(config, head_layers, labeled, context)
        if resume:
            file.restore(state, identity)
        write_list(labeled, context.train, out / "labels.txt")
        plan = training_plan(
            context,
            image_size=context.config.image_size,
            batch_size=config.batch_size,
            seed=config.seed,
            only=labeled,
        )
        values = stored_values(context, torch.from_numpy(labeled))
        started = time.perf_counter()
        classifier.train()
        with ImageProgress("epochs", unit="epochs") as progress:

            def after_epoch(current: SupervisedState) -> None:
                progress(current.epoch, config.epochs)
                file.save(identity, values, current, context.warn)

            train(
                state,
                lambda epoch: _batches(context, plan, epoch),
                lambda batch: F.cross_entropy(classifier(batch[0]), batch[1]),
                Training(
                    epochs=config.epochs, batch_size=config.batch_size, optimizer=config.optimizer
                ),
                steps_per_epoch=plan.num_batches,
                after_epoch=after_epoch,
            )
        top1, top5, val = score(context, classifier)
        return FinetuneResult(
            top1=top1,
            top5=top5,
            labeled=len(labeled),
            head_layers=head_layers,
            losses=tuple(state.losses),
            seconds=time.perf_counter() - started,
            config=config,
            bad_images=context.bad_images,
            checkpoint=Path(checkpoint),
            step=context.pretrained.step,
            data=Path(data),
            file=file.path,
            train_images=len(context.train),
            val_images=val,
            notes=tuple(context.notes),
        )


def score(context: EvalContext, classifier: torch.nn.Module) -> tuple[float, float, int]:
    """Top-1 and top-5 in percent on the validation split, and the number of its intact images."""
    classifier.eval()
    counts: list[int] = []

    def counted() -> Iterator[tuple[Tensor, Tensor]]:
        for logits, label in validation(context, classifier):
            counts.append(len(label))
            yield logits, label

    top1, top5 = accuracy(counted())
    return top1, top5, sum(counts)


def _batches(context: EvalContext, plan: TrainPlan, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Normalized crops (B, 3, S, S) and labels of an epoch."""
    photometric = Photometric(
        plan.specs, plan.view_sizes, context.dtype, normalize=context.pretrained.normalize
    )
    for batch in intact_batches(context.loader("train"), plan, epoch):
        (view,) = photometric(batch.crops, batch.photometric)
        yield view, batch.label


def _fitted(
    config: FinetuneConfig, labeled: npt.NDArray[np.int64], context: EvalContext
) -> FinetuneConfig:
    """The config with a default batch size lowered to the number of labeled images."""
    if config.batch_size <= len(labeled) or config.batch_size != FinetuneConfig.batch_size:
        return config
    context.warn(f"--batch-size is {len(labeled)}, all labeled images, not {config.batch_size}")
    return replace(config, batch_size=len(labeled))


def _head_layers(
    config: FinetuneConfig, labeled: npt.NDArray[np.int64], context: EvalContext
) -> int:
    if config.head_layers is not None:
        return config.head_layers
    if len(labeled) == len(context.train):
        return 0
    return min(1, len(hidden_layers(context)))


def _identity(
    config: FinetuneConfig, head_layers: int, labeled: npt.NDArray[np.int64], context: EvalContext
) -> dict[str, Any]:
    """Everything that must be equal when a training is resumed."""
    pretrained = context.pretrained
    return {
        "config": asdict(config) | {"head_layers": head_layers},
        "labeled": labels_digest(labeled, context.train),
        "checkpoint": digest(pretrained.backbone),
        "images": len(context.train),
        "image_size": context.config.image_size,
        "normalize": asdict(pretrained.normalize),
    }
