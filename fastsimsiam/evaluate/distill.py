"""`fastsimsiam distill`: a student learns the answers of a fine-tuned teacher, on all images.

SimCLRv2 (arXiv 2006.10029, section 3): the teacher's answers to images without labels hold what the
pretraining has learned of them; the student may be smaller.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastsimsiam.augment.photometric import Photometric
from fastsimsiam.config.evaluation import EvalOptions
from fastsimsiam.config.supervised import DistillConfig
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.classifier import (
    StoredClassifier,
    load_classifier,
    new_classifier,
    placed,
    stored_values,
    training_plan,
)
from fastsimsiam.evaluate.context import EvalContext, open_eval_context
from fastsimsiam.evaluate.features import intact_batches
from fastsimsiam.evaluate.finetune import score
from fastsimsiam.evaluate.supervised import SupervisedState, Training, start, train
from fastsimsiam.evaluate.training_file import TrainingFile, digest
from fastsimsiam.models.backbones import feature_extractor
from fastsimsiam.models.image_size import require_image_size
from fastsimsiam.plan.batches import TrainPlan, require_a_batch
from fastsimsiam.storage.base import fingerprint
from fastsimsiam.system.progress import ImageProgress


@dataclass(frozen=True, kw_only=True)
class DistillResult:
    """A student that learned a teacher's answers.

    Attributes:
        top1, top5: validation accuracy of the student in percent after the last epoch.
        teacher_top1, teacher_top5: those of the teacher.
        labeled: number of images whose labels the teacher was trained with.
        losses: mean training loss of each epoch.
        seconds: duration of training and validation.
        config: options of the training.
        bad_images: path -> reason, for broken images that were left out.
        teacher: the teacher's file.
        student: weights that the student began with; None: random ones.
        data: the data set.
        file: the student.
        train_images, val_images: number of images of each split.
        notes: what the user should know about the scores.
    """

    top1: float
    top5: float
    teacher_top1: float
    teacher_top5: float
    labeled: int
    losses: Sequence[float]
    seconds: float
    config: DistillConfig
    bad_images: Mapping[str, str]
    teacher: Path
    student: Path | None
    data: Path
    file: Path
    train_images: int
    val_images: int
    notes: Sequence[str]

    def as_dict(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        return asdict(self) | {
            "teacher": str(self.teacher),
            "student": None if self.student is None else str(self.student),
            "data": str(self.data),
            "file": str(self.file),
        }


def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Cross-entropy (B,) of a student's answers with a teacher's; arXiv 2006.10029, equation 2.

    Args:
        student: logits (B, C).
        teacher: logits (B, C).
        temperature: divides both.
    """
    soft = F.softmax(teacher / temperature, dim=1)
    return -(soft * F.log_softmax(student / temperature, dim=1)).sum(dim=1)


def distill(
    teacher: Path | str,
    data: Path | str,
    out: Path | str,
    *,
    student: Path | str | None = None,
    config: DistillConfig | None = None,
    resume: bool = False,
    options: EvalOptions | None = None,
) -> DistillResult:
    """Trains a student on the answers of a teacher, of random crops of all training images.

    Both see the same crop.

    Args:
        teacher: what `finetune` wrote: its folder or file.
        data: folder with train/ and val/.
        out: folder of the student, written after each epoch.
        student: weights of a backbone to begin with: the pretrained checkpoint, say. None: random ones.
        config: options of the training; a batch size that nobody gave is lowered to the images.
        resume: continue the training in `out`.
        options: how to evaluate.

    Raises:
        UserError: an argument, the file or the data is wrong; the message says what to change.
    """
    config = config or DistillConfig()
    known = load_classifier(Path(teacher))
    file = TrainingFile.open(Path(out), resume, name="distill.pt", what="distillation")
    assert file is not None
    if student is not None and config.student_arch is not None:
        raise UserError(
            f"--student-arch is {config.student_arch}, but the student begins with {student}: drop one"
        )
    options = _like_teacher(options or EvalOptions(), known)
    begin = known.path if student is None else Path(student)
    with open_eval_context(begin, data, options) as context:
        if tuple(context.train.classes) != known.classes:
            raise UserError(
                f"{data} has other classes than those of {known.path}: give the data set that it was "
                "fine-tuned on"
            )
        if config.label_weight and known.data != fingerprint(context.train):
            raise UserError(
                f"--label-weight is {config.label_weight}, but {data} has other training images than "
                f"those of {known.path}: give the data set that it was fine-tuned on"
            )
        if config.batch_size > len(context.train) and config.batch_size == DistillConfig.batch_size:
            context.warn(f"--batch-size is {len(context.train)}, not {config.batch_size}")
            config = replace(config, batch_size=len(context.train))
        require_a_batch(len(context.train), config.batch_size)
        torch.manual_seed(config.seed)
        if student is None:
            context = _untrained(context, config)
        network = new_classifier(context, 0)
        expert = placed(known.classifier, context).eval().requires_grad_(False)
        state = start(network, config.optimizer, context.device)
        identity = {
            "config": asdict(config),
            "teacher": digest(expert),
            "student": digest(network),
            "images": len(context.train),
        }
        if resume:
            file.restore(state, identity)
        plan = training_plan(
            context,
            image_size=context.config.image_size,
            batch_size=config.batch_size,
            seed=config.seed,
        )
        started = time.perf_counter()
        network.train()
        values = stored_values(context, known.labeled)
        has_label = torch.zeros(len(context.train), dtype=torch.bool, device=context.device)
        if config.label_weight:
            has_label[known.labeled.to(context.device)] = True
        with ImageProgress("epochs", unit="epochs") as progress:

            def after_epoch(current: SupervisedState) -> None:
                progress(current.epoch, config.epochs)
                file.save(identity, values, current, context.warn)

            train(
                state,
                lambda epoch: _batches(context, plan, epoch, has_label),
                lambda batch: _loss(network, expert, batch, config),
                Training(
                    epochs=config.epochs, batch_size=config.batch_size, optimizer=config.optimizer
                ),
                steps_per_epoch=plan.num_batches,
                after_epoch=after_epoch,
            )
        top1, top5, val = score(context, network)
        teacher_top1, teacher_top5, _ = score(context, expert)
        return DistillResult(
            top1=top1,
            top5=top5,
            teacher_top1=teacher_top1,
            teacher_top5=teacher_top5,
            labeled=len(known.labeled),
            losses=tuple(state.losses),
            seconds=time.perf_counter() - started,
            config=config,
            bad_images=context.bad_images,
            teacher=known.path,
            student=None if student is None else Path(student),
            data=Path(data),
            file=file.path,
            train_images=len(context.train),
            val_images=val,
            notes=tuple(context.notes),
        )


def _like_teacher(options: EvalOptions, teacher: StoredClassifier) -> EvalOptions:
    """The options with the teacher's images: their size, square and normalization."""
    recorded = teacher.recorded
    options = replace(
        options,
        image_size=options.image_size or recorded.image_size,
        crop_fraction=options.crop_fraction or recorded.crop_fraction,
    )
    if options.mean is not None or recorded.normalize is None:
        return options
    return replace(options, mean=recorded.normalize.mean, std=recorded.normalize.std)


def _untrained(context: EvalContext, config: DistillConfig) -> EvalContext:
    """The context with random weights in place of the teacher's."""
    pretrained = context.pretrained
    arch = config.student_arch or pretrained.arch
    require_image_size(arch, context.config.image_size, stem=pretrained.stem)
    backbone, feature_dim = feature_extractor(arch, pretrained.stem)
    fresh = replace(
        pretrained,
        backbone=backbone.to(context.device).to(memory_format=torch.channels_last),
        arch=arch,
        feature_dim=feature_dim,
        step=None,
        config=None,
    )
    return replace(context, pretrained=fresh)


def _batches(
    context: EvalContext, plan: TrainPlan, epoch: int, has_label: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Normalized crops (B, 3, S, S), labels, and whether the teacher knew each label."""
    photometric = Photometric(
        plan.specs, plan.view_sizes, context.dtype, normalize=context.pretrained.normalize
    )
    for batch in intact_batches(context.loader("train"), plan, epoch):
        (view,) = photometric(batch.crops, batch.photometric)
        yield view, batch.label, has_label[batch.index.to(has_label.device)]


def _loss(
    student: nn.Module,
    teacher: nn.Module,
    batch: tuple[Tensor, Tensor, Tensor],
    config: DistillConfig,
) -> Tensor:
    """Mean over the batch: distance to the teacher's answer, and to the label where it is known."""
    view, label, has_label = batch
    logits = student(view)
    with torch.no_grad():
        answer = teacher(view)
    loss = soft_cross_entropy(logits, answer, config.temperature)
    if config.label_weight:
        weight = config.label_weight * has_label
        loss = (1 - weight) * loss + weight * F.cross_entropy(logits, label, reduction="none")
    mean: Tensor = loss.mean()
    return mean
