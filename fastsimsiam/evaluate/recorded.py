"""What a file of weights records beside them, so that its score is that of the run.

Whatever changes a score is among these values: exported files hold them as text, features and linear
layers as plain values.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from fastsimsiam.augment.photometric import IMAGENET_MEAN, IMAGENET_STD
from fastsimsiam.config.evaluation import Stem
from fastsimsiam.config.run import Config
from fastsimsiam.config.stored import from_dict, to_dict
from fastsimsiam.errors import UserError
from fastsimsiam.system.json_text import to_json
from fastsimsiam.version import __version__


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """Values of a file of weights; None where the file does not record them.

    Attributes:
        arch: torchvision's name of the network.
        stem: `imagenet` or `cifar`.
        image_size: side of the images to evaluate on, in pixels.
        crop_fraction: side of the centered square, over the image's shorter side.
        step: optimizer steps of the training.
        config: the training's configuration.
    """

    arch: str | None = None
    stem: Stem | None = None
    image_size: int | None = None
    crop_fraction: float | None = None
    step: int | None = None
    config: Config | None = None


def record(
    *,
    arch: str,
    stem: str,
    image_size: int,
    crop_fraction: float,
    step: int | None,
    config: Config | None,
) -> dict[str, Any]:
    """The values as plain ones, with the normalization of the images; see `Recorded`."""
    values = {
        "arch": arch,
        "stem": stem,
        "image_size": image_size,
        "crop_fraction": crop_fraction,
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
        "step": step,
        "config": None if config is None else to_dict(config),
        "fastsimsiam": __version__,
    }
    return {key: value for key, value in values.items() if value is not None}


def as_text(values: Mapping[str, Any]) -> dict[str, str]:
    """The result of `record` as texts: the metadata of safetensors and ONNX has no other values."""
    return {
        key: value if isinstance(value, str) else to_json(value) for key, value in values.items()
    }


def from_text(metadata: Mapping[str, str], path: Path) -> Recorded:
    """The inverse of `as_text`, for any file's metadata.

    Raises:
        UserError: the images are normalized otherwise, or a value is damaged.
    """
    if not metadata.get("fastsimsiam"):
        arch = metadata.get("arch")
        return Recorded(arch=arch)
    for key, own in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
        given = _value(metadata, key, path, (list,))
        if given is not None and given != list(own):
            raise UserError(
                f"{path} is for images with the {key} {given}, this version normalizes by "
                f"{list(own)}: use the version that wrote it, {metadata['fastsimsiam']}"
            )
    stem = cast("Stem | None", metadata.get("stem"))
    if stem not in (*get_args(Stem), None):
        raise UserError(f"{path} has an unknown stem ({stem}): export it again")
    size, step = (_value(metadata, key, path, (int,)) for key in ("image_size", "step"))
    fraction = _value(metadata, "crop_fraction", path, (int, float))
    if (size is not None and size < 1) or (fraction is not None and not 0 < fraction <= 1):
        raise UserError(f"{path} has a damaged image_size or crop_fraction: export it again")
    return Recorded(
        arch=metadata.get("arch"),
        stem=stem,
        image_size=size,
        crop_fraction=fraction,
        step=step,
        config=_config(metadata),
    )


def _value(
    metadata: Mapping[str, str], key: str, path: Path, kinds: tuple[type, ...]
) -> Any | None:
    if key not in metadata:
        return None
    try:
        value = json.loads(metadata[key])
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} has a damaged {key}: export it again") from error
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise UserError(f"{path} has a damaged {key}: export it again")
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{path} has a damaged {key}: export it again")
    return value


def _config(metadata: Mapping[str, str]) -> Config | None:
    """The stored config; None where this version cannot read it, which the weights do not need."""
    try:
        return from_dict(json.loads(metadata["config"]))
    except (KeyError, ValueError, RecursionError):  # UserError is a ValueError
        return None
