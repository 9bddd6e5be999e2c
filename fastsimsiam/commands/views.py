"""`fastsimsiam views PATH`."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from fastsimsiam.commands.parse import parse


@dataclass(frozen=True, kw_only=True)
class _Views:
    """Arguments of `views`."""

    path: tyro.conf.Positional[Path]
    """An image, or a data set's folder."""
    out: Path
    """PNG file to write."""
    recipe: str = "imagenet-100ep"
    """Whose views to draw."""
    image_size: int | None = None
    """Side of the views in pixels; None: the recipe's."""
    images: int = 6
    """Rows of the grid (images drawn from a folder)."""
    seed: int = 0
    """Seed of the choice of images and of the views."""


def run(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    about = "Draws a grid: the original with the boxes of its views, then every view."
    arguments = parse(_Views, argv, "fastsimsiam views", about=about)
    from fastsimsiam.tools.views import write_views

    write_views(
        arguments.path,
        arguments.out,
        recipe=arguments.recipe,
        image_size=arguments.image_size,
        num_images=arguments.images,
        seed=arguments.seed,
    )
    print(arguments.out)
    return 0
