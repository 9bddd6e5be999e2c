"""Features of a data set by a frozen backbone. Shapes: N images, D features."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastsimsiam.augment.photometric import normalize
from fastsimsiam.loaders.base import Batch, Loader
from fastsimsiam.plan.batches import CenterPlan
from fastsimsiam.storage.base import Storage

_EVALUATION_BATCH = 256


def extract(
    backbone: nn.Module,
    loader: Loader,
    plan: CenterPlan,
    *,
    device: torch.device,
    dtype: torch.dtype,
    report: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Runs the backbone in eval mode over a data set; the mode it had is restored.

    Args:
        backbone: images (B, 3, S, S) to features (B, D).
        loader: source of the images.
        plan: the centered crops to use.
        device: where the backbone is.
        dtype: of the backbone's arithmetic; float32 or bfloat16 (autocast).
        report: told (batches done, batches in all).

    Returns:
        Features (N, D) of length 1, float16 on a GPU and float32 on a CPU, and labels (N,).
    """
    kept = torch.float16 if device.type == "cuda" else torch.float32
    found: list[Tensor] = []
    labels: list[Tensor] = []
    was_training = backbone.training
    backbone.eval()
    try:
        for h, batch in centered_features(backbone, loader, plan, device=device, dtype=dtype):
            found.append(F.normalize(h, dim=1).to(kept))
            labels.append(batch.label)
            if report:
                report(len(found), plan.num_batches)
    finally:
        backbone.train(was_training)
    return torch.cat(found), torch.cat(labels)


def centered_features(
    backbone: nn.Module,
    loader: Loader,
    plan: CenterPlan,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> Iterator[tuple[Tensor, Batch]]:
    """Features (B, D) in float32, as they are, and the batch, of every image once.

    Args:
        backbone: in the mode that it is to be used in; the rest as in `extract`.
        loader, plan, device, dtype: as in `extract`.
    """
    for batch in loader.iterate(plan):
        image = batch.crops[0][:, 0].permute(0, 3, 1, 2).float() / 255.0
        yield features_of(backbone, normalize(image, dtype), device, dtype), batch


def features_of(
    backbone: nn.Module, images: Tensor, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Features (B, D) in float32 of normalized images (B, 3, S, S), without gradients."""
    with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        h: Tensor = backbone(images).flatten(1).float()
    return h


def center_plan(storage: Storage, image_size: int, fraction: float) -> CenterPlan:
    """Every image of a split, centered, for evaluation."""
    return CenterPlan(
        label=storage.label,
        sizes=storage.sizes,
        image_size=image_size,
        batch_size=_EVALUATION_BATCH,
        fraction=fraction,
    )
