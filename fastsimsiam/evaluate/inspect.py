"""`fastsimsiam inspect`: is a representation healthy, or has it collapsed?"""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastsimsiam.augment.photometric import Photometric
from fastsimsiam.config.evaluation import INSPECT_IMAGES, EvalOptions
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.collapse import alignment, collapse_metrics
from fastsimsiam.evaluate.context import EvalContext, open_eval_context
from fastsimsiam.methods.collapse import COLLAPSED_STD
from fastsimsiam.methods.registry import build_method
from fastsimsiam.plan.batches import TrainPlan
from fastsimsiam.runs.checkpoint import load
from fastsimsiam.system.progress import ImageProgress

_BATCH = 128
_WEAK_STD = 0.5


def inspect(
    checkpoint: Path | str,
    data: Path | str,
    *,
    images: int = INSPECT_IMAGES,
    options: EvalOptions | None = None,
) -> dict[str, Any]:
    """Figures of the features of two random views of each of some images.

    Args:
        checkpoint: a file, or the folder of a run; see `load_pretrained` for what is read.
        data: a data set; its validation split is taken where it has one.
        images: how many, at most.
        options: see there.

    Returns:
        `h` (the backbone's features) and, for checkpoints of this package that have a projector, `z`:
        each the fields of `CollapseMetrics` and `alignment`. `verdict` is a sentence.

    Raises:
        UserError: something in the arguments or the data has to be mended.
    """
    if images < 2:
        raise UserError(f"--images is {images}: give 2 or more")
    with open_eval_context(checkpoint, data, options or EvalOptions(), need_val=False) as context:
        features = {
            name: (torch.cat(one), torch.cat(other))
            for name, (one, other) in _views(context, images).items()
        }
        found: dict[str, Any] = {
            name: asdict(collapse_metrics(one)) | {"alignment": alignment(one, other)}
            for name, (one, other) in features.items()
        }
        last = found.get("z", found["h"])
        return found | {
            "verdict": diagnosis(last["std"]),
            "checkpoint": str(checkpoint),
            "step": context.pretrained.step,
            "data": str(data),
            "bad_images": context.bad_images,
        }


def diagnosis(std: float) -> str:
    """What the collapse figure means."""
    if std < COLLAPSED_STD:
        return "collapsed: all images get nearly the same output"
    if std < _WEAK_STD:
        return "half collapsed: outputs differ less than they should"
    return "healthy: outputs are spread over the sphere"


def _views(context: EvalContext, images: int) -> dict[str, tuple[list[Tensor], list[Tensor]]]:
    """Features of two views, batch by batch: `h`, and `z` where there is a projector."""
    storage, loader = context.splits[context.eval_split], context.loader(context.eval_split)
    count = min(images, len(storage))
    if count < 2:
        raise UserError(
            f"{context.config.data} has {count} image to look at: two or more are needed"
        )
    batch_size = min(_BATCH, count)
    plan = TrainPlan(
        label=storage.label,
        sizes=storage.sizes,
        seed=context.config.seed,
        specs=context.config.views[:2],
        image_size=context.config.image_size,
        batch_size=batch_size,
    )
    photometric = Photometric(plan.specs, plan.view_sizes, context.dtype)
    projector = _projector(context)
    found: dict[str, tuple[list[Tensor], list[Tensor]]] = {"h": ([], [])}
    if projector:
        found["z"] = ([], [])
    batches = loader.iterate(plan)
    enabled = context.dtype != torch.float32
    with (
        torch.no_grad(),
        torch.autocast(context.device.type, context.dtype, enabled=enabled),
        ImageProgress("features") as progress,
    ):
        for number, batch in zip(range(count // batch_size), batches, strict=False):
            for side, view in enumerate(photometric(batch.crops, batch.photometric)):
                h = context.pretrained.backbone(view).flatten(1)
                found["h"][side].append(h.float())
                if projector:
                    found["z"][side].append(projector(h).float())
            progress((number + 1) * batch_size, count)
    return found


def _projector(context: EvalContext) -> Callable[[Tensor], Tensor] | None:
    """The trained projector, where the file is one of ours and its method has one."""
    if context.pretrained.config is None:
        return None
    method = build_method(context.pretrained.config)
    method.load_state_dict(load(context.pretrained.path).method)
    projector = getattr(method, "projector", None)
    return None if projector is None else projector.eval().to(context.device)


HEALTHY = {
    "std": ("std x sqrt(D)", "about 1 (collapsed: 0)"),
    "mean_cosine": ("mean cosine", "near 0; after a ReLU, as h is, a half (collapsed: 1)"),
    "effective_rank": ("effective rank", "tens to hundreds (collapsed: 1 or a few)"),
    "uniformity": ("uniformity", "-4 at best (collapsed: 0)"),
    "alignment": ("alignment", "well below 2, as of unrelated views; 0 where collapsed"),
    "variance_median": ("variance, median", "near 1"),
    "variance_low": ("variance, 10th percentile", "not far below the median"),
    "variance_high": ("variance, 90th percentile", "a few at most"),
    "dead": ("dead dimensions", "0 (ReLU features of a backbone: some)"),
}
"""Field -> its name in the table, and what healthy looks like."""


def format_report(found: dict[str, Any]) -> str:
    """The figures as a table."""
    names = [name for name in ("h", "z") if name in found]
    titles = {"h": "h backbone", "z": "z projection"}
    lines = [f"{'':26}" + "".join(f"{titles[name]:>14}" for name in names) + "   healthy"]
    for field, (title, healthy) in HEALTHY.items():
        values = "".join(f"{found[name][field]:>14.3f}" for name in names)
        lines.append(f"{title:26}{values}   {healthy}")
    size = found["h"]
    dims = ", ".join(f"{name} {found[name]['dim']}" for name in names)
    lines += ["", f"{size['images']} images, dimensions: {dims}. {found['verdict']}."]
    return "\n".join(lines)
