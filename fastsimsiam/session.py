"""A frozen backbone beside a data set: what every evaluation of a checkpoint starts from."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from fastsimsiam import recipes
from fastsimsiam.backbones import feature_extractor
from fastsimsiam.build import build_loader
from fastsimsiam.choose import choose_device, choose_dtype, choose_loader
from fastsimsiam.config import Config, DeviceName, LoaderName, OnBadImage
from fastsimsiam.frozen import Frozen, Stem, load_frozen
from fastsimsiam.loaders.batch import Loader
from fastsimsiam.progress import ImageProgress
from fastsimsiam.storage.base import Storage
from fastsimsiam.storage.data_set import has_split, open_split


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Options that all commands share which take a checkpoint and a data set."""

    image_size: int | None = None
    """Side of the crops in pixels; None: as in training, or 224."""
    arch: str | None = None
    """torchvision's name of the network, for weights that are not of this package; None: found out."""
    stem: Stem | None = None
    """Stem of such a network, see pretrain --help; None: found out."""
    loader: LoaderName = "auto"
    """Where images come from, see pretrain --help."""
    on_bad_image: OnBadImage = "error"
    """error: a broken image stops the command. skip: another image stands in."""
    device: DeviceName = "auto"
    """auto: cuda where there is one."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Of the backbone's arithmetic, see pretrain --help."""
    workers: int | None = None
    """Loader threads; None: one per CPU core of this process."""


@dataclass(frozen=True, kw_only=True)
class Session:
    """Everything an evaluation needs.

    Attributes:
        frozen: the backbone and what is known of it; on the device.
        config: of its training, or the ImageNet recipe's for weights of elsewhere; with this data,
            image size, loader, device.
        train, val: the splits; a flat data set has no `val`.
        train_loader, val_loader: of them.
        device, dtype: of the backbone, and of its arithmetic.
    """

    frozen: Frozen
    config: Config
    train: Storage
    val: Storage | None
    train_loader: Loader
    val_loader: Loader | None
    device: torch.device
    dtype: torch.dtype

    @property
    def bad_images(self) -> dict[str, str]:
        """Path -> what is wrong with it, of images that were replaced so far."""
        others = self.val_loader.bad_images if self.val_loader else {}
        return {**self.train_loader.bad_images, **others}

    def untrained(self) -> nn.Module:
        """The same network with the weights it had before training, or might have had."""
        torch.manual_seed(self.config.seed)
        backbone, _ = feature_extractor(self.frozen.arch, self.frozen.stem)
        return backbone.eval().to(self.device).to(memory_format=torch.channels_last)


@contextmanager
def evaluating(
    checkpoint: Path, data: Path, options: EvalOptions, *, need_val: bool = True
) -> Iterator[Session]:
    """Opens a checkpoint and a data set, and closes what was opened.

    Args:
        checkpoint: whatever `frozen.load_frozen` reads.
        data: folder with train/ and val/, or flat.
        options: see there.
        need_val: whether there must be a val/.

    Raises:
        UserError: something in the arguments, the file or the data has to be mended.
    """
    frozen = load_frozen(
        checkpoint, arch=options.arch, stem=options.stem, image_size=options.image_size
    )
    config = replace(
        frozen.config or recipes.get("imagenet-100ep"),
        data=data, arch=frozen.arch, stem=frozen.stem, image_size=frozen.image_size,
        loader=options.loader,
        on_bad_image=options.on_bad_image, device=options.device, precision=options.precision,
        workers=options.workers,
    )  # fmt: skip
    device, _ = choose_device(config)
    dtype, _ = choose_dtype(config, device)
    with ImageProgress("reading headers") as progress:
        train = open_split(data, "train", report=progress)
        val = (
            open_split(data, "val", classes=train.classes, report=progress)
            if need_val or has_split(data, "val")
            else None
        )
    name, _ = choose_loader(config, train, device)

    def loader_of(storage: Storage) -> Loader:
        return build_loader(
            name, storage, device=device, workers=options.workers, on_bad_image=options.on_bad_image
        )

    frozen.backbone.to(device).to(memory_format=torch.channels_last)
    with closing(loader_of(train)) as train_loader:
        val_loader = loader_of(val) if val else None
        try:
            yield Session(
                frozen=frozen, config=config, train=train, val=val, train_loader=train_loader,
                val_loader=val_loader, device=device, dtype=dtype,
            )  # fmt: skip
        finally:
            if val_loader:
                val_loader.close()
