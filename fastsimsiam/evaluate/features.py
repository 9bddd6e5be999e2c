"""Features of a data set by a frozen backbone. Shapes: N images, D features.

Here is decided, for every command and for the evaluations of training, which images count and whether
features are numbers: broken images are left out, though the loader has shown others in their place;
features that are not finite are an error, and equal ones a warning.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastsimsiam.augment.photometric import normalize
from fastsimsiam.config.views import NormalizeConfig
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.finite import require_finite_features
from fastsimsiam.loaders.base import Batch, Loader
from fastsimsiam.plan.batches import CenterPlan, Plan
from fastsimsiam.storage.base import Report, Storage

_EVALUATION_BATCH = 256
_EQUAL = 1e-5
"""Features of length 1 that differ less than this are equal, up to rounding."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features of the intact images of a split.

    Attributes:
        unit: (N, D) of length 1, float16 on a GPU and float32 on a CPU.
        label: (N,) class numbers.
        index: (N,) numbers of the images in their storage.
        measured: (N,) what `measure` of `extract` says of them; None without.
    """

    unit: Tensor
    label: Tensor
    index: npt.NDArray[np.int64]
    measured: Tensor | None = None

    def __len__(self) -> int:
        """Number of images."""
        return len(self.label)


def extract(
    backbone: nn.Module,
    loader: Loader,
    plan: CenterPlan,
    *,
    constants: NormalizeConfig,
    device: torch.device,
    dtype: torch.dtype,
    source: object = "the network",
    measure: Callable[[Tensor], Tensor | None] | None = None,
    warn: Callable[[str], None] | None = None,
    report: Report | None = None,
) -> Features:
    """Runs the backbone in eval mode over a data set and restores its mode.

    Args:
        backbone: images (B, 3, S, S) to features (B, D).
        loader: source of the images.
        plan: centered crops of the images.
        constants: how the images of the backbone's training were normalized.
        device: device of the backbone.
        dtype: data type of the backbone's arithmetic; float32 or bfloat16 (autocast).
        source: what messages call the weights: their file.
        measure: features (B, D), float32, not normalized, to a number for each image (B,).
        warn: told if all features are equal.
        report: called with (batches done, batches in all).

    Raises:
        NotFiniteError: features are NaN or infinite.
        UserError: all images are broken.
    """
    stored = torch.float16 if device.type == "cuda" else torch.float32
    features: list[Tensor] = []
    batches: list[Batch] = []
    measured: list[Tensor] = []
    was_training = backbone.training
    backbone.eval()
    try:
        for h, batch in centered_features(
            backbone,
            loader,
            plan,
            constants=constants,
            device=device,
            dtype=dtype,
            source=source,
            warn=warn,
            report=report,
        ):
            features.append(F.normalize(h, dim=1).to(stored))
            if measure and (values := measure(h)) is not None:
                measured.append(values)
            batches.append(replace(batch, crops=(), photometric={}))
    finally:
        backbone.train(was_training)
    return Features(
        unit=torch.cat(features),
        label=torch.cat([batch.label for batch in batches]),
        index=torch.cat([batch.index for batch in batches]).cpu().numpy(),
        measured=torch.cat(measured) if measured else None,
    )


def centered_features(
    backbone: nn.Module,
    loader: Loader,
    plan: CenterPlan,
    *,
    constants: NormalizeConfig,
    device: torch.device,
    dtype: torch.dtype,
    source: object = "the network",
    change: Callable[[Tensor], Tensor] | None = None,
    warn: Callable[[str], None] | None = None,
    report: Report | None = None,
) -> Iterator[tuple[Tensor, Batch]]:
    """Yields features (B, D) in float32, not normalized, and their batch; every intact image once.

    Args:
        backbone: images to features; used in the mode it is in.
        change: applied to images (B, 3, S, S) in [0, 1] before they are normalized.
        loader, plan, constants, device, dtype, source, warn, report: as in `extract`.

    Raises:
        NotFiniteError: features are NaN or infinite: after the first batch, or at the end.
        UserError: all images are broken.
    """
    images = 0
    first: Tensor | None = None
    finite = torch.ones((), dtype=torch.bool, device=device)
    spread = torch.zeros((), device=device)
    for batch in intact_batches(loader, plan, report=report):
        image = batch.crops[0][:, 0].permute(0, 3, 1, 2).float() / 255.0
        if change:
            image = change(image)
        h = features_of(backbone, normalize(image, constants, dtype), device, dtype)
        finite &= torch.isfinite(h).all()
        unit = F.normalize(h, dim=1)
        if first is None:
            first = unit[:1]
            require_finite_features(bool(finite), backbone, source)
        spread = torch.maximum(spread, (unit - first).abs().amax())
        images += len(h)
        yield h, batch
    if not images:
        raise UserError(f"all {len(plan.label)} images are broken: check the data set")
    require_finite_features(bool(finite), backbone, source)
    if warn and images > 1 and bool(spread < _EQUAL):
        warn(
            f"all features of {source} are equal: it tells no images apart, and scores are those of "
            "chance"
        )


def intact_batches(
    loader: Loader,
    plan: Plan,
    epoch: int = 0,
    *,
    most: int | None = None,
    report: Report | None = None,
) -> Iterator[Batch]:
    """Yields the batches of an epoch without the images that stand in for broken ones.

    A stand-in is an image that the epoch shows anyway: it would count twice. Batches may be smaller
    than planned; those without an intact image are left out.

    Args:
        loader: source of the images.
        plan: the batches.
        epoch: number of the epoch.
        most: number of batches of the plan after which to stop; None: all.
        report: called with (batches done, batches in all).
    """
    batches = plan.num_batches if most is None else most
    for step, planned in enumerate(islice(loader.iterate(plan, epoch), batches)):
        # Without broken images nothing is compared: the comparison waits for the device.
        batch = _intact(planned, plan.index(epoch, step)) if loader.bad_images else planned
        if len(batch.label):
            yield batch
        if report:
            report(step + 1, batches)


def _intact(batch: Batch, planned: npt.NDArray[np.int64]) -> Batch:
    """The rows of a batch that show the planned image."""
    intact = batch.index == torch.tensor(planned, device=batch.index.device)
    if bool(intact.all()):
        return batch
    return Batch(
        index=batch.index[intact],
        label=batch.label[intact],
        crops=tuple(crops[intact] for crops in batch.crops),
        photometric={name: values[intact] for name, values in batch.photometric.items()},
    )


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
