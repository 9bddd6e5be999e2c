"""The contract between loaders and everything behind them.

Shapes: B batch, V views of one size, H W crop side. A loader is handed a plan and adds pixels to it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from fastsimsiam.config.run import OnBadImage
from fastsimsiam.plan.batches import BatchPlan, Plan
from fastsimsiam.plan.views import without_photometric


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A batch on the training device.

    Attributes:
        index: (B,) int64 sample indices.
        label: (B,) int64 class numbers.
        crops: one uint8 tensor (B, V, H, W, 3), RGB, for each distinct view size, in the order in
            which the sizes first occur among the views.
        photometric: view parameters still to be applied, each (B, all views) or (B, all views, 4);
            names as in `plan.views.ViewTable`.
    """

    index: Tensor
    label: Tensor
    crops: tuple[Tensor, ...]
    photometric: dict[str, Tensor]

    def to(self, device: torch.device) -> "Batch":
        """A copy on `device`; asynchronous where the source is pinned."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return Batch(
            index=move(self.index),
            label=move(self.label),
            crops=tuple(move(crop) for crop in self.crops),
            photometric={name: move(tensor) for name, tensor in self.photometric.items()},
        )

    def tensors(self) -> Iterator[Tensor]:
        """All tensors of the batch."""
        yield self.index
        yield self.label
        yield from self.crops
        yield from self.photometric.values()


@dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """What every loader is told.

    Attributes:
        device: where batches go.
        workers: threads (processes of `reference`); None: one per core.
        on_bad_image: `error`, or `skip`: another image stands in for a broken one.
    """

    device: torch.device
    workers: int | None = None
    on_bad_image: OnBadImage = "error"


class Loader(Protocol):
    """A source of batches.

    Attributes:
        bad_images: path -> what is wrong with it, for images that were skipped so far.
    """

    bad_images: dict[str, str]

    def iterate(self, plan: Plan, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Batches `start` to the end of an epoch.

        Closing the iterator early (`close()` of the generator, or dropping it) stops its work. An
        error in a worker is raised here.

        Raises:
            BadImageError: an image is broken and the loader was told not to skip.
        """

    def close(self) -> None:
        """Ends all workers and frees memory."""


def size_groups(view_sizes: tuple[int, ...]) -> dict[int, list[int]]:
    """Distinct crop sizes, each with the numbers of its views: one crop tensor each."""
    groups: dict[int, list[int]] = {}
    for view, size in enumerate(view_sizes):
        groups.setdefault(size, []).append(view)
    return groups


def assemble(
    batch: BatchPlan, crops: tuple[Tensor, ...], photometric: bool = True, pin: bool = False
) -> Batch:
    """A batch on the host from its plan and its crops.

    Args:
        batch: the plan, after replacements.
        crops: see `Batch`.
        photometric: False where the loader has applied the photometric part itself.
        pin: pin the small tensors, so that they travel with the crops.
    """
    table = batch.views
    if not photometric:
        table = without_photometric(table.box)

    def wrap(array: object) -> Tensor:
        tensor = torch.as_tensor(array)
        return tensor.pin_memory() if pin else tensor

    return Batch(
        index=wrap(batch.index),
        label=wrap(batch.label),
        crops=crops,
        photometric={name: wrap(array) for name, array in table.photometric().items()},
    )


def assemble_on(device: torch.device, batch: BatchPlan, crops: tuple[Tensor, ...]) -> Batch:
    """A batch whose crops have been made on the device; the small tensors follow, asynchronously.

    Args:
        device: where the crops are.
        batch: the plan, after replacements.
        crops: see `Batch`.
    """
    small = assemble(batch, (), pin=device.type == "cuda").to(device)
    return replace(small, crops=crops)
