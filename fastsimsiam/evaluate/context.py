"""A frozen backbone beside a data set: what every evaluation of a checkpoint starts from."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from fastsimsiam.config.evaluation import EvalOptions, Split
from fastsimsiam.config.run import Config
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.features import center_plan
from fastsimsiam.evaluate.pretrained import PretrainedBackbone, load_pretrained
from fastsimsiam.loaders.base import Loader, LoaderOptions
from fastsimsiam.loaders.registry import build_loader, choose_loader
from fastsimsiam.models.backbones import feature_extractor
from fastsimsiam.plan.batches import CenterPlan
from fastsimsiam.recipes import catalogue
from fastsimsiam.storage.base import Storage
from fastsimsiam.storage.open import has_split, open_split
from fastsimsiam.system.device import choose_device, choose_dtype
from fastsimsiam.system.malloc import keep_freed_memory
from fastsimsiam.system.progress import ImageProgress


@dataclass(frozen=True, kw_only=True)
class EvalContext:
    """Everything an evaluation needs.

    Attributes:
        pretrained: the backbone and what is known of it; on the device.
        config: of its training, or the ImageNet recipe's for weights of elsewhere; with this data,
            image size, loader, device.
        splits: `train`, and `val` where the data set is not flat.
        device, dtype: of the backbone, and of its arithmetic.
        open_loader: makes the loader of a split.
        opened: the loaders that have been asked for so far, by split.
    """

    pretrained: PretrainedBackbone
    config: Config
    splits: Mapping[Split, Storage]
    device: torch.device
    dtype: torch.dtype
    open_loader: Callable[[Storage], Loader]
    opened: dict[Split, Loader] = field(default_factory=dict)

    @property
    def train(self) -> Storage:
        """The training split."""
        return self.splits["train"]

    @property
    def eval_split(self) -> Split:
        """The split to look at: `val` where there is one."""
        return "val" if "val" in self.splits else "train"

    def loader(self, split: Split) -> Loader:
        """The loader of a split, opened when first asked for: some decode all of it then."""
        if split not in self.opened:
            self.opened[split] = self.open_loader(self.splits[split])
        return self.opened[split]

    def centered(self, split: Split) -> CenterPlan:
        """Every image of a split, centered."""
        fraction = self.pretrained.crop_fraction
        return center_plan(self.splits[split], self.config.image_size, fraction)

    @property
    def bad_images(self) -> dict[str, str]:
        """Path -> what is wrong with it, of images that were replaced so far."""
        return {
            path: why for loader in self.opened.values() for path, why in loader.bad_images.items()
        }

    def untrained(self) -> nn.Module:
        """The same network with the weights it had before training, or might have had."""
        torch.manual_seed(self.config.seed)
        backbone, _ = feature_extractor(self.pretrained.arch, self.pretrained.stem)
        return backbone.eval().to(self.device).to(memory_format=torch.channels_last)


@contextmanager
def open_eval_context(
    checkpoint: Path | str, data: Path | str, options: EvalOptions, *, need_val: bool = True
) -> Iterator[EvalContext]:
    """Opens a checkpoint and a data set, and closes what was opened.

    Args:
        checkpoint: whatever `load_pretrained` reads.
        data: folder with train/ and val/, or flat.
        options: see there.
        need_val: whether there must be a val/.

    Raises:
        UserError: something in the arguments, the file or the data has to be mended.
    """
    data = Path(data)
    pretrained = load_pretrained(
        Path(checkpoint), arch=options.arch, stem=options.stem, image_size=options.image_size
    )
    config = replace(
        pretrained.config or catalogue.recipe("imagenet-100ep"),
        data=data,
        arch=pretrained.arch,
        stem=pretrained.stem,
        image_size=pretrained.image_size,
        loader=options.loader,
        on_bad_image=options.on_bad_image,
        device=options.device,
        precision=options.precision,
        workers=options.workers,
    )
    device, _ = choose_device(options.device)
    if device.type == "cpu":
        keep_freed_memory()
    dtype, _ = choose_dtype(options.precision, device)
    splits: dict[Split, Storage] = {}
    with ImageProgress("reading headers") as progress:
        splits["train"] = train = open_split(data, "train", report=progress)
        if need_val or has_split(data, "val"):
            splits["val"] = open_split(data, "val", classes=train.classes, report=progress)
    name, _ = choose_loader(options.loader, train, device)
    loader_options = LoaderOptions(
        device=device, workers=options.workers, on_bad_image=options.on_bad_image
    )
    pretrained.backbone.to(device).to(memory_format=torch.channels_last)
    context = EvalContext(
        pretrained=pretrained,
        config=config,
        splits=splits,
        device=device,
        dtype=dtype,
        open_loader=lambda storage: build_loader(name, storage, loader_options),
    )
    try:
        yield context
    except torch.OutOfMemoryError as error:
        raise UserError(
            "the GPU's memory is too small for what lies there: free it, or pass --device cpu"
        ) from error
    finally:
        for loader in context.opened.values():
            loader.close()
