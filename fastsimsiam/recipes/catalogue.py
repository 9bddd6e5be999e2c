"""All recipes by name."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from fastsimsiam.config.run import Config
from fastsimsiam.errors import UserError
from fastsimsiam.recipes import moco, simsiam
from fastsimsiam.recipes.base import Recipe

RECIPES: dict[str, Recipe] = {
    recipe.make().recipe: recipe for recipe in (*simsiam.RECIPES, *moco.RECIPES)
}
"""Every recipe by the name that the command line takes."""


def find(name: str) -> Recipe:
    """The recipe of a name.

    Raises:
        UserError: there is no such recipe.
    """
    if name not in RECIPES:
        raise UserError(f"there is no recipe {name!r}: choose one of {', '.join(RECIPES)}")
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
