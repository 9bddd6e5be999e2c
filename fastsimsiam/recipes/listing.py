"""The recipes as a list for readers: by method, a line each."""

from collections.abc import Mapping

from fastsimsiam.recipes.base import Recipe


def by_method(recipes: Mapping[str, Recipe]) -> dict[str, dict[str, Recipe]]:
    """Method -> its recipes by name, both in the order of `recipes`."""
    groups: dict[str, dict[str, Recipe]] = {}
    for name, recipe in recipes.items():
        groups.setdefault(recipe.make().method.name, {})[name] = recipe
    return groups


def listing(recipes: Mapping[str, Recipe]) -> str:
    """Recipes by name as a text: under the name of each method a line per recipe, with its data set."""
    rows = {name: _row(name, recipe) for name, recipe in recipes.items()}
    widths = [max(map(len, column)) for column in zip(*rows.values(), strict=True)]
    blocks = []
    for method, group in by_method(recipes).items():
        lines = [
            "  ".join(f"{cell:{width}}" for cell, width in zip(rows[name], widths, strict=True))
            for name in group
        ]
        blocks.append("\n".join([method, *(f"  {line.rstrip()}" for line in lines)]))
    return "\n\n".join(blocks)


def _row(name: str, recipe: Recipe) -> list[str]:
    config = recipe.make()
    return [
        name,
        recipe.data_set.name,
        f"{config.arch}, {config.image_size} px",
        f"batch {config.batch_size}",
        f"{config.epochs} epochs",
    ]
