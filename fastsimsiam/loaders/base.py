"""The contract of all loaders, and what the author of a new one needs to know.

A loader turns the batches of a plan into batches on the training device: it reads the images from a
storage, decodes them, cuts the plan's boxes and resamples them to the crop size. The plan alone decides
on samples, boxes and colors, so all loaders show the same views. To add one:

- a file in this folder with a class that fulfils `Loader`, or a function that returns one
- a line in `build_loader` of registry.py, and the name in `config.run.LoaderName`
- a row in `TOLERANCE` of tests/test_loader_contract.py, which runs all tests of the contract

What a loader can rely on, and what it must do:

- `plan.batch(epoch, step)` gives samples, labels and view parameters, in any order of calls and in any
  thread. `crop_shapes` gives the shapes of the crops, `view_groups` the views and filters of each.
- Frames are decoded as PIL does (`BadImagePolicy.read_rgb`) and turned upright by the storage's
  orientation.
  Crops are resampled as by PIL's antialiased filters, each view by its own: `host_crop.crop_views` on
  the CPU, `device_crop.crop_views` on the device. Deviations are documented, and bounded by
  `TOLERANCE`.
- The work on each sample goes through `bad_images.BadImagePolicy.run`, which stops the run with an
  error or replaces the sample in the batch plan. Another decoder than libjpeg-turbo gets only the JPEGs
  that `first_use.FirstUse` leaves to it.
- `assemble` makes a batch of crops in host memory; `prefetch.to_device` copies such batches to the
  device ahead of use. A loader that makes crops on the device uses `assemble_on`, and works ahead of
  the step with `prefetch.ahead`.
- The photometric parameters travel with the batch and are applied on the device (`augment`), unless
  the loader applies them itself, as `reference` does.
- A batch, and any view of its tensors, stays valid as long as it is held.
- Batches depend on plan, epoch and step only: not on the number of workers, on timing, or on where an
  epoch starts.

Shapes: B batch, V views of one size, H W crop side.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from fastsimsiam.config.run import GRAY16_MAX, OnBadImage
from fastsimsiam.config.views import Interpolation
from fastsimsiam.plan.batches import BatchPlan, Plan
from fastsimsiam.plan.views import without_photometric

BATCHES_AHEAD = 2
"""Batches that are prepared ahead of the step by default, at each stage of a loader."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A batch on the training device.

    Attributes:
        index: (B,) int64 sample indices.
        label: (B,) int64 class numbers.
        crops: one uint8 tensor (B, V, H, W, 3), RGB, per distinct view size, in the order in which the
            sizes first occur among the views.
        photometric: the view parameters that are not applied yet, each (B, all views) or
            (B, all views, 4), by the names of `plan.views.ViewTable`.
    """

    index: Tensor
    label: Tensor
    crops: tuple[Tensor, ...]
    photometric: dict[str, Tensor]

    def to(self, device: torch.device) -> "Batch":
        """A copy on `device`; the copy is asynchronous if this batch is pinned."""

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
    """Options of every loader.

    Attributes:
        device: the training device, where batches go.
        workers: number of threads (processes in `reference`); None: one per core.
        on_bad_image: `error` stops the run at a broken image, `skip` replaces the image; with `-strict`
            an image is broken, too, if the decoder warns of its data.
        gray16_max: largest gray level of 16-bit images, see `decode.to_rgb`.
        check_images: see `first_use.FirstUse`.
    """

    device: torch.device
    workers: int | None = None
    on_bad_image: OnBadImage = "error"
    gray16_max: int = GRAY16_MAX
    check_images: bool = True


class Loader(Protocol):
    """A source of batches.

    Attributes:
        bad_images: image -> error, for the images that were skipped so far.
        warned_images: image -> warning of the decoder, for those that were used so far nevertheless.
    """

    bad_images: dict[str, str]
    warned_images: dict[str, str]

    def iterate(self, plan: Plan, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """Yields batches `start` to the last of an epoch, ready for the current stream.

        May be called for any number of epochs and plans. Closing or dropping the iterator before its
        end stops its work. An error in a worker is raised here.

        Raises:
            BadImageError: an image is broken and `on_bad_image` is `error`.
        """

    def close(self) -> None:
        """Ends all workers and frees memory."""


def size_groups(view_sizes: tuple[int, ...]) -> dict[int, list[int]]:
    """Distinct crop sizes, each with the numbers of its views: one crop tensor per size."""
    groups: dict[int, list[int]] = {}
    for view, size in enumerate(view_sizes):
        groups.setdefault(size, []).append(view)
    return groups


@dataclass(frozen=True, kw_only=True)
class ViewGroup:
    """The views of one size, whose crops are one tensor.

    Attributes:
        side: side of the crops in pixels.
        views: numbers of the views.
        interpolations: filter of each of them.
    """

    side: int
    views: list[int]
    interpolations: tuple[Interpolation, ...]


def view_groups(plan: Plan) -> list[ViewGroup]:
    """The views of a plan by size, in the order of `Batch.crops`."""
    interpolations = plan.interpolations
    return [
        ViewGroup(
            side=side, views=views, interpolations=tuple(interpolations[view] for view in views)
        )
        for side, views in size_groups(plan.view_sizes).items()
    ]


def crop_shapes(batch_size: int, view_sizes: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Shapes (B, V, H, W, 3) of the crop tensors of a batch."""
    groups = size_groups(view_sizes).items()
    return [(batch_size, len(views), side, side, 3) for side, views in groups]


def assemble(
    batch: BatchPlan, crops: tuple[Tensor, ...], photometric: bool = True, pin: bool = False
) -> Batch:
    """A batch in host memory from its plan and its crops.

    Args:
        batch: the plan of the batch, after replacements.
        crops: the crops of `Batch`.
        photometric: False if the loader has applied the photometric parameters.
        pin: pin the tensors of the plan, for a copy to a GPU.
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
    """A batch from crops on the device and the plan's tensors, which are copied asynchronously.

    Args:
        device: the device of the crops.
        batch: the plan of the batch, after replacements.
        crops: the crops of `Batch`.
    """
    without_crops = assemble(batch, (), pin=device.type == "cuda").to(device)
    return replace(without_crops, crops=crops)
