"""Loader `reference`, as in the official recipe: PIL and torchvision's PIL operations in processes.

Slow and trusted: the baseline of the benchmarks and the oracle of the parity tests. It shows the views
of the plan, so it differs from the other loaders in arithmetic only. Crops come through pipes: torch's
DataLoader hangs where the shared memory of a container is too small for its batches.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFilter
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from fastsimsiam.config.views import Interpolation
from fastsimsiam.errors import BadImageError, UserError
from fastsimsiam.loaders.bad_images import BadImagePolicy
from fastsimsiam.loaders.base import Batch, LoaderOptions, assemble, size_groups
from fastsimsiam.loaders.prefetch import to_device
from fastsimsiam.plan.batches import BatchPlan, Plan
from fastsimsiam.plan.views import BRIGHTNESS, CONTRAST, HUE, SATURATION, ViewTable
from fastsimsiam.storage.base import Storage
from fastsimsiam.system.processes import InProcesses
from fastsimsiam.system.resources import num_workers


def crop_with_pil(
    image: Image.Image, box: Sequence[int], size: int, interpolation: Interpolation = "bilinear"
) -> Image.Image:
    """Cuts a box (top, left, height, width) and resizes it to a square, antialiased."""
    top, left, height, width = (int(number) for number in box)
    mode = InterpolationMode(interpolation)
    crop: Image.Image = TF.resized_crop(
        image, top, left, height, width, [size, size], mode, antialias=True
    )
    return crop


def photometric_with_pil(
    image: Image.Image, table: ViewTable, row: int, view: int, *, grayscale_first: bool = False
) -> Image.Image:
    """Applies a view's parameters in the official order: jitter, grayscale, blur, solarize, flip.

    Args:
        image: the crop.
        table: parameters of a batch.
        row, view: which of them.
        grayscale_first: grayscale comes before jitter, as in MoCo v1.
    """
    steps = {
        BRIGHTNESS: (TF.adjust_brightness, float(table.brightness[row, view]), 1.0),
        CONTRAST: (TF.adjust_contrast, float(table.contrast[row, view]), 1.0),
        SATURATION: (TF.adjust_saturation, float(table.saturation[row, view]), 1.0),
        HUE: (TF.adjust_hue, float(table.hue[row, view]), 0.0),
    }
    if table.grayscale[row, view] and grayscale_first:
        image = TF.to_grayscale(image, num_output_channels=3)
    for operation in table.order[row, view].tolist():
        adjust, factor, neutral = steps[operation]
        if factor != neutral:  # neutral where torchvision would not apply its ColorJitter
            image = adjust(image, factor)
    if table.grayscale[row, view] and not grayscale_first:
        image = TF.to_grayscale(image, num_output_channels=3)
    if table.blur_sigma[row, view] > 0:
        image = image.filter(ImageFilter.GaussianBlur(radius=float(table.blur_sigma[row, view])))
    if table.solarize[row, view]:
        image = TF.solarize(image, 128)
    return TF.hflip(image) if table.flip[row, view] else image


@dataclass(frozen=True, kw_only=True)
class _Result:
    """The result of a process for a sample or a batch; see `Loader` for the dictionaries."""

    batch: BatchPlan
    crops: tuple[npt.NDArray[np.uint8], ...] = ()
    bad_images: dict[str, str]
    warned_images: dict[str, str]
    error: str = ""


class _PlannedSamples:
    """The samples of batch plans of one row.

    Images are checked for warnings at their first use alone: the official recipe has no such check.
    `check_images` off: never.
    """

    def __init__(
        self,
        storage: Storage,
        plan: Plan,
        options: LoaderOptions,
        full: bool,
        checked: npt.NDArray[np.bool_],
    ) -> None:
        self._storage = storage
        self._plan = plan
        self._interpolations, self._grayscale_first = plan.interpolations, plan.grayscale_first
        self._on_bad_image, self._gray16_max = options.on_bad_image, options.gray16_max
        self._full = full
        self._checked = checked

    def make(self, batch: BatchPlan) -> _Result:
        policy = BadImagePolicy(self._on_bad_image, self._gray16_max)

        def open_one(index: int) -> Image.Image:
            return policy.open_with_pil(self._storage, index, check=not self._checked[index])

        try:
            image = policy.run(self._plan, batch, 0, open_one, self._storage.name)
        except UserError as error:
            # Returned, because an exception would stay in its process.
            return _Result(
                batch=batch,
                bad_images=policy.bad_images,
                warned_images=policy.warned_images,
                error=str(error),
            )
        crops = []
        for side, views in size_groups(self._plan.view_sizes).items():
            group = []
            for view in views:
                box, interpolation = batch.views.box[0, view].tolist(), self._interpolations[view]
                crop = crop_with_pil(image, box, side, interpolation)
                if self._full:
                    first = self._grayscale_first[view]
                    crop = photometric_with_pil(crop, batch.views, 0, view, grayscale_first=first)
                group.append(np.asarray(crop))
            crops.append(np.stack(group))
        return _Result(
            batch=batch,
            crops=tuple(crops),
            bad_images=policy.bad_images,
            warned_images=policy.warned_images,
        )


class _PlannedBatches:
    """The batches of an epoch."""

    def __init__(self, samples: _PlannedSamples, plan: Plan, epoch: int) -> None:
        self._samples, self._plan, self._epoch = samples, plan, epoch

    def make(self, step: int) -> _Result:
        batch = self._plan.batch(self._epoch, step)
        return _collate([self._samples.make(batch.row(row)) for row in range(len(batch.index))])


def _collate(rows: list[_Result]) -> _Result:
    error = next((row.error for row in rows if row.error), "")
    groups = () if error else zip(*(row.crops for row in rows), strict=True)
    return _Result(
        batch=BatchPlan.concatenate([row.batch for row in rows]),
        crops=tuple(np.stack(group) for group in groups),
        bad_images={path: reason for row in rows for path, reason in row.bad_images.items()},
        warned_images={path: text for row in rows for path, text in row.warned_images.items()},
        error=error,
    )


class ReferenceLoader:
    """PIL in worker processes.

    Attributes:
        bad_images, warned_images: see `loaders.base.Loader`.
    """

    def __init__(self, storage: Storage, options: LoaderOptions, *, full: bool = True) -> None:
        """Prepares the loader; processes start with each epoch.

        Args:
            storage: the images.
            options: device, processes, broken images.
            full: PIL applies the photometric parameters too, as in the official recipe; False: they
                are applied on the device, as with the other loaders.

        Raises:
            UserError: a file has no readable header and is not to be skipped.
        """
        BadImagePolicy(options.on_bad_image).require_readable(storage)
        self.bad_images: dict[str, str] = {}
        self.warned_images: dict[str, str] = {}
        self._options = options
        self._storage = storage
        self._checked = np.full(len(storage), not options.check_images)
        self._device = options.device
        self._workers = num_workers(options.workers)
        self._full = full

    def iterate(self, plan: Plan, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """See `loaders.base.Loader`."""
        return to_device(self._host_batches(plan, epoch, start), self._device)

    def close(self) -> None:
        """Does nothing: processes end with each epoch."""

    def _host_batches(self, plan: Plan, epoch: int, start: int) -> Iterator[Batch]:
        samples = _PlannedSamples(self._storage, plan, self._options, self._full, self._checked)
        batches = _PlannedBatches(samples, plan, epoch)
        pin = self._device.type == "cuda"
        steps = range(start, plan.num_batches)
        with closing(InProcesses(batches.make, steps, self._workers, "loader process")) as results:
            for result in results:
                if result.error:
                    raise BadImageError(result.error)
                self.bad_images.update(result.bad_images)
                self.warned_images.update(result.warned_images)
                self._checked[result.batch.index] = True
                crops = tuple(torch.from_numpy(crop) for crop in result.crops)
                if pin:
                    crops = tuple(crop.pin_memory() for crop in crops)
                yield assemble(result.batch, crops, photometric=not self._full, pin=pin)
