"""`fastsimsiam views PATH`."""

from dataclasses import dataclass
from pathlib import Path

import tyro

from fastsimsiam.commands.parse import parse
from fastsimsiam.config.run import GRAY16_MAX
from fastsimsiam.system.text import printable


@dataclass(frozen=True, kw_only=True)
class _Views:
    """Arguments of `views`."""

    path: tyro.conf.Positional[Path]
    """An image, or a data set of any form."""
    out: Path
    """PNG file to write."""
    recipe: str = "imagenet-100ep"
    """Recipe that defines the views."""
    image_size: int | None = None
    """Side of the views in pixels; None: that of the recipe."""
    images: int = 6
    """Rows of the grid: images sampled from a folder."""
    seed: int = 0
    """Seed of the sampled images and of the views."""
    gray16_max: int = GRAY16_MAX
    """Largest gray level of 16-bit grayscale images, which is shown as white: 4095 for 12-bit data."""


def run(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    about = "Draws a grid: each image with the boxes of its views, then the views."
    arguments = parse(_Views, argv, "fastsimsiam views", about=about)
    from fastsimsiam.system.files import require_writable
    from fastsimsiam.tools.views import write_views

    require_writable(arguments.out, "--out", make_folder=True)

    write_views(
        arguments.path,
        arguments.out,
        recipe=arguments.recipe,
        image_size=arguments.image_size,
        num_images=arguments.images,
        seed=arguments.seed,
        gray16_max=arguments.gray16_max,
    )
    print(printable(arguments.out))
    return 0
