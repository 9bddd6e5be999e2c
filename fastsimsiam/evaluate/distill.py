"""`fastsimsiam distill`: a student learns the answers of a fine-tuned teacher, on all images.

SimCLRv2 (arXiv 2006.10029, section 3): the teacher's answers to images without labels hold what the
pretraining has learned of them; the student may be smaller.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastsimsiam.config.evaluation import EvalOptions, Stem
from fastsimsiam.config.location import spelled
from fastsimsiam.config.run import require_schedule_within
from fastsimsiam.config.supervised import DistillConfig
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.classifier import (
    DISTILLED,
    StoredClassifier,
    load_classifier,
    new_classifier,
    placed,
    stored_values,
)
from fastsimsiam.evaluate.classifier_training import fit, identity_of, score, training_plan
from fastsimsiam.evaluate.context import EvalContext, open_eval_context
from fastsimsiam.evaluate.training_file import TrainingFile, digest
from fastsimsiam.loaders.base import Batch
from fastsimsiam.models.backbones import feature_extractor
from fastsimsiam.models.image_size import require_image_size
from fastsimsiam.plan.batches import require_a_batch
from fastsimsiam.storage.base import fingerprint


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
            "data": spelled(self.data),
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
    require_schedule_within(config)
    expert = load_classifier(Path(teacher))
    _require_student(config, student, expert)
    file = TrainingFile.open(Path(out), resume, name=DISTILLED, what="distillation")
    options = _like_teacher(options or EvalOptions(), expert)
    weights = expert.path if student is None else Path(student)
    with open_eval_context(weights, data, options) as context:
        _require_same_data(config, expert, context)
        if config.batch_size > len(context.train) and config.batch_size == DistillConfig.batch_size:
            context.warn(f"--batch-size is {len(context.train)}, not {config.batch_size}")
            config = replace(config, batch_size=len(context.train))
        require_a_batch(len(context.train), config.batch_size)
        done, asked = expert.epochs
        if done < asked:
            context.warn(
                f"{expert.path} is not finished ({done} of {asked} epochs): finetune --resume ends it"
            )
        torch.manual_seed(config.seed)
        if student is None:
            context = _untrained(context, config)
        network = new_classifier(context)
        answers = placed(expert.classifier, context).eval().requires_grad_(False)
        has_label = torch.zeros(len(context.train), dtype=torch.bool, device=context.device)
        if config.label_weight:
            has_label[expert.labeled.images.to(context.device)] = True
        started = time.perf_counter()
        state = fit(
            context,
            network,
            config,
            training_plan(context, config),
            lambda view, batch: _loss(network, answers, view, batch, has_label, config),
            file=file,
            identity=identity_of(config, context, teacher=digest(answers)),
            values=stored_values(context, expert.labeled),
            resume=resume,
        )
        top1, top5, val = score(context, network)
        teacher_top1, teacher_top5, _ = score(context, answers)
        return DistillResult(
            top1=top1,
            top5=top5,
            teacher_top1=teacher_top1,
            teacher_top5=teacher_top5,
            labeled=len(expert.labeled.images),
            losses=tuple(state.losses),
            seconds=time.perf_counter() - started,
            config=config,
            bad_images=context.bad_images,
            teacher=expert.path,
            student=None if student is None else Path(student),
            data=Path(data),
            file=file.path,
            train_images=len(context.train),
            val_images=val,
            notes=tuple(context.notes),
        )


def _require_student(
    config: DistillConfig, student: Path | str | None, teacher: StoredClassifier
) -> None:
    """Refuses a student that cannot be, before the data is opened."""
    arch = config.student_arch
    if arch is None:
        return
    if student is not None:
        raise UserError(
            f"--student-arch is {arch}, but the student begins with {student}: drop one"
        )
    try:
        feature_extractor(arch, _stem(arch, teacher.recorded.stem))
    except UserError as error:
        raise UserError(str(error).replace("--arch ", "--student-arch ")) from error


def _stem(arch: str, teacher: Stem | None) -> Stem:
    """The teacher's stem, for networks that have several."""
    return (teacher or "imagenet") if arch.startswith("resnet") else "imagenet"


def _require_same_data(
    config: DistillConfig, teacher: StoredClassifier, context: EvalContext
) -> None:
    """Refuses data of which the teacher's answers or labels are not.

    Raises:
        UserError: names the data set.
    """
    data, fix = spelled(context.config.data), "give the data set that it was fine-tuned on"
    if tuple(context.train.classes) != teacher.classes:
        raise UserError(f"{data} has other classes than those of {teacher.path}: {fix}")
    if config.label_weight and teacher.labeled.data != fingerprint(context.train):
        raise UserError(
            f"--label-weight is {config.label_weight}, but {data} has other training images than "
            f"those of {teacher.path}: {fix}"
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
    stem = _stem(arch, pretrained.stem)
    require_image_size(arch, context.config.image_size, stem=stem)
    backbone, feature_dim = feature_extractor(arch, stem)
    fresh = replace(
        pretrained,
        backbone=backbone.to(context.device).to(memory_format=torch.channels_last),
        arch=arch,
        stem=stem,
        feature_dim=feature_dim,
        step=None,
        config=None,
    )
    return replace(context, pretrained=fresh)


def _loss(
    student: nn.Module,
    teacher: nn.Module,
    view: Tensor,
    batch: Batch,
    has_label: Tensor,
    config: DistillConfig,
) -> Tensor:
    """Mean over the batch: distance to the teacher's answer, and to the label where it is known."""
    logits = student(view)
    with torch.no_grad():
        answer = teacher(view)
    loss = soft_cross_entropy(logits, answer, config.temperature)
    if config.label_weight:
        weight = config.label_weight * has_label[batch.index.to(has_label.device)]
        loss = (1 - weight) * loss + weight * F.cross_entropy(logits, batch.label, reduction="none")
    mean: Tensor = loss.mean()
    return mean
