"""`fastsimsiam finetune`: trains a pretrained network and a classifier on labeled images.

SimCLRv2 (arXiv 2006.10029, section 3): the classifier is put on a middle layer of the projector, and
all layers are trained on few labels; `distill` then teaches a student on all images.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from fastsimsiam.config.evaluation import EvalOptions
from fastsimsiam.config.run import require_schedule_within
from fastsimsiam.config.supervised import FinetuneConfig
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.classifier import (
    FINETUNED,
    Labeled,
    hidden_layers,
    new_classifier,
    stored_values,
)
from fastsimsiam.evaluate.classifier_training import fit, identity_of, score, training_plan
from fastsimsiam.evaluate.context import EvalContext, open_eval_context
from fastsimsiam.evaluate.labels import LIST, choose_labeled, labels_digest, write_list
from fastsimsiam.evaluate.training_file import TrainingFile
from fastsimsiam.methods.registry import find_method
from fastsimsiam.plan.batches import require_a_batch
from fastsimsiam.storage.base import fingerprint
from fastsimsiam.system.text import printable


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
    config, out = config or FinetuneConfig(), Path(out)
    require_schedule_within(config)
    file = TrainingFile.open(out, resume, name=FINETUNED, what="fine-tuning")
    with open_eval_context(checkpoint, data, options or EvalOptions()) as context:
        context.require_labels()
        images = choose_labeled(config.labels, context.train, config.seed)
        _require_labels(images, context, config)
        config = _fitted(config, len(images), context)
        require_a_batch(len(images), config.batch_size)
        layers = _kept_layers(config, images, context)
        identity = identity_of(config, context, head_layers=len(layers))
        # Not the text, which may be the same file by another path.
        identity["labels"] = labels_digest(images, context.train)
        torch.manual_seed(config.seed)
        classifier = new_classifier(context, layers)
        labeled = Labeled(images=torch.from_numpy(images), data=fingerprint(context.train))
        if not resume:
            write_list(images, context.train, out / LIST)
        started = time.perf_counter()
        state = fit(
            context,
            classifier,
            config,
            training_plan(context, config, images),
            lambda view, batch: F.cross_entropy(classifier(view), batch.label),
            file=file,
            identity=identity,
            values=stored_values(context, labeled),
            resume=resume,
        )
        top1, top5, val = score(context, classifier)
        return FinetuneResult(
            top1=top1,
            top5=top5,
            labeled=len(images),
            head_layers=len(layers),
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


def _require_labels(
    images: npt.NDArray[np.int64], context: EvalContext, config: FinetuneConfig
) -> None:
    """Refuses fewer than two labeled images, and notes classes of which there is none."""
    if len(images) < 2:
        raise UserError(f"--labels {config.labels} is one image: give more")
    with_label = set(context.train.label[images].tolist())
    without = [name for label, name in enumerate(context.train.classes) if label not in with_label]
    if without:
        context.warn(f"no labeled image is of {', '.join(map(printable, without[:5]))}")
    if context.pretrained.config and find_method(context.pretrained.config.method).needs_labels:
        name = context.pretrained.config.method.name
        context.warn(f"{name} was pretrained with all labels: the score is not one of few labels")


def _fitted(config: FinetuneConfig, images: int, context: EvalContext) -> FinetuneConfig:
    """The config with a default batch size lowered to the number of labeled images."""
    if config.batch_size <= images or config.batch_size != FinetuneConfig.batch_size:
        return config
    context.warn(f"--batch-size is {images}, all labeled images, instead of {config.batch_size}")
    return replace(config, batch_size=images)


def _kept_layers(
    config: FinetuneConfig, images: npt.NDArray[np.int64], context: EvalContext
) -> list[list[nn.Module]]:
    """The layers of the projector below the classifier."""
    if config.head_layers == 0 or (
        config.head_layers is None and len(images) == len(context.train)
    ):
        return []
    layers, asked = hidden_layers(context), config.head_layers or 1
    if config.head_layers is not None and asked > len(layers):
        most = f"give 0 to {len(layers)}" if layers else "give 0"
        raise UserError(
            f"--head-layers is {asked}, but {context.pretrained.path} has a projector of "
            f"{len(layers)} hidden layers: {most}"
        )
    return layers[:asked]
