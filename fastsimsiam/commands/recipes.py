"""`fastsimsiam recipes`."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from fastsimsiam.commands.parse import parse
from fastsimsiam.recipes import catalogue
from fastsimsiam.recipes.listing import listing


@dataclass(frozen=True, kw_only=True)
class _Recipes:
    """Arguments of `recipes`."""

    which: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RECIPE")] = ()
    """Recipes, methods, or beginnings of names, to describe: command, source, expected score, time."""
    names: bool = False
    """Print only the names."""


def run(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    about = "Lists the recipes by method, or describes some."
    arguments = parse(_Recipes, argv, "fastsimsiam recipes", about=about)
    chosen = {
        name: catalogue.find(name)
        for word in arguments.which
        for name in catalogue.meant(word) or [word]
    }
    if arguments.names:
        print("\n".join(chosen or catalogue.RECIPES))
    elif chosen:
        blocks = [
            "\n".join([name, *(f"    {line}" for line in recipe.description.splitlines())])
            for name, recipe in chosen.items()
        ]
        print("\n\n".join(blocks))
    else:
        print(listing(catalogue.RECIPES))
        print("\nfastsimsiam recipes RECIPE describes one: source, score, time.")
    return 0
