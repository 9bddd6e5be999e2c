"""A trained backbone from whatever file it lies in: our checkpoints, or other people's.

Known are: checkpoints and runs of this package; state dicts of torchvision and timm, as .pth or
.safetensors; the official SimSiam checkpoint (keys `module.encoder.*`). Nothing in a file is run.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastsimsiam.config.evaluation import Stem
from fastsimsiam.config.run import Config, KnnConfig
from fastsimsiam.errors import UserError
from fastsimsiam.models.backbones import classifier_name, feature_extractor
from fastsimsiam.runs.checkpoint import Checkpoint, CheckpointStore, from_stored, read_stored
from fastsimsiam.system.optional import require

_PREFIXES = ("module.encoder.", "module.backbone.", "encoder.", "backbone.", "module.", "")
_WRAPPERS = ("state_dict", "model", "model_state_dict")
_GUESSES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2")
_STEMS: tuple[Stem, ...] = ("imagenet", "cifar")
_SHOWN = 4


@dataclass(frozen=True, kw_only=True)
class PretrainedBackbone:
    """A trained backbone and what is known of it.

    Attributes:
        backbone: images (B, 3, H, W) to features (B, D); on the CPU, in eval mode.
        arch: torchvision's name of it.
        stem: `imagenet` or `cifar`, see `backbones.feature_extractor`.
        feature_dim: D.
        image_size: side of the images it was trained on, in pixels.
        crop_fraction: side of the centered square to evaluate on, over the image's shorter side.
        path: the file.
        step: of the training, where the file tells.
        config: of the training, where it was ours.
    """

    backbone: nn.Module
    arch: str
    stem: Stem
    feature_dim: int
    image_size: int
    crop_fraction: float
    path: Path
    step: int | None
    config: Config | None


def load_pretrained(
    path: Path, *, arch: str | None = None, stem: Stem | None = None, image_size: int | None = None
) -> PretrainedBackbone:
    """Reads a backbone.

    Args:
        path: a file, or the folder of a run (its newest checkpoint).
        arch, stem: of a state dict that does not tell; None: found out, for ResNets.
        image_size: side of the images in pixels; None: as in training, or 224.

    Raises:
        UserError: there is no such file, it is damaged, or its keys are not those of the network.
    """
    if path.is_dir():
        found = CheckpointStore(path, keep=1).paths()
        if not found:
            raise UserError(
                f"there is no checkpoint in {path}: expected {path}/checkpoints/step-*.pt"
            )
        path = found[-1]
    if image_size is not None and image_size < 1:
        raise UserError(f"--image-size is {image_size}: give 1 or more")
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}: pass a file, or the folder of a run")
    stored = _read(path)
    if "method" in stored:
        return _ours(from_stored(stored, path), path, arch, stem, image_size)
    state = next((stored[key] for key in _WRAPPERS if isinstance(stored.get(key), dict)), stored)
    state = _without_prefix(state)
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{path} holds no weights: expected a state dict of a torchvision network")
    named = stored.get("arch")
    arch, stem = _fitting(path, tensors, arch or (named if isinstance(named, str) else None), stem)
    backbone, feature_dim = feature_extractor(arch, stem)
    _fill(backbone, tensors, arch, path)
    return PretrainedBackbone(
        backbone=backbone.eval(),
        arch=arch,
        stem=stem,
        feature_dim=feature_dim,
        image_size=image_size or Config.image_size,
        crop_fraction=KnnConfig.crop_fraction,
        path=path,
        step=None,
        config=None,
    )


def _read(path: Path) -> dict[str, Any]:
    if path.suffix != ".safetensors":
        return read_stored(path)
    require("safetensors", str(path), "pip install 'fastsimsiam[export]'")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or no checkpoint ({error})") from error
    return {"state_dict": tensors, "arch": about.get("arch")}


def _ours(
    checkpoint: Checkpoint, path: Path, arch: str | None, stem: str | None, image_size: int | None
) -> PretrainedBackbone:
    config = checkpoint.config
    for key, asked, own in (("arch", arch, config.arch), ("stem", stem, config.stem)):
        if asked not in (None, own):
            raise UserError(f"--{key} is {asked}, but {path} tells that it is {own}: drop --{key}")
    backbone, feature_dim = feature_extractor(config.arch, config.stem)
    prefix = "backbone."
    backbone.load_state_dict(
        {
            key.removeprefix(prefix): value
            for key, value in checkpoint.method.items()
            if key.startswith(prefix)
        }
    )
    return PretrainedBackbone(
        backbone=backbone.eval(),
        arch=config.arch,
        stem=config.stem,
        feature_dim=feature_dim,
        image_size=image_size or config.image_size,
        crop_fraction=config.knn.crop_fraction,
        path=path,
        step=checkpoint.step,
        config=config,
    )


def _without_prefix(state: Mapping[str, Any]) -> dict[str, Any]:
    """The backbone's entries: those behind the first known prefix that there is."""
    prefix = next(p for p in _PREFIXES if any(key.startswith(p) for key in state) or not p)
    return {
        key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)
    }


def _fitting(
    path: Path, tensors: Mapping[str, Tensor], arch: str | None, stem: Stem | None
) -> tuple[str, Stem]:
    """The network whose every key and shape is there: of those asked for, or of some ResNets."""
    for name in (arch,) if arch else _GUESSES:
        for candidate in (stem,) if stem else _STEMS if "resnet" in name else _STEMS[:1]:
            with torch.device("meta"):
                backbone, _ = feature_extractor(name, candidate)
            needed = {key: value.shape for key, value in _needed(backbone).items()}
            there = {key: tensors[key].shape for key in needed if key in tensors}
            if needed == there:
                return name, candidate
    if arch:
        return arch, stem or "imagenet"  # what does not fit will be named
    raise UserError(
        f"{path} fits none of {', '.join(_GUESSES)}: pass --arch with torchvision's name of the "
        f"network (keys of the file: {_some(tensors)})"
    )


def _needed(backbone: nn.Module) -> dict[str, Tensor]:
    """Entries without which a backbone is not itself: the counters of BatchNorm may be missing."""
    state = backbone.state_dict()
    return {key: value for key, value in state.items() if "num_batches_tracked" not in key}


def _fill(backbone: nn.Module, tensors: Mapping[str, Tensor], arch: str, path: Path) -> None:
    classifier = classifier_name(arch)
    own = backbone.state_dict()
    # A projector may stand where the classifier was: the official checkpoint has it in `fc`.
    kept = {k: v for k, v in tensors.items() if not k.startswith(f"{classifier}.")}
    unexpected = sorted(kept.keys() - own.keys())
    missing = sorted(_needed(backbone).keys() - kept.keys())
    if unexpected:
        raise UserError(
            f"{path} has keys that a {arch} has not: {_some(unexpected)}: pass another --arch, or a "
            "file of the backbone alone"
        )
    if missing:
        raise UserError(f"{path} lacks keys of a {arch}: {_some(missing)}: pass another --arch")
    wrong = sorted(key for key, value in kept.items() if value.shape != own[key].shape)
    if wrong:
        raise UserError(
            f"{path} has other shapes than a {arch}: {_some(wrong)}: pass another --arch or --stem"
        )
    backbone.load_state_dict(kept, strict=False)


def _some(keys: Any) -> str:
    names = list(keys)
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest


def load_backbone(
    path: Path | str, *, arch: str | None = None, stem: Stem | None = None
) -> nn.Module:
    """A trained backbone: normalized images (B, 3, S, S) to features (B, D); on the CPU, in eval mode.

    Args:
        path: a checkpoint or a run's folder; weights of torchvision, timm or the official SimSiam.
        arch, stem: of weights that do not tell; None: found out, for ResNets.

    Raises:
        UserError: the file cannot be read, or its keys are not those of the network.
    """
    return load_pretrained(Path(path), arch=arch, stem=stem).backbone
