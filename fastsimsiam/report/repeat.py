"""A run's config as command-line keys, and the command that repeats the run."""

import shlex
from collections.abc import Mapping
from typing import Any

from fastsimsiam.config.run import Config
from fastsimsiam.config.stored import to_dict
from fastsimsiam.errors import UserError
from fastsimsiam.recipes import catalogue


def flatten(config: Config) -> dict[str, list[str]]:
    """Returns every key as the command line spells it (`views.0.blur-sigma`), with its arguments."""
    options: dict[str, list[str]] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, item in value.items():
                walk(f"{prefix}.{key.replace('_', '-')}", item)
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for number, item in enumerate(value):
                walk(f"{prefix}.{number}", item)
        else:
            options[prefix.lstrip(".")] = _arguments(value)

    walk("", to_dict(config))
    return options


def _arguments(value: Any) -> list[str]:
    if isinstance(value, list):
        return [argument for item in value for argument in _arguments(item)]
    if isinstance(value, bool):
        return ["on" if value else "off"]
    return [str(value)]


def changed_keys(config: Config) -> dict[str, list[str]]:
    """Returns the options of `flatten` that differ from the recipe; all if the recipe is unknown."""
    try:
        published = flatten(catalogue.recipe(config.recipe))
    except UserError:
        published = {}
    return {
        key: arguments
        for key, arguments in flatten(config).items()
        if published.get(key) != arguments
    }


def command(config: Config) -> tuple[str, str]:
    """Returns the command that repeats a run, and a remark for the reader.

    Returns:
        Lines for a shell, joined by backslashes (empty if no command can express the config), and the
        remark.
    """
    try:
        recipe = catalogue.recipe(config.recipe)
    except UserError:
        return ("", f"This version has no recipe {config.recipe}: repeat the run from Python.")
    if type(recipe.method) is not type(config.method):
        return "", (
            f"The run's method is {config.method.name} and the recipe's {recipe.method.name}, which no "
            "option changes: repeat the run from Python."
        )
    if len(recipe.views) != len(config.views):
        return "", (
            f"The run has {len(config.views)} views and the recipe {len(recipe.views)}, and no option "
            "changes that number: repeat the run from Python."
        )
    lines = [f"fastsimsiam pretrain {shlex.quote(config.recipe)}"]
    lines += [f"--{key} {shlex.join(arguments)}" for key, arguments in changed_keys(config).items()]
    return " \\\n    ".join(lines), "Pass another --out: pretrain does not overwrite a run."
