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

from fastsimsiam.config.evaluation import Stem
from fastsimsiam.config.run import Config
from fastsimsiam.config.stored import from_dict, to_dict
from fastsimsiam.config.views import Channels, NormalizeConfig
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
        normalize: normalization of the images.
        step: optimizer steps of the training.
        config: the training's configuration.
    """

    arch: str | None = None
    stem: Stem | None = None
    image_size: int | None = None
    crop_fraction: float | None = None
    normalize: NormalizeConfig | None = None
    step: int | None = None
    config: Config | None = None


def record(
    *,
    arch: str,
    stem: str,
    image_size: int,
    crop_fraction: float,
    normalize: NormalizeConfig,
    step: int | None,
    config: Config | None,
) -> dict[str, Any]:
    """The values as plain ones; see `Recorded`."""
    values = {
        "arch": arch,
        "stem": stem,
        "image_size": image_size,
        "crop_fraction": crop_fraction,
        "mean": list(normalize.mean),
        "std": list(normalize.std),
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

    Of the files of other packages `arch` is read, and `mean` and `std` where both are three numbers.

    Raises:
        UserError: a value is damaged.
    """
    if not metadata.get("fastsimsiam"):
        try:
            normalize = _normalize(metadata, path)
        except UserError:  # another package may mean something else by these names
            normalize = None
        return Recorded(arch=metadata.get("arch"), normalize=normalize)
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
        normalize=_normalize(metadata, path),
        step=step,
        config=_config(metadata),
    )


def _normalize(metadata: Mapping[str, str], path: Path) -> NormalizeConfig | None:
    if "mean" not in metadata and "std" not in metadata:
        return None
    mean, std = (_value(metadata, key, path, (list,)) for key in ("mean", "std"))
    try:
        return NormalizeConfig(mean=_three(mean), std=_three(std))
    except (TypeError, ValueError) as error:  # UserError is a ValueError
        raise UserError(f"{path} has a damaged mean or std: export it again") from error


def _three(numbers: Any) -> Channels:
    red, green, blue = numbers
    return red, green, blue


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
