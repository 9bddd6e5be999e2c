"""Loads a pretrained backbone from checkpoints of this and of other packages.

Formats: checkpoints and runs of this package; state dicts of torchvision and timm, as .pth or
.safetensors; the official SimSiam checkpoint (keys `module.encoder.*`). No code in a file is run.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fastsimsiam.config.evaluation import Stem
from fastsimsiam.config.run import Config, KnnConfig
from fastsimsiam.errors import UserError
from fastsimsiam.models.backbones import classifier_name, feature_extractor, shape_extractor
from fastsimsiam.runs.checkpoint import Checkpoint, CheckpointStore, from_stored, read_stored
from fastsimsiam.system.optional import require

_PREFIXES = ("module.encoder.", "module.backbone.", "encoder.", "backbone.", "module.", "")
_WRAPPERS = ("state_dict", "model", "model_state_dict")
_CANDIDATES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2")
_STEMS: tuple[Stem, ...] = ("imagenet", "cifar")
_SHOWN = 4
"""Keys that an error message lists."""


@dataclass(frozen=True, kw_only=True)
class PretrainedBackbone:
    """A pretrained backbone and its metadata.

    Attributes:
        backbone: images (B, 3, H, W) to features (B, D); on the CPU, in eval mode.
        arch: torchvision's name of the network.
        stem: `imagenet` or `cifar`, see `backbones.feature_extractor`.
        feature_dim: number of features, D.
        image_size: side of the images to evaluate on, in pixels.
        crop_fraction: side of the centered square to evaluate on, over the image's shorter side.
        path: file of the weights.
        step: optimizer steps of the training; None if the file does not record them.
        config: the training's configuration; None for weights of other packages.
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
    """Loads a backbone and its metadata.

    Args:
        path: a file, or the folder of a run, of which the newest checkpoint is loaded.
        arch, stem: network of a state dict that does not record it; None: detected, for ResNets.
        image_size: side of the images in pixels; None: that of the training, else 224.

    Raises:
        UserError: there is no such file, it is damaged, or its keys are not those of the network.
    """
    if path.is_dir():
        checkpoints = CheckpointStore(path, keep=1).paths()
        if not checkpoints:
            raise UserError(
                f"there is no checkpoint in {path}: expected {path}/checkpoints/step-*.pt"
            )
        path = checkpoints[-1]
    if image_size is not None and image_size < 1:
        raise UserError(f"--image-size is {image_size}: give 1 or more")
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}: pass a file, or the folder of a run")
    stored = _read(path)
    if "method" in stored:
        return _from_checkpoint(from_stored(stored, path), path, arch, stem, image_size)
    state = next((stored[key] for key in _WRAPPERS if isinstance(stored.get(key), dict)), stored)
    state = _without_prefix(state)
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{path} holds no weights: pass a state dict of a torchvision network")
    recorded = stored.get("arch")
    arch = arch or (recorded if isinstance(recorded, str) else None)
    arch, stem = _detect(path, tensors, arch, stem)
    backbone, feature_dim = feature_extractor(arch, stem)
    _load(backbone, tensors, arch, path)
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
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is damaged or not a checkpoint ({error}): pass another file"
        ) from error
    return {"state_dict": tensors, "arch": metadata.get("arch")}


def _from_checkpoint(
    checkpoint: Checkpoint, path: Path, arch: str | None, stem: str | None, image_size: int | None
) -> PretrainedBackbone:
    config = checkpoint.config
    for key, given, recorded in (("arch", arch, config.arch), ("stem", stem, config.stem)):
        if given not in (None, recorded):
            raise UserError(f"--{key} is {given}, but {path} is {recorded}: drop --{key}")
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
    """The backbone's entries, without the first known prefix that some key has."""
    prefix = next(p for p in _PREFIXES if any(key.startswith(p) for key in state) or not p)
    return {
        key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)
    }


def _detect(
    path: Path, tensors: Mapping[str, Tensor], arch: str | None, stem: Stem | None
) -> tuple[str, Stem]:
    """The first arch and stem with every key and shape in the file; without `arch` tries ResNets."""
    for name in (arch,) if arch else _CANDIDATES:
        for candidate in (stem,) if stem else _STEMS if "resnet" in name else _STEMS[:1]:
            backbone, _ = shape_extractor(name, candidate)
            required = {key: value.shape for key, value in _required(backbone).items()}
            present = {key: tensors[key].shape for key in required if key in tensors}
            if required == present:
                return name, candidate
    if arch:
        return arch, stem or "imagenet"  # `_load` names the keys that do not fit
    raise UserError(
        f"{path} fits none of {', '.join(_CANDIDATES)}: pass --arch with torchvision's name of the "
        f"network (keys of the file: {_shorten(tensors)})"
    )


def _required(backbone: nn.Module) -> dict[str, Tensor]:
    """Entries that a file must have: all but the counters of BatchNorm."""
    state = backbone.state_dict()
    return {key: value for key, value in state.items() if "num_batches_tracked" not in key}


def _load(backbone: nn.Module, tensors: Mapping[str, Tensor], arch: str, path: Path) -> None:
    classifier = classifier_name(arch)
    state = backbone.state_dict()
    # In place of the classifier there may be a projector: the official checkpoint has it in `fc`.
    weights = {k: v for k, v in tensors.items() if not k.startswith(f"{classifier}.")}
    unexpected = sorted(weights.keys() - state.keys())
    missing = sorted(_required(backbone).keys() - weights.keys())
    if unexpected:
        raise UserError(
            f"{path} has keys that {arch} does not have: {_shorten(unexpected)}: pass another --arch, "
            "or a file with only the backbone"
        )
    if missing:
        raise UserError(f"{path} lacks keys of {arch}: {_shorten(missing)}: pass another --arch")
    mismatched = sorted(k for k, value in weights.items() if value.shape != state[k].shape)
    if mismatched:
        raise UserError(
            f"{path} has other shapes than {arch}: {_shorten(mismatched)}: pass another --arch or "
            "--stem"
        )
    backbone.load_state_dict(weights, strict=False)


def _shorten(keys: Iterable[str]) -> str:
    """The first keys, and how many more there are."""
    names = list(keys)
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest


def load_backbone(
    path: Path | str, *, arch: str | None = None, stem: Stem | None = None
) -> nn.Module:
    """Loads a pretrained backbone.

    Args:
        path: a checkpoint or the folder of a run (its newest checkpoint); a state dict of torchvision
            or timm, as .pth or .safetensors; the official SimSiam checkpoint. No code in it is run.
        arch, stem: network of a state dict that does not record it; None: detected, for ResNets.

    Returns:
        Normalized images (B, 3, S, S) to features (B, D); on the CPU, in eval mode.

    Raises:
        UserError: the file cannot be read, or its keys are not those of the network.
    """
    return load_pretrained(Path(path), arch=arch, stem=stem).backbone
