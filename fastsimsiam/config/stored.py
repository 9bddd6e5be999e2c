"""Configurations as plain values, for files and checkpoints, and how two of them differ."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastsimsiam.config.location import spelled
from fastsimsiam.config.methods import MethodConfig, SimSiamConfig, by_name
from fastsimsiam.config.renamed import COMPILE, LOADERS, VIEW_FIELDS
from fastsimsiam.config.run import Config
from fastsimsiam.errors import DamagedError, UserError

_METHOD_NAME = "name"
"""Key of a stored method that holds `MethodConfig.name`."""


def to_dict(config: Config) -> dict[str, Any]:
    """The config as plain JSON values, for files and checkpoints."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            fields = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
            return (
                {_METHOD_NAME: value.name, **fields} if isinstance(value, MethodConfig) else fields
            )
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return spelled(value) if isinstance(value, Path) else value

    result = plain(config)
    assert isinstance(result, dict)
    return result


def from_dict(values: Mapping[str, Any]) -> Config:
    """The inverse of `to_dict`; also reads what earlier versions stored.

    Raises:
        UserError: a key or the method is unknown, as in a checkpoint of a later version.
    """
    try:
        config = _build(Config, _current(values))
    except UserError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DamagedError(
            f"the stored config is damaged ({type(error).__name__}: {error})"
        ) from error
    assert isinstance(config, Config)
    return config


def _current(values: Mapping[str, Any]) -> dict[str, Any]:
    """Stored values with the names of today, see `config.renamed`."""
    current = dict(values)
    folder = current.pop("folder", None)  # options of the loader that is called `cpu` today
    if folder is not None:
        current["cpu"] = {"crops": folder["crops"]}
        if current.get("loader") == "folder" and folder["decoder"] == "nvjpeg":
            current["loader"] = "nvjpeg"
    for key, renamed in (("loader", LOADERS), ("compile", COMPILE)):
        if current.get(key) in renamed:
            current[key] = renamed[current[key]]
    if "views" in current:
        current["views"] = [
            {VIEW_FIELDS.get(key, key): value for key, value in view.items()}
            for view in current["views"]
        ]
    # Before there were several methods, none was named.
    current["method"] = {_METHOD_NAME: SimSiamConfig.name, **current.get("method", {})}
    return current


def _build(annotation: Any, value: Any) -> Any:
    """Rebuilds tuples, paths and dataclasses from the lists, strings and dicts of JSON."""
    if annotation is MethodConfig:
        name = value[_METHOD_NAME]
        annotation = by_name(name)
        if annotation is None:
            raise UserError(
                f"the stored config has an unknown method: {name}; import the module that defines it"
            )
        value = {key: item for key, item in value.items() if key != _METHOD_NAME}
    if dataclasses.is_dataclass(annotation):
        assert isinstance(annotation, type)
        hints = typing.get_type_hints(annotation)
        unknown = sorted(set(value) - {field.name for field in dataclasses.fields(annotation)})
        if unknown:
            raise UserError(f"the stored config has unknown keys: {', '.join(unknown)}")
        return annotation(**{key: _build(hints[key], item) for key, item in value.items()})
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is tuple:
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
        return tuple(_build(kind, item) for kind, item in zip(kinds, value, strict=True))
    if origin is typing.Literal and value not in arguments:
        known = ", ".join(map(str, arguments))
        raise UserError(f"the stored config has {value!r} where this version knows {known}")
    if annotation is Path:
        return Path(value)
    _require_type(annotation, value)
    return value


def _require_type(annotation: Any, value: Any) -> None:
    """Refuses a value of another type than its field.

    Raises:
        TypeError: names both types; annotations that are no plain types are not looked at.
    """
    allowed = (
        typing.get_args(annotation)
        if typing.get_origin(annotation) in (typing.Union, types.UnionType)
        else (annotation,)
    )
    plain = tuple(kind for kind in allowed if kind in (bool, int, float, str, types.NoneType))
    if len(plain) < len(allowed):
        return
    if not (type(value) in plain or (type(value) is int and float in plain)):
        names = " or ".join(kind.__name__ for kind in plain)
        raise TypeError(f"{value!r} where {names} belongs"[:80])


def differing_keys(old: Config, new: Config) -> list[str]:
    """The keys in which two configs would train different networks, as `key (old -> new)`."""
    differing: list[str] = []

    def compare(prefix: str, a: Any, b: Any) -> None:
        if isinstance(a, MethodConfig) and isinstance(b, MethodConfig) and type(a) is not type(b):
            differing.append(f"{prefix.lstrip('.')} ({a.name} -> {b.name})")
        elif dataclasses.is_dataclass(a) and type(a) is type(b):
            for item in dataclasses.fields(a):
                if not item.metadata.get("neutral"):
                    compare(f"{prefix}.{item.name}", getattr(a, item.name), getattr(b, item.name))
        elif isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
            for number, (x, y) in enumerate(zip(a, b, strict=True)):
                compare(f"{prefix}.{number}", x, y)
        elif a != b:
            differing.append(f"{prefix.lstrip('.')} ({a} -> {b})")

    compare("", old, new)
    return differing
