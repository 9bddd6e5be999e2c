"""A pretrained backbone and a data set, opened together: the start of every evaluation."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fastsimsiam.config.evaluation import EvalOptions, Split, normalization
from fastsimsiam.config.run import Config, LoaderName
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.features import Features, center_plan, centered_features, extract
from fastsimsiam.evaluate.pretrained import PretrainedBackbone, load_pretrained
from fastsimsiam.loaders.base import Batch, Loader, LoaderOptions
from fastsimsiam.loaders.dark_gray import dark_gray_warning
from fastsimsiam.loaders.jpeg_warning import warned_line
from fastsimsiam.loaders.registry import build_loader, choose_loader
from fastsimsiam.models.backbones import feature_extractor
from fastsimsiam.models.image_size import require_image_size
from fastsimsiam.plan.batches import CenterPlan
from fastsimsiam.recipes import catalogue
from fastsimsiam.storage.base import Report, Storage
from fastsimsiam.storage.labels import NO_CLASSES
from fastsimsiam.storage.open import has_val, open_split, open_val
from fastsimsiam.storage.passed_over import notes
from fastsimsiam.system.barriers import share_cores
from fastsimsiam.system.device import choose_device, choose_dtype
from fastsimsiam.system.malloc import keep_freed_memory
from fastsimsiam.system.out_of_memory import memory_told
from fastsimsiam.system.progress import ImageProgress
from fastsimsiam.system.text import printable


@dataclass(frozen=True, kw_only=True)
class EvalContext:
    """A backbone on its device, and the data set to evaluate it on.

    Attributes:
        pretrained: the backbone and its metadata.
        config: the training's configuration (the ImageNet recipe's for weights of other packages)
            with the data, image size, normalization, loader and device of this evaluation.
        splits: `train`, and `val` unless the data set is flat.
        device: device of the backbone.
        dtype: data type of the backbone's arithmetic.
        open_loader: opens a loader by its name; None: the one that suits the storage.
        loader_name: loader of the data set's splits.
        opened: loaders opened so far, by split, or by another name that `open_besides` was given.
        notes: what the user should know about the result, see `warn`.
    """

    pretrained: PretrainedBackbone
    config: Config
    splits: Mapping[Split, Storage]
    device: torch.device
    dtype: torch.dtype
    open_loader: Callable[[Storage, LoaderName | None], Loader]
    loader_name: LoaderName
    opened: dict[str, Loader] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def train(self) -> Storage:
        """The training split."""
        return self.splits["train"]

    @property
    def eval_split(self) -> Split:
        """The split to evaluate on: `val` if there is one."""
        return "val" if "val" in self.splits else "train"

    def loader(self, split: Split) -> Loader:
        """The loader of a split, opened on first use: some loaders decode the whole split then."""
        if split not in self.opened:
            self.opened[split] = self.open_loader(self.splits[split], self.loader_name)
        return self.opened[split]

    def open_besides(self, name: str, storage: Storage) -> Loader:
        """The loader of another data set, closed with the others and asked for its bad images."""
        self.opened[name] = self.open_loader(storage, None)
        return self.opened[name]

    def centered(self, split: Split) -> CenterPlan:
        """The plan of centered crops of every image of a split."""
        fraction = self.pretrained.crop_fraction
        return center_plan(self.splits[split], self.config.image_size, fraction)

    def features(
        self,
        split: Split,
        report: Report | None = None,
        *,
        only: npt.NDArray[np.int64] | None = None,
    ) -> Iterator[tuple[Tensor, Batch]]:
        """Features (B, D) of centered crops and their batches, see `centered_features`.

        Args:
            split: of the data set.
            report: called with (batches done, batches in all).
            only: numbers of the images; None: all.
        """
        return centered_features(
            self.pretrained.backbone,
            self.loader(split),
            replace(self.centered(split), only=only),
            constants=self.pretrained.normalize,
            device=self.device,
            dtype=self.dtype,
            source=self.pretrained.path,
            warn=self.warn,
            report=report,
        )

    def extract(
        self,
        split: Split,
        report: Report | None = None,
        *,
        measure: Callable[[Tensor], Tensor | None] | None = None,
    ) -> Features:
        """Features of length 1 of centered crops, see `features.extract`."""
        return extract(
            self.pretrained.backbone,
            self.loader(split),
            self.centered(split),
            constants=self.pretrained.normalize,
            device=self.device,
            dtype=self.dtype,
            source=self.pretrained.path,
            measure=measure,
            warn=self.warn,
            report=report,
        )

    def require_labels(self) -> None:
        """Refuses images without labels; notes that with one class every answer is right.

        Raises:
            UserError: the training images have no labels.
        """
        require_labels(self.train)
        if len(self.train.classes) == 1:
            self.warn(
                f"all training images are of the class {self.train.classes[0]}: scores are 100"
            )

    def warn(self, text: str) -> None:
        """Prints a note on the result, once, and keeps it."""
        if text not in self.notes:
            self.notes.append(text)
            print(f"note: {text}", file=sys.stderr, flush=True)

    @property
    def bad_images(self) -> dict[str, str]:
        """Path -> reason, for broken images that have been left out so far."""
        return {
            path: why for loader in self.opened.values() for path, why in loader.bad_images.items()
        }

    @property
    def warned_images(self) -> dict[str, str]:
        """Path -> warning, for images that were used so far although the decoder warned of them."""
        return {
            path: text
            for loader in self.opened.values()
            for path, text in loader.warned_images.items()
        }

    def untrained(self) -> nn.Module:
        """The same network with the weights it had before training; random ones if unknown."""
        torch.manual_seed(self.config.seed)
        backbone, _ = feature_extractor(
            self.pretrained.arch, self.pretrained.stem, self.config.zero_init_residual
        )
        return backbone.eval().to(self.device).to(memory_format=torch.channels_last)


def require_labels(train: Storage) -> None:
    """Refuses images without labels, of which nothing can be scored.

    Raises:
        UserError: names the images and the commands that need no labels.
    """
    if tuple(train.classes) == NO_CLASSES:
        raise UserError(
            f"{printable(train.root)}: the images have no labels, so nothing can be scored: give "
            "images with labels (embed, inspect and report need none)"
        )


@contextmanager
def open_eval_context(
    checkpoint: Path | str, data: Path | str, options: EvalOptions, *, need_val: bool = True
) -> Iterator[EvalContext]:
    """Opens a checkpoint and a data set, and closes the loaders at the end.

    Args:
        checkpoint: any file or folder that `load_pretrained` reads.
        data: folder with train/ and val/, or flat.
        options: how to evaluate.
        need_val: whether there must be a val/.

    Raises:
        UserError: an argument, the file or the data is wrong; the message says what to change.
    """
    data = Path(data)
    pretrained = load_pretrained(
        Path(checkpoint),
        arch=options.arch,
        stem=options.stem,
        image_size=options.image_size,
        crop_fraction=options.crop_fraction,
        normalize=normalization(options.mean, options.std),
    )
    require_image_size(pretrained.arch, pretrained.image_size, stem=pretrained.stem)
    config = replace(
        pretrained.config or catalogue.recipe("imagenet-100ep"),
        data=data,
        arch=pretrained.arch,
        stem=pretrained.stem,
        image_size=pretrained.image_size,
        normalize=pretrained.normalize,
        loader=options.loader,
        on_bad_image=options.on_bad_image,
        check_images=options.check_images,
        device=options.device,
        precision=options.precision,
        workers=options.workers,
    )
    if options.gray16_max is not None:
        config = replace(config, gray16_max=options.gray16_max)
    device, _ = choose_device(options.device)
    if device.type == "cpu":
        share_cores()
        keep_freed_memory()
    dtype, _ = choose_dtype(options.precision, device)
    splits: dict[Split, Storage] = {}
    with ImageProgress("opening the data", unit=None) as progress:
        splits["train"] = train = open_split(data, "train", report=progress)
        if need_val:
            require_labels(train)
        if need_val or has_val(data, options.val):
            splits["val"] = open_val(data, options.val, classes=train.classes, report=progress)
    for line in (note for storage in splits.values() for note in notes(storage)):
        print(line, file=sys.stderr)
    if dark := dark_gray_warning(train, config.gray16_max):
        print(f"WARNING: {dark}", file=sys.stderr)
    name, _ = choose_loader(options.loader, train, device)
    loader_options = LoaderOptions(
        device=device,
        workers=options.workers,
        on_bad_image=options.on_bad_image,
        gray16_max=config.gray16_max,
        check_images=options.check_images,
    )
    pretrained.backbone.to(device).to(memory_format=torch.channels_last)
    context = EvalContext(
        pretrained=pretrained,
        config=config,
        splits=splits,
        device=device,
        dtype=dtype,
        open_loader=lambda storage, name: build_loader(
            name or choose_loader(options.loader, storage, device)[0], storage, loader_options
        ),
        loader_name=cast(LoaderName, name),
    )
    for note in (*pretrained.notes, *pretrained.notes_on_images):
        context.warn(note)
    try:
        with memory_told("this data set", "stop other programs that use it"):
            yield context
        if context.warned_images:
            print(f"note: {warned_line(context.warned_images)}", file=sys.stderr)
    finally:
        for loader in context.opened.values():
            loader.close()
