"""`fastsimsiam recipes`."""

from dataclasses import dataclass

from fastsimsiam.commands.parse import parse
from fastsimsiam.recipes import catalogue


@dataclass(frozen=True, kw_only=True)
class _Recipes:
    """Arguments of `recipes`."""

    names: bool = False
    """Print only the names."""


def run(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    arguments = parse(_Recipes, argv, "fastsimsiam recipes", about="Lists the recipes.")
    for name, recipe in catalogue.RECIPES.items():
        print(name)
        if not arguments.names:
            print("\n".join(f"    {line}" for line in recipe.description.splitlines()))
            print()
    return 0
