"""`fastsimsiam.Loader`: the fast loaders for training loops outside this package."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastsimsiam.augment.photometric import Photometric
from fastsimsiam.config.fields import require_gray16_max
from fastsimsiam.config.run import GRAY16_MAX, DeviceName, LoaderName, OnBadImage
from fastsimsiam.config.views import IMAGENET_PIXELS, NormalizeConfig, ViewSpec
from fastsimsiam.errors import UserError
from fastsimsiam.loaders.base import LoaderOptions
from fastsimsiam.loaders.registry import build_loader, choose_loader
from fastsimsiam.plan.batches import TrainPlan
from fastsimsiam.storage.arrays import array_images
from fastsimsiam.storage.base import Storage
from fastsimsiam.storage.open import has_split, open_split
from fastsimsiam.system.device import choose_device


class Loader:
    """Loads batches of augmented views, on the device; takes the place of a DataLoader.

    Each iteration over the loader is the next epoch::

        with fastsimsiam.Loader("data/imagenette", batch_size=256, image_size=128) as loader:
            for epoch in range(100):
                for views, label in loader:     # two tensors (B, 3, 128, 128), and (B,)
                    ...

    Under torch.distributed every rank gets its share of every batch.

    Attributes:
        epoch: number of the next epoch; set it to resume.
        classes: names of the classes, indexed by label.
        passed_over: kind -> number, of entries of the data set that are not among the images.
    """

    def __init__(
        self,
        data: Path | str | npt.NDArray[np.uint8] | Sequence[npt.NDArray[Any]],
        *,
        batch_size: int,
        image_size: int = 224,
        views: Sequence[ViewSpec] = (ViewSpec(), ViewSpec()),
        normalize: NormalizeConfig = IMAGENET_PIXELS,
        split: str = "train",
        seed: int = 0,
        loader: LoaderName = "auto",
        device: DeviceName = "auto",
        dtype: torch.dtype = torch.float32,
        workers: int | None = None,
        on_bad_image: OnBadImage = "error",
        gray16_max: int = GRAY16_MAX,
        check_images: bool = True,
        compile: bool = False,
    ) -> None:
        """Opens a data set.

        Args:
            data: a data set of any form, see docs/formats.md; or images in memory, (N, H, W, 3) uint8;
                or a pair of such images and their labels (N,).
            batch_size: images per batch, all ranks together.
            image_size: side in pixels of views without a size in their spec.
            views: one spec per view, at least one; SimSiam's two views by default.
            normalize: what is subtracted from pixels and what they are divided by; ImageNet's mean and
                standard deviation by default.
            split: `train` or `val`.
            seed: seed of the order and the views.
            loader: see `Config.loader`.
            device: device of the views.
            dtype: data type of the views.
            workers: loader threads; None: one per CPU core.
            on_bad_image: `error`, or `skip`: a broken image is replaced by another; `error-strict` and
                `skip-strict` see `Config.on_bad_image`.
            gray16_max: see `Config.gray16_max`.
            check_images: see `Config.check_images`.
            compile: compile the color operations; saves time from some hundred batches on.

        Raises:
            UserError: an argument or the data is wrong; the message says what to change.
        """
        if image_size < 1:
            raise UserError(f"image_size is {image_size}: give 1 or more")
        if not views:
            raise UserError("views is empty: give a ViewSpec for each view")
        require_gray16_max(gray16_max)
        rank, world_size = 0, 1
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        if batch_size < 1 or batch_size % world_size:
            raise UserError(f"batch_size is {batch_size}: give a multiple of {world_size}")
        storage = _opened(data, split)
        self.classes = list(storage.classes)
        self.passed_over = dict(storage.passed_over)
        self.epoch = 0
        resolved, _ = choose_device(device, rank % max(1, torch.cuda.device_count()))
        name, _ = choose_loader(loader, storage, resolved, world_size)
        self._plan = TrainPlan(
            label=storage.label,
            sizes=storage.sizes,
            seed=seed,
            specs=tuple(views),
            image_size=image_size,
            batch_size=batch_size // world_size,
            rank=rank,
            world_size=world_size,
        )
        self._photometric = Photometric(
            self._plan.specs, self._plan.view_sizes, dtype, normalize=normalize
        )
        if compile:
            self._photometric.compile_alone()
        self._loader = build_loader(
            name,
            storage,
            LoaderOptions(
                device=resolved,
                workers=workers,
                on_bad_image=on_bad_image,
                gray16_max=gray16_max,
                check_images=check_images,
            ),
        )

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return self._plan.num_batches

    def __iter__(self) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        """Yields the next epoch: per batch a normalized tensor (B, 3, S, S) per view, labels (B,)."""
        epoch, self.epoch = self.epoch, self.epoch + 1
        for batch in self._loader.iterate(self._plan, epoch):
            with torch.no_grad():
                views = self._photometric(batch.crops, batch.photometric)
            yield views, batch.label

    @property
    def bad_images(self) -> dict[str, str]:
        """Path -> reason, for broken images that have been replaced so far."""
        return self._loader.bad_images

    @property
    def warned_images(self) -> dict[str, str]:
        """Path -> warning, for images that were used so far although the decoder warned of them."""
        return self._loader.warned_images

    def close(self) -> None:
        """Stops all threads and frees memory."""
        self._loader.close()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _opened(
    data: Path | str | npt.NDArray[np.uint8] | Sequence[npt.NDArray[Any]], split: str
) -> Storage:
    if isinstance(data, np.ndarray):
        return array_images(Path("array"), data)
    if not isinstance(data, (Path, str)):
        images, labels = data
        return array_images(Path("array"), np.asarray(images), np.asarray(labels))
    data = Path(data)
    classes = None
    if split != "train" and has_split(data, "train"):
        classes = open_split(data, "train").classes  # the same labels in both splits
    return open_split(data, split, classes=classes)
