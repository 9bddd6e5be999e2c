"""The config of a run as keys, and as the command that repeats the run."""

import shlex
from collections.abc import Mapping
from typing import Any

from fastsimsiam.config.run import Config
from fastsimsiam.config.stored import to_dict
from fastsimsiam.errors import UserError
from fastsimsiam.recipes import catalogue


def flat(config: Config) -> dict[str, list[str]]:
    """Every key as the command line spells it (`views.0.blur-sigma`), with the words of its value."""
    found: dict[str, list[str]] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, item in value.items():
                walk(f"{prefix}.{key.replace('_', '-')}", item)
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for number, item in enumerate(value):
                walk(f"{prefix}.{number}", item)
        else:
            found[prefix.lstrip(".")] = _words(value)

    walk("", to_dict(config))
    return found


def _words(value: Any) -> list[str]:
    if isinstance(value, list):
        return [word for item in value for word in _words(item)]
    if isinstance(value, bool):
        return ["on" if value else "off"]
    return [str(value)]


def changed_keys(config: Config) -> dict[str, list[str]]:
    """The keys whose values are not the recipe's, as in `flat`; all where there is no such recipe."""
    own = flat(config)
    try:
        published = flat(catalogue.recipe(config.recipe))
    except UserError:
        published = {}
    return {key: words for key, words in own.items() if published.get(key) != words}


def command(config: Config) -> tuple[str, str]:
    """The command that repeats a run, and a remark.

    Returns:
        Lines for a shell, joined by backslashes; empty where no command can say it. What the reader
        has to know of it.
    """
    try:
        recipe = catalogue.recipe(config.recipe)
    except UserError:
        return (
            "",
            f"The recipe {config.recipe} is none of this version: repeat the run from Python.",
        )
    if len(recipe.views) != len(config.views):
        return "", (
            f"The run has {len(config.views)} views and the recipe {len(recipe.views)}, which no key "
            f"changes: repeat the run from Python."
        )
    lines = [f"fastsimsiam pretrain {shlex.quote(config.recipe)}"]
    lines += [f"--{key} {shlex.join(words)}" for key, words in changed_keys(config).items()]
    return " \\\n    ".join(lines), "Give another --out: pretrain overwrites no run."
