"""`fastsimsiam inspect`: whether a representation is healthy or has collapsed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fastsimsiam.augment.photometric import Photometric
from fastsimsiam.config.evaluation import INSPECT_IMAGES, EvalOptions
from fastsimsiam.config.location import spelled
from fastsimsiam.config.run import Config
from fastsimsiam.config.views import ViewSpec, view_sizes
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.collapse import CollapseMetrics, collapse_metrics
from fastsimsiam.evaluate.context import EvalContext, open_eval_context
from fastsimsiam.evaluate.features import intact_batches
from fastsimsiam.evaluate.finite import require_finite_features, require_finite_weights
from fastsimsiam.evaluate.trained_method import trained_method
from fastsimsiam.methods.collapse import COLLAPSED_STD, EQUAL_STD, above_chance
from fastsimsiam.methods.losses import nt_xent
from fastsimsiam.methods.registry import find_method
from fastsimsiam.plan.batches import TrainPlan
from fastsimsiam.system.progress import ImageProgress

_BATCH = 128
_COMPARED = 1024
"""Images that are compared with one another."""
_WEAK_STD = 0.5
"""Below it, features of different images differ less than they should."""


@dataclass(frozen=True, kw_only=True)
class InspectResult:
    """How far the outputs of a network are from collapse.

    Attributes:
        h: metrics of the backbone's features.
        z: metrics of the projector's outputs; None for weights without a projector, which a note says.
        diagnosis: a sentence on `z`, or on `h` where there is no `z`, or no BatchNorm after it: then a
            healthy network may have a `z` of small spread.
        checkpoint: the file or folder that was inspected.
        step: optimizer steps of the checkpoint; None where the file does not record them.
        data: the data set.
        bad_images: path -> reason, for broken images that were left out.
        notes: what the user should know about the result.
    """

    h: CollapseMetrics
    z: CollapseMetrics | None
    diagnosis: str
    checkpoint: Path
    step: int | None
    data: Path
    bad_images: Mapping[str, str]
    notes: Sequence[str]

    @property
    def metrics(self) -> dict[str, CollapseMetrics]:
        """The metrics by name: `h`, and `z` where there is one."""
        return {"h": self.h} if self.z is None else {"h": self.h, "z": self.z}

    def as_dict(self) -> dict[str, Any]:
        """The result as plain JSON values."""
        return {name: asdict(metrics) for name, metrics in self.metrics.items()} | {
            "diagnosis": self.diagnosis,
            "checkpoint": str(self.checkpoint),
            "step": self.step,
            "data": spelled(self.data),
            "bad_images": dict(self.bad_images),
            "notes": list(self.notes),
        }


def inspect(
    checkpoint: Path | str,
    data: Path | str,
    *,
    images: int = INSPECT_IMAGES,
    options: EvalOptions | None = None,
) -> InspectResult:
    """Measures collapse on the features of two random views of each image.

    Args:
        checkpoint: a file or the folder of a run; `load_backbone` lists the formats.
        data: the data set; its validation split is used where there is one.
        images: largest number of images to use.
        options: how to evaluate.

    Raises:
        UserError: an argument, the file or the data is wrong; the message says what to change.
    """
    if images < 2:
        raise UserError(f"--images is {images}: give 2 or more")
    with open_eval_context(checkpoint, data, options or EvalOptions(), need_val=False) as context:
        features, normed = _features(context, images)
        metrics = {name: collapse_metrics(one, other) for name, (one, other) in features.items()}
        diagnosis = describe_std(metrics["z" if normed else "h"].std)
        if "z" in features and not normed:
            config = context.pretrained.config or context.config
            closer = find_method(config.method).compares_images and _told_apart(*features["z"])
            if metrics["z"].std < (EQUAL_STD if closer else COLLAPSED_STD):
                diagnosis = describe_std(0.0)
            else:
                diagnosis += " (judged by h: no BatchNorm keeps up the spread of z)"
        return InspectResult(
            h=metrics["h"],
            z=metrics.get("z"),
            diagnosis=diagnosis,
            checkpoint=Path(checkpoint),
            step=context.pretrained.step,
            data=Path(data),
            bad_images=context.bad_images,
            notes=tuple(context.notes),
        )


def describe_std(std: float) -> str:
    """What `CollapseMetrics.std` says about a network, in a sentence."""
    if std < COLLAPSED_STD:
        return "collapsed: all images get nearly the same output"
    if std < _WEAK_STD:
        return "half collapsed: outputs differ less than they should"
    return "healthy: outputs are spread over the sphere"


def _told_apart(z: Tensor, other_view: Tensor) -> bool:
    """Whether images are nearest to their own other view, more often than by chance.

    Args:
        z: projections (N, D).
        other_view: (N, D), those of another view of the same images.
    """
    some = min(len(z), _COMPARED)
    _, accuracy = nt_xent(z[:some], other_view[:some], temperature=1.0)
    return above_chance({"contrast_accuracy": float(accuracy)}, 1.0 / (2 * some - 1))


def _features(context: EvalContext, images: int) -> tuple[dict[str, tuple[Tensor, Tensor]], bool]:
    """Features (N, D) of two views, by name, and whether a BatchNorm is the last layer of `z`.

    The names are `h`, and `z` where there is a projector.
    """
    storage, loader = context.splits[context.eval_split], context.loader(context.eval_split)
    count = min(images, len(storage))
    if count < 2:
        raise UserError(
            f"{spelled(context.config.data)} has {count} image to inspect: give a data set of two or "
            "more"
        )
    batch_size = min(_BATCH, count)
    plan = TrainPlan(
        label=storage.label,
        sizes=storage.sizes,
        seed=context.config.seed,
        specs=_two_views(context.pretrained.config or context.config),
        image_size=context.config.image_size,
        batch_size=batch_size,
    )
    photometric = Photometric(
        plan.specs, plan.view_sizes, context.dtype, normalize=context.pretrained.normalize
    )
    projector = _projector(context)
    features: dict[str, tuple[list[Tensor], list[Tensor]]] = {"h": ([], [])}
    if projector:
        features["z"] = ([], [])
    enabled = context.dtype != torch.float32
    with (
        torch.no_grad(),
        torch.autocast(context.device.type, context.dtype, enabled=enabled),
        ImageProgress("features", unit="batches") as progress,
    ):
        for batch in intact_batches(loader, plan, most=count // batch_size, report=progress):
            for side, view in enumerate(photometric(batch.crops, batch.photometric)):
                h = context.pretrained.backbone(view).flatten(1)
                features["h"][side].append(h.float())
                if projector:
                    features["z"][side].append(projector(h).float())
    intact = sum(map(len, features["h"][0]))
    if intact < 2:
        raise UserError(
            f"{spelled(context.config.data)} has {intact} intact images to inspect: repair the others, "
            "or give another data set"
        )
    whole = {name: (torch.cat(one), torch.cat(other)) for name, (one, other) in features.items()}
    finite = all(bool(torch.isfinite(side).all()) for sides in whole.values() for side in sides)
    require_finite_features(finite, context.pretrained.backbone, context.pretrained.path)
    return whole, projector is not None and isinstance([*projector.modules()][-1], _BatchNorm)


def _two_views(config: Config) -> tuple[ViewSpec, ...]:
    """The first two views of whole images; the first two of all if fewer views are large.

    Args:
        config: the training's configuration; its image size decides which views are large.
    """
    large = find_method(config.method).large_views(view_sizes(config.views, config.image_size))
    first_two = large[:2] if len(large) >= 2 else (0, 1)
    return tuple(config.views[view] for view in first_two)


def _projector(context: EvalContext) -> nn.Module | None:
    """The trained projector, if the checkpoint is of this package and its method has one."""
    pretrained = context.pretrained
    method = trained_method(pretrained)
    if method is None:
        context.warn(f"no z: {pretrained.path} holds a backbone without the projector of a method")
        return None
    projector: nn.Module | None = getattr(method, "projector", None)
    if projector is None:
        context.warn(f"no z: {context.config.method.name} has no projector")
        return None
    require_finite_weights(projector, f"the projector in {pretrained.path}")
    return projector.to(context.device)


HEALTHY = {
    "std": ("std x sqrt(D)", "about 1 (collapsed: 0)"),
    "mean_cosine": ("mean cosine", "near 0; 0.5 for h, which follows a ReLU (collapsed: 1)"),
    "effective_rank": ("effective rank", "tens to hundreds (collapsed: 1 or a few)"),
    "uniformity": ("uniformity", "-4 at best (collapsed: 0)"),
    "alignment": ("alignment", "well below 2, that of unrelated views (collapsed: 0)"),
    "variance_median": ("variance, median", "near 1"),
    "variance_low": ("variance, 10th percentile", "not far below the median"),
    "variance_high": ("variance, 90th percentile", "a few at most"),
    "dead": ("dead dimensions", "0 (ReLU features of a backbone: some)"),
}
"""Field of `CollapseMetrics` -> its name in the table, and healthy values."""


def format_report(result: InspectResult) -> str:
    """The metrics as a table, and the diagnosis."""
    columns = {name: asdict(metrics) for name, metrics in result.metrics.items()}
    titles = {"h": "h backbone", "z": "z projection"}
    lines = [f"{'':26}" + "".join(f"{titles[name]:>14}" for name in columns) + "   healthy"]
    for field, (title, healthy) in HEALTHY.items():
        values = "".join(f"{column[field]:>14.3f}" for column in columns.values())
        lines.append(f"{title:26}{values}   {healthy}")
    dims = ", ".join(f"{name} {column['dim']}" for name, column in columns.items())
    lines += ["", f"{result.h.images} images, dimensions: {dims}. {result.diagnosis}."]
    return "\n".join(lines)
