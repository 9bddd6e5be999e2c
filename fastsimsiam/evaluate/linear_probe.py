"""`fastsimsiam linear`: linear evaluation of a checkpoint, on images or on cached features."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastsimsiam.config.evaluation import CACHED, EvalOptions, LinearConfig
from fastsimsiam.config.location import spelled
from fastsimsiam.config.views import IMAGENET_PIXELS
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.context import EvalContext, open_eval_context
from fastsimsiam.evaluate.labels import ALL, choose_labeled, labels_digest
from fastsimsiam.evaluate.linear import (
    TRAINING_VIEW,
    Features,
    cached_features,
    new_state,
    random_crop_features,
    train,
)
from fastsimsiam.evaluate.supervised import SupervisedState, accuracy
from fastsimsiam.evaluate.training_file import TrainingFile, digest
from fastsimsiam.plan.batches import TrainPlan, require_a_batch
from fastsimsiam.system.progress import ImageProgress


@dataclass(frozen=True, kw_only=True)
class LinearResult:
    """Linear evaluation of a frozen backbone.

    Attributes:
        protocol: how the layer was trained, and whether scores compare with published ones.
        top1: validation accuracy in percent after the last epoch.
        top5: likewise, of the five likeliest classes.
        losses: mean training loss of each epoch.
        seconds: duration of training and validation.
        config: options of the layer's training.
        bad_images: path -> reason, for broken images that were left out.
        checkpoint: the file or folder that was evaluated.
        step: optimizer steps of the checkpoint; None where the file does not record them.
        data: the data set.
        train_images, val_images: number of images of each split that were used.
        image_size: side of the crops in pixels.
        notes: what the user should know about the scores.
    """

    protocol: str
    top1: float
    top5: float
    losses: tuple[float, ...]
    seconds: float
    config: LinearConfig
    bad_images: Mapping[str, str]
    checkpoint: Path
    step: int | None
    data: Path
    train_images: int
    val_images: int
    image_size: int
    notes: Sequence[str]

    def as_dict(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        return asdict(self) | {
            "losses": list(self.losses),
            "notes": list(self.notes),
            "checkpoint": str(self.checkpoint),
            "data": spelled(self.data),
        }


def linear(
    checkpoint: Path | str,
    data: Path | str,
    *,
    config: LinearConfig | None = None,
    cached: bool = False,
    labels: str = ALL,
    out: Path | None = None,
    resume: bool = False,
    options: EvalOptions | None = None,
) -> LinearResult:
    """Trains a linear layer on frozen features and scores it after the last epoch.

    Args:
        checkpoint: a file or the folder of a run; `load_backbone` lists the formats.
        data: folder with train/ and val/.
        config: options of the layer's training; None: the published ones, or `CACHED`. Their batch size
            is lowered to the number of training images, any other must not exceed it.
        cached: train on features of centered crops, computed once: fast, not the published protocol.
        labels: share of the training images of each class, drawn by a hash of the config's seed; or a
            file that lists images; see `labels.choose_labeled`.
        out: folder to which the layer is saved after each epoch.
        resume: continue the evaluation in `out`.
        options: how to evaluate.

    Raises:
        UserError: an argument, the file or the data is wrong; the message says what to change.
    """
    config = config or (CACHED if cached else LinearConfig())
    if resume and out is None:
        raise UserError("--resume needs --out: pass the folder of the linear evaluation to resume")
    file = out and TrainingFile.open(out, resume, name="linear.pt", what="linear evaluation")
    with open_eval_context(checkpoint, data, options or EvalOptions()) as context:
        context.require_labels()
        only = None if labels == ALL else choose_labeled(labels, context.train, config.seed)
        images = len(context.train) if only is None else len(only)
        config = _fitted(config, images, "training" if only is None else "labeled", context.warn)
        require_a_batch(images, config.batch_size)
        backbone = context.pretrained.backbone
        backbone.requires_grad_(False)
        before = digest(backbone)
        state = new_state(
            context.pretrained.feature_dim, len(context.train.classes), config, context.device
        )
        identity = _identity(config, cached, before, context, options)
        if only is not None:
            identity["labeled"] = labels_digest(only, context.train)
        if resume and file:
            file.restore(state, identity)
        values = {"weights": context.pretrained.record(), "classes": list(context.train.classes)}
        started = time.perf_counter()
        features = _training(context, config, cached, only)
        with ImageProgress("epochs", unit="epochs") as progress:

            def after_epoch(current: SupervisedState) -> None:
                progress(current.epoch, config.epochs)
                if file:
                    file.save(identity, values, current, context.warn)

            train(state, features, config, after_epoch)
        val = [0]
        with torch.no_grad():
            top1, top5 = accuracy(
                (state.network(h), label) for h, label in _validation(context, val)
            )
        assert digest(backbone) == before, "the frozen backbone has changed"
        return LinearResult(
            protocol=_protocol(config, cached, labels),
            top1=top1,
            top5=top5,
            losses=tuple(state.losses),
            seconds=time.perf_counter() - started,
            config=config,
            bad_images=context.bad_images,
            checkpoint=Path(checkpoint),
            step=context.pretrained.step,
            data=Path(data),
            train_images=images - len(context.loader("train").bad_images),
            val_images=sum(val),
            image_size=context.config.image_size,
            notes=tuple(context.notes),
        )


def _fitted(
    config: LinearConfig, images: int, kind: str, warn: Callable[[str], None]
) -> LinearConfig:
    """The config with a default batch size lowered to the number of images."""
    defaults = (LinearConfig.batch_size, CACHED.batch_size)
    if config.batch_size <= images or config.batch_size not in defaults:
        return config
    warn(f"--batch-size is {images}, all {kind} images, instead of {config.batch_size}")
    return replace(config, batch_size=images)


def _protocol(config: LinearConfig, cached: bool, labels: str = ALL) -> str:
    """How the layer was trained, and whether the score compares with published ones."""
    if labels != ALL:
        return f"{'cached features' if cached else 'random crops'}, labels of {labels}"
    if cached:
        return "cached features of centered crops: quick, not the published protocol"
    published = LinearConfig(seed=config.seed)
    changed = [
        f"{key} {value}" for key, value in asdict(config).items() if value != asdict(published)[key]
    ]
    if changed:
        return f"random crops, not the published protocol: {', '.join(changed)}"
    return "random crops, the published protocol"


def _training(
    context: EvalContext,
    config: LinearConfig,
    cached: bool,
    only: npt.NDArray[np.int64] | None = None,
) -> Features:
    backbone, size = context.pretrained.backbone, context.config.image_size
    if not cached:
        plan = TrainPlan(
            label=context.train.label,
            sizes=context.train.sizes,
            seed=config.seed,
            specs=(TRAINING_VIEW,),
            image_size=size,
            batch_size=config.batch_size,
            only=only,
        )
        return random_crop_features(
            backbone,
            context.loader("train"),
            plan,
            constants=context.pretrained.normalize,
            device=context.device,
            dtype=context.dtype,
            source=context.pretrained.path,
        )
    h, label = [], []
    with ImageProgress("features", unit="batches") as progress:
        for chunk, batch in context.features("train", progress, only=only):
            h.append(chunk.half() if context.device.type == "cuda" else chunk)
            label.append(batch.label)
    features = torch.cat(h)
    if not torch.isfinite(features).all():  # they were in float32
        raise UserError(
            f"the features of {context.pretrained.path} exceed float16, in which a GPU keeps them: "
            "pass --device cpu"
        )
    if len(features) < config.batch_size:
        context.warn(f"--batch-size is {len(features)}, all intact training images")
        config = replace(config, batch_size=len(features))
    return cached_features(features, torch.cat(label), config)


def _validation(context: EvalContext, images: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Features and labels per batch; appends the number of each batch to `images`."""
    for h, batch in context.features("val"):
        images.append(len(h))
        yield h, batch.label


def _identity(
    config: LinearConfig,
    cached: bool,
    backbone: str,
    context: EvalContext,
    options: EvalOptions | None,
) -> dict[str, Any]:
    """Everything that must be equal when an evaluation is resumed."""
    identity = {
        "config": asdict(config),
        "cached": cached,
        "backbone": backbone,
        "images": len(context.train),
        "image_size": context.config.image_size,
    }
    # Version 0.1.0 always cropped as in training, and shuffled cached features in another order.
    if options and options.crop_fraction is not None:
        identity["crop_fraction"] = options.crop_fraction
    if context.pretrained.normalize != IMAGENET_PIXELS:  # earlier versions always had ImageNet's
        identity["normalize"] = asdict(context.pretrained.normalize)
    return identity | ({"order": "epoch_order"} if cached else {})
