"""Configurations as plain values, for files and checkpoints, and how two of them differ."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastsimsiam.config.run import Config
from fastsimsiam.errors import UserError


def to_dict(config: Config) -> dict[str, Any]:
    """The config as plain JSON values, for files and checkpoints."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    result = plain(dataclasses.asdict(config))
    assert isinstance(result, dict)
    return result


def from_dict(values: Mapping[str, Any]) -> Config:
    """The inverse of `to_dict`.

    Raises:
        UserError: a key is unknown, as in a checkpoint of another version.
    """
    config = _build(Config, values)
    assert isinstance(config, Config)
    return config


def _build(annotation: Any, value: Any) -> Any:
    """Rebuilds tuples, paths and dataclasses from the lists, strings and dicts of JSON."""
    if dataclasses.is_dataclass(annotation):
        assert isinstance(annotation, type)
        hints = typing.get_type_hints(annotation)
        unknown = sorted(set(value) - set(hints))
        if unknown:
            raise UserError(f"the stored config has unknown keys: {', '.join(unknown)}")
        return annotation(**{key: _build(hints[key], item) for key, item in value.items()})
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is tuple:
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(_build(kind, item) for kind, item in zip(kinds, value, strict=True))
    if origin in (typing.Union, types.UnionType) or value is None:
        return value
    return Path(value) if annotation is Path else value


def differing_keys(old: Config, new: Config) -> list[str]:
    """The keys in which two configs would train different networks, as `key (old -> new)`."""
    found: list[str] = []

    def compare(prefix: str, a: Any, b: Any) -> None:
        if dataclasses.is_dataclass(a) and type(a) is type(b):
            for item in dataclasses.fields(a):
                if not item.metadata.get("neutral"):
                    compare(f"{prefix}.{item.name}", getattr(a, item.name), getattr(b, item.name))
        elif isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
            for number, (x, y) in enumerate(zip(a, b, strict=True)):
                compare(f"{prefix}.{number}", x, y)
        elif a != b:
            found.append(f"{prefix.lstrip('.')} ({a} -> {b})")

    compare("", old, new)
    return found
