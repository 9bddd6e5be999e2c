"""`fastsimsiam linear`: linear evaluation of a checkpoint, on images or on cached features."""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastsimsiam.config.evaluation import CACHED, EvalOptions, LinearConfig
from fastsimsiam.config.views import IMAGENET_PIXELS
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.context import EvalContext, open_eval_context
from fastsimsiam.evaluate.linear import (
    TRAINING_VIEW,
    Features,
    LinearState,
    accuracy,
    cached_features,
    new_state,
    random_crop_features,
    train,
)
from fastsimsiam.plan.batches import TrainPlan, require_a_batch
from fastsimsiam.runs.archive import read_stored, write_atomically
from fastsimsiam.system.files import require_file, require_writable
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
            "data": str(self.data),
        }


def linear(
    checkpoint: Path | str,
    data: Path | str,
    *,
    config: LinearConfig | None = None,
    cached: bool = False,
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
        out: folder to which the layer is saved after each epoch.
        resume: continue the evaluation in `out`.
        options: how to evaluate.

    Raises:
        UserError: an argument, the file or the data is wrong; the message says what to change.
    """
    config = config or (CACHED if cached else LinearConfig())
    file = _file(out, resume)
    with open_eval_context(checkpoint, data, options or EvalOptions()) as context:
        context.warn_of_one_class()
        config = _fitted(config, len(context.train), context.warn)
        require_a_batch(len(context.train), config.batch_size)
        backbone = context.pretrained.backbone
        backbone.requires_grad_(False)
        before = _digest(backbone)
        state = new_state(
            context.pretrained.feature_dim, len(context.train.classes), config, context.device
        )
        identity = _identity(config, cached, before, context, options)
        if resume and file:
            _restore(state, file, identity)
        started = time.perf_counter()
        features = _training(context, config, cached)
        with ImageProgress("epochs", unit="epochs") as progress:

            def after_epoch(current: LinearState) -> None:
                progress(current.epoch, config.epochs)
                if file:
                    _save(file, identity, current, context)

            train(state, features, config, after_epoch)
        val = [0]
        top1, top5 = accuracy(state.layer, _validation(context, val))
        assert _digest(backbone) == before, "the frozen backbone has changed"
        return LinearResult(
            protocol=_protocol(config, cached),
            top1=top1,
            top5=top5,
            losses=tuple(state.losses),
            seconds=time.perf_counter() - started,
            config=config,
            bad_images=context.bad_images,
            checkpoint=Path(checkpoint),
            step=context.pretrained.step,
            data=Path(data),
            train_images=len(context.train) - len(context.loader("train").bad_images),
            val_images=sum(val),
            image_size=context.config.image_size,
            notes=tuple(context.notes),
        )


def _file(out: Path | None, resume: bool) -> Path | None:
    """The file of the layer, checked before anything is opened.

    Raises:
        UserError: it cannot be written, is there without `resume`, or is missing with it.
    """
    if out is None:
        if resume:
            raise UserError("--resume needs --out: pass the folder of the evaluation to resume")
        return None
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: pass a folder")
    file = out / "linear.pt"
    if resume:
        require_file(file, "linear evaluation", "drop --resume to start a new one")
    elif file.exists():
        raise UserError(
            f"--out {out} already holds a linear evaluation: pass --resume to continue it, or "
            "another --out"
        )
    require_writable(file, "--out", make_folder=True)
    return file


def _fitted(config: LinearConfig, images: int, warn: Callable[[str], None]) -> LinearConfig:
    """The config with a default batch size lowered to the number of images."""
    defaults = (LinearConfig.batch_size, CACHED.batch_size)
    if config.batch_size <= images or config.batch_size not in defaults:
        return config
    warn(f"--batch-size is {images}, all training images, instead of {config.batch_size}")
    return replace(config, batch_size=images)


def _save(file: Path, identity: dict[str, Any], state: LinearState, context: EvalContext) -> None:
    """Saves the layer, with what a user of it needs; goes on if that fails, for the score's sake."""
    try:
        write_atomically(
            file,
            {
                "identity": identity,
                "weights": context.pretrained.record(),
                "classes": list(context.train.classes),
                **state.state_dict(),
            },
        )
    except UserError as error:
        reason = str(error).partition(": ")[0]
        context.warn(f"{reason}: epoch {state.epoch} is not saved, the evaluation goes on")


def _protocol(config: LinearConfig, cached: bool) -> str:
    """How the layer was trained, and whether the score compares with published ones."""
    if cached:
        return "cached features of centered crops: quick, not the published protocol"
    published = LinearConfig(seed=config.seed)
    changed = [
        f"{key} {value}" for key, value in asdict(config).items() if value != asdict(published)[key]
    ]
    if changed:
        return f"random crops, not the published protocol: {', '.join(changed)}"
    return "random crops, the published protocol"


def _training(context: EvalContext, config: LinearConfig, cached: bool) -> Features:
    backbone, size = context.pretrained.backbone, context.config.image_size
    if not cached:
        plan = TrainPlan(
            label=context.train.label,
            sizes=context.train.sizes,
            seed=config.seed,
            specs=(TRAINING_VIEW,),
            image_size=size,
            batch_size=config.batch_size,
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
        for chunk, batch in context.features("train", progress):
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


def _digest(module: nn.Module) -> str:
    """Hash of every bit of a module's state."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        bits: Tensor = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(bits.numpy().tobytes())
    return digest.hexdigest()


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


def _restore(state: LinearState, file: Path, identity: dict[str, Any]) -> None:
    stored = read_stored(file)
    old = stored.get("identity")
    if not isinstance(old, dict):
        raise UserError(f"--resume: {file} is not a linear evaluation: pass another --out")
    differing = [key for key in {**identity, **old} if old.get(key) != identity.get(key)]
    if differing:
        raise UserError(
            f"--resume: {file} was made with another {', '.join(differing)}: pass the old one, or "
            "another --out"
        )
    try:
        state.load_state_dict(stored)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"--resume: {file} is damaged: pass another --out") from error
