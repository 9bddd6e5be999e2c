"""What fine-tuning and distillation have in common: crops, the loop with its file, and the score."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from fastsimsiam.augment.photometric import Photometric
from fastsimsiam.config.supervised import DistillConfig, FinetuneConfig
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.classifier import Classifier
from fastsimsiam.evaluate.context import EvalContext
from fastsimsiam.evaluate.features import centered_features, intact_batches
from fastsimsiam.evaluate.linear import TRAINING_VIEW
from fastsimsiam.evaluate.supervised import SupervisedState, Training, accuracy, start, train
from fastsimsiam.evaluate.training_file import TrainingFile, digest
from fastsimsiam.loaders.base import Batch
from fastsimsiam.plan.batches import TrainPlan
from fastsimsiam.storage.base import fingerprint
from fastsimsiam.system.progress import ImageProgress

_LEAST = 2
"""Images of a batch, of which BatchNorm can take statistics."""


def training_plan(
    context: EvalContext,
    config: FinetuneConfig | DistillConfig,
    only: npt.NDArray[np.int64] | None = None,
) -> TrainPlan:
    """Random crops of the training images, or of some of them."""
    return TrainPlan(
        label=context.train.label,
        sizes=context.train.sizes,
        seed=config.seed,
        specs=(TRAINING_VIEW,),
        image_size=context.config.image_size,
        batch_size=config.batch_size,
        only=only,
    )


def crops(context: EvalContext, plan: TrainPlan, epoch: int) -> Iterator[tuple[Tensor, Batch]]:
    """Normalized crops (B, 3, S, S) of an epoch, and their batches.

    Broken images are left out; so are batches of which they leave fewer than two images.

    Raises:
        UserError: no batch is left.
    """
    photometric = Photometric(
        plan.specs, plan.view_sizes, context.dtype, normalize=context.pretrained.normalize
    )
    batches = 0
    for batch in intact_batches(context.loader("train"), plan, epoch):
        if len(batch.label) < _LEAST:
            continue
        batches += 1
        (view,) = photometric(batch.crops, batch.photometric)
        yield view, batch
    if not batches:
        raise UserError(f"too many images of {context.train.root} are broken: no batch is left")


def fit(
    context: EvalContext,
    classifier: Classifier,
    config: FinetuneConfig | DistillConfig,
    plan: TrainPlan,
    loss: Callable[[Tensor, Batch], Tensor],
    *,
    file: TrainingFile,
    identity: Mapping[str, Any],
    values: Mapping[str, Any],
    resume: bool,
) -> SupervisedState:
    """Trains a classifier, and saves it after each epoch.

    Args:
        context: network and data.
        classifier: what is trained, on the device.
        config: options of the training.
        plan: crops of an epoch.
        loss: of crops (B, 3, S, S) and their batch, a scalar.
        file: written after each epoch; all but the last may fail.
        identity: what must be equal when the training is resumed.
        values: what the file holds beside the state.
        resume: continue the training in the file.

    Raises:
        UserError: the loss is not finite, the file does not fit, or the end cannot be saved.
    """
    state = start(classifier, config.optimizer, context.device)
    if resume:
        file.restore(state, identity)
    classifier.train()
    with ImageProgress("epochs", unit="epochs") as progress:

        def after_epoch(current: SupervisedState) -> None:
            progress(current.epoch, config.epochs)
            last = current.epoch == config.epochs
            file.save(identity, values, current, None if last else context.warn)

        train(
            state,
            lambda epoch: crops(context, plan, epoch),
            lambda batch: loss(*batch),
            Training(
                epochs=config.epochs, batch_size=config.batch_size, optimizer=config.optimizer
            ),
            steps_per_epoch=plan.num_batches,
            after_epoch=after_epoch,
        )
    return state


def identity_of(
    config: FinetuneConfig | DistillConfig, context: EvalContext, **more: Any
) -> dict[str, Any]:
    """What must be equal when a training is resumed: everything that changes its weights.

    Args:
        config: options of the training, each under its own name.
        context: network and data.
        more: what else.
    """
    pretrained = context.pretrained
    return {
        **{key: _plain(value) for key, value in asdict(config).items()},
        "weights": digest(pretrained.backbone),
        "data": fingerprint(context.train),
        "image_size": context.config.image_size,
        "normalize": asdict(pretrained.normalize),
        "precision": str(context.dtype).removeprefix("torch."),
        "gray16_max": context.config.gray16_max,
        **more,
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def score(context: EvalContext, classifier: Classifier) -> tuple[float, float, int]:
    """Top-1 and top-5 in percent on the validation split, and the number of its intact images."""
    classifier.eval()
    images = 0

    def logits() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal images
        for values, batch in centered_features(
            classifier,
            context.loader("val"),
            context.centered("val"),
            constants=context.pretrained.normalize,
            device=context.device,
            dtype=context.dtype,
            source=context.pretrained.path,
        ):
            images += len(batch.label)
            yield values, batch.label

    top1, top5 = accuracy(logits())
    return top1, top5, images
