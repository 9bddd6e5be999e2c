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
    """Runs the backbone in eval mode over a data set and restores its mode.

    Args:
        backbone: images (B, 3, S, S) to features (B, D).
        loader: source of the images.
        plan: centered crops of the images.
        device: device of the backbone.
        dtype: data type of the backbone's arithmetic; float32 or bfloat16 (autocast).
        report: called with (batches done, batches in all).

    Returns:
        Features (N, D) of length 1, float16 on a GPU and float32 on a CPU, and labels (N,).
    """
    stored = torch.float16 if device.type == "cuda" else torch.float32
    features: list[Tensor] = []
    labels: list[Tensor] = []
    was_training = backbone.training
    backbone.eval()
    try:
        for h, batch in centered_features(backbone, loader, plan, device=device, dtype=dtype):
            features.append(F.normalize(h, dim=1).to(stored))
            labels.append(batch.label)
            if report:
                report(len(features), plan.num_batches)
    finally:
        backbone.train(was_training)
    return torch.cat(features), torch.cat(labels)


def centered_features(
    backbone: nn.Module,
    loader: Loader,
    plan: CenterPlan,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> Iterator[tuple[Tensor, Batch]]:
    """Yields features (B, D) in float32, not normalized, and their batch; every image once.

    Args:
        backbone: images to features; used in the mode it is in.
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
    """The plan of centered crops of every image of a split.

    Args:
        storage: images of the split.
        image_size: side of the crops in pixels.
        fraction: side of the square that is cut out, over the image's shorter side.
    """
    return CenterPlan(
        label=storage.label,
        sizes=storage.sizes,
        image_size=image_size,
        batch_size=_EVALUATION_BATCH,
        fraction=fraction,
    )
