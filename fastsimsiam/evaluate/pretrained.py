"""Loads a pretrained backbone from checkpoints of this and of other packages.

Formats: checkpoints and runs of this package, and what it exports; state dicts of torchvision, timm and
of training scripts, as .pth or .safetensors, see `foreign.find_backbone`. No code in a file is run.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fastsimsiam.config.evaluation import Stem
from fastsimsiam.config.run import Config, KnnConfig
from fastsimsiam.config.views import IMAGENET_PIXELS, NormalizeConfig
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.finite import NotFiniteError, require_finite_weights
from fastsimsiam.evaluate.foreign import find_backbone, required_keys
from fastsimsiam.evaluate.recorded import Recorded, as_text, from_text, record
from fastsimsiam.evaluate.weights_file import read_weights
from fastsimsiam.models.backbones import feature_extractor
from fastsimsiam.runs.archive import DamagedCheckpointError
from fastsimsiam.runs.checkpoint import FOLDER, Checkpoint, from_stored, newest_good


@dataclass(frozen=True, kw_only=True)
class PretrainedBackbone:
    """A pretrained backbone and its metadata.

    Attributes:
        backbone: images (B, 3, H, W) to features (B, D); on the CPU, in eval mode; all weights finite.
        arch: torchvision's name of the network.
        stem: `imagenet` or `cifar`, see `backbones.feature_extractor`.
        feature_dim: number of features, D.
        image_size: side of the images to evaluate on, in pixels.
        crop_fraction: side of the centered square to evaluate on, over the image's shorter side.
        normalize: normalization of the images: the training's, or ImageNet's if the file records none.
        path: file of the weights.
        step: optimizer steps of the training; None if the file does not record them.
        config: the training's configuration; None for weights of other packages.
        whole_method: whether the file is a checkpoint, which holds the projector too.
        assumed: whether `normalize` is ImageNet's for want of another: the file is of another package
            and records none.
        notes: what the user should know about the choice of the weights.
        labels: labels that the weights were fine-tuned on, or their teacher's.
    """

    backbone: nn.Module
    arch: str
    stem: Stem
    feature_dim: int
    image_size: int
    crop_fraction: float
    normalize: NormalizeConfig
    path: Path
    step: int | None
    config: Config | None
    whole_method: bool = False
    assumed: bool = False
    notes: tuple[str, ...] = ()
    labels: int = 0

    @property
    def notes_on_images(self) -> tuple[str, ...]:
        """What to know before images are given to the backbone."""
        if not self.assumed:
            return ()
        return (
            f"{self.path} records no normalization of the images: ImageNet's is taken; pass --mean and "
            "--std if the weights were trained with another",
        )

    def record(self) -> dict[str, Any]:
        """What changes a score, as plain values, for files that are made with these weights."""
        return record(
            arch=self.arch,
            stem=self.stem,
            image_size=self.image_size,
            crop_fraction=self.crop_fraction,
            normalize=self.normalize,
            step=self.step,
            config=self.config,
        )


def load_pretrained(
    path: Path,
    *,
    arch: str | None = None,
    stem: Stem | None = None,
    image_size: int | None = None,
    crop_fraction: float | None = None,
    normalize: NormalizeConfig | None = None,
) -> PretrainedBackbone:
    """Loads a backbone and its metadata.

    Args:
        path: a file, or the folder of a run, of which the newest checkpoint that can be read is loaded.
        arch, stem: network of a state dict that does not record it; None: detected, for ResNets.
        image_size: side of the images in pixels; None: that of the training, else 224.
        crop_fraction: side of the centered square over the image's shorter side; None: that of the
            training, else 0.875.
        normalize: normalization of the images; None: as recorded with the weights, else ImageNet's.

    Raises:
        UserError: there is no such file, it is damaged, its keys are not those of the network, or its
            weights are not finite.
    """
    if image_size is not None and image_size < 1:
        raise UserError(f"--image-size is {image_size}: give 1 or more")
    if crop_fraction is not None and not 0 < crop_fraction <= 1:
        raise UserError(f"--crop-fraction is {crop_fraction}: give more than 0, at most 1")

    def load(file: Path) -> PretrainedBackbone:
        loaded = _load_file(file, arch, stem, image_size, crop_fraction)
        try:
            require_finite_weights(loaded.backbone, file)
        except NotFiniteError as error:
            if loaded.whole_method:  # no run saves such weights
                raise DamagedCheckpointError(str(error)) from error
            raise
        if normalize is None:
            return loaded
        return replace(loaded, normalize=normalize, assumed=False)

    if not path.is_dir():
        return load(path)
    run = path.parent if path.name == FOLDER else path
    notes: list[str] = []
    _, loaded = newest_good(run, notes.append, load)
    return replace(loaded, notes=(*notes, *loaded.notes))


def _load_file(
    path: Path,
    arch: str | None,
    stem: Stem | None,
    image_size: int | None,
    crop_fraction: float | None,
) -> PretrainedBackbone:
    content, metadata = read_weights(path)
    if _is_checkpoint(content):
        checkpoint = from_stored(content, path)
        return _from_checkpoint(checkpoint, path, arch, stem, image_size, crop_fraction)
    labels = 0
    if _is_classifier(content):
        labels = len(content["labeled"])
        metadata, content = as_text(content["weights"]), _backbone_of(content["network"])
    recorded = from_text(metadata, path)
    if recorded.arch is None and isinstance(content.get("arch"), str):
        recorded = Recorded(arch=content["arch"])
    found = find_backbone(
        content, path, arch=arch, stem=stem or recorded.stem, recorded=recorded.arch
    )
    loaded = _make(
        found.arch,
        found.stem,
        found.weights,
        path=path,
        recorded=recorded,
        image_size=image_size,
        crop_fraction=crop_fraction,
        notes=(*found.notes, *([f"{path} was trained on {labels:,} labels"] if labels else ())),
    )
    loaded = replace(loaded, labels=labels)
    # The first versions of this package recorded none, and always had ImageNet's.
    return replace(loaded, assumed=not (recorded.normalize or metadata.get("fastsimsiam")))


def _is_checkpoint(content: Mapping[str, Any]) -> bool:
    """Whether a file is this package's; others may have a `method` or a `config` as well."""
    return "config" in content and (
        isinstance(content.get("format"), int) or isinstance(content.get("method"), dict)
    )


def _is_classifier(content: Mapping[str, Any]) -> bool:
    """Whether a file is of `finetune` or `distill`."""
    dicts = all(isinstance(content.get(key), dict) for key in ("weights", "network", "identity"))
    return dicts and isinstance(content.get("labeled"), Tensor)


def _backbone_of(network: Mapping[str, Any]) -> dict[str, Any]:
    prefix = "backbone."
    return {
        key.removeprefix(prefix): value for key, value in network.items() if key.startswith(prefix)
    }


def _from_checkpoint(
    checkpoint: Checkpoint,
    path: Path,
    arch: str | None,
    stem: str | None,
    image_size: int | None,
    crop_fraction: float | None,
) -> PretrainedBackbone:
    config = checkpoint.config
    for key, given, own in (("arch", arch, config.arch), ("stem", stem, config.stem)):
        if given not in (None, own):
            raise UserError(f"--{key} is {given}, but {path} is {own}: drop --{key}")
    prefix = "backbone."
    weights = {
        key.removeprefix(prefix): value
        for key, value in checkpoint.method.items()
        if isinstance(key, str) and key.startswith(prefix) and isinstance(value, Tensor)
    }
    recorded = Recorded(
        image_size=config.image_size,
        crop_fraction=config.knn.crop_fraction,
        normalize=config.normalize,
        step=checkpoint.step,
        config=config,
    )
    loaded = _make(
        config.arch,
        config.stem,
        weights,
        path=path,
        recorded=recorded,
        image_size=image_size,
        crop_fraction=crop_fraction,
    )
    return replace(loaded, whole_method=True)


def _make(
    arch: str,
    stem: Stem,
    weights: Mapping[str, Tensor],
    *,
    path: Path,
    recorded: Recorded,
    image_size: int | None,
    crop_fraction: float | None,
    notes: tuple[str, ...] = (),
) -> PretrainedBackbone:
    try:
        backbone, feature_dim = feature_extractor(arch, stem)
    except UserError as error:
        raise UserError(
            f"{path} is of {arch} with the stem {stem}, which is not a network of torchvision: import "
            "the module that registers it"
        ) from error
    state = backbone.state_dict()
    wrong = [key for key in required_keys(state) if key not in weights]
    wrong += [
        key for key, value in weights.items() if key not in state or value.shape != state[key].shape
    ]
    if wrong:
        raise DamagedCheckpointError(f"{path} is damaged: {wrong[0]} is not as in {arch}")
    backbone.load_state_dict(dict(weights), strict=False)
    return PretrainedBackbone(
        backbone=backbone.eval(),
        arch=arch,
        stem=stem,
        feature_dim=feature_dim,
        image_size=image_size or recorded.image_size or Config.image_size,
        crop_fraction=crop_fraction or recorded.crop_fraction or KnnConfig.crop_fraction,
        normalize=recorded.normalize or IMAGENET_PIXELS,
        path=path,
        step=recorded.step,
        config=recorded.config,
        notes=notes,
    )


def load_backbone(
    path: Path | str, *, arch: str | None = None, stem: Stem | None = None
) -> nn.Module:
    """Loads a pretrained backbone.

    Args:
        path: a checkpoint or the folder of a run (its newest checkpoint); a state dict of torchvision
            or timm, as .pth or .safetensors; a checkpoint of another package for self-supervised
            learning, of which the network that was trained is taken. No code in it is run.
        arch, stem: network of a state dict that does not record it; None: detected, for ResNets.

    Returns:
        Normalized images (B, 3, S, S) to features (B, D); on the CPU, in eval mode.

    Raises:
        UserError: the file cannot be read, or its keys are not those of the network.

    Warns:
        UserWarning: a damaged checkpoint was passed over, or a choice was made among the weights.
    """
    loaded = load_pretrained(Path(path), arch=arch, stem=stem)
    for note in loaded.notes:
        warnings.warn(note, stacklevel=2)
    return loaded.backbone
