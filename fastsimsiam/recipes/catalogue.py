"""All recipes by name."""

import difflib
from dataclasses import replace
from pathlib import Path
from typing import Any

from fastsimsiam.config.run import Config
from fastsimsiam.errors import UserError
from fastsimsiam.recipes import byol, moco, moco_v3, simclr, simsiam, supcon, swav, vi_simsiam
from fastsimsiam.recipes.base import Recipe
from fastsimsiam.recipes.listing import by_method

_FILES = (simsiam, byol, moco, moco_v3, simclr, supcon, swav, vi_simsiam)
RECIPES: dict[str, Recipe] = {
    recipe.make().recipe: recipe for file in _FILES for recipe in file.RECIPES
}
"""Every recipe by the name that the command line takes."""


def meant(word: str) -> list[str]:
    """Names of recipes: the one that a word names, those of a method, or those that begin with it."""
    if word in RECIPES:
        return [word]
    of_method = by_method(RECIPES).get(word, {})
    return list(of_method) or [name for name in RECIPES if name.startswith(f"{word}-")]


def find(name: str) -> Recipe:
    """The recipe of a name.

    Raises:
        UserError: there is no such recipe.
    """
    if name not in RECIPES:
        if several := meant(name):
            raise UserError(f"there is no recipe {name!r}: give one of {', '.join(several)}")
        near = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.5)
        near = near or [known for known in RECIPES if len(name) > 2 and name in known][:3]
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise UserError(f"there is no recipe {name!r}: {hint}fastsimsiam recipes lists all")
    return RECIPES[name]


def recipe(name: str, **changes: Any) -> Config:
    """A recipe's config with some fields changed.

    Args:
        name: see `fastsimsiam recipes`.
        changes: fields of `Config`: data, out, epochs, batch_size, ...

    Raises:
        UserError: there is no such recipe, or a value is out of range.
    """
    for key in ("data", "out"):
        if key in changes:
            changes[key] = Path(changes[key])
    return replace(find(name).make(), **changes)
