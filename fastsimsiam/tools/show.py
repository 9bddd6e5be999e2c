"""`fastsimsiam views`: a recipe's views of one image or of a few images of a data set."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from fastsimsiam.errors import UserError
from fastsimsiam.plan.order import epoch_order
from fastsimsiam.recipes import catalogue
from fastsimsiam.storage.class_folder import ClassFolder, read_header
from fastsimsiam.storage.open import open_split
from fastsimsiam.tools.views import draw_views_grid


def show_views(
    path: Path, out: Path, *, recipe: str, image_size: int | None, num_images: int, seed: int
) -> None:
    """Writes a grid of originals and views.

    Args:
        path: an image file, or a data set's folder.
        out: PNG file to write.
        recipe: whose views.
        image_size: side of the views in pixels; None: the recipe's.
        num_images: rows, where `path` is a folder.
        seed: of the choice of images and of the views.

    Raises:
        UserError: there is no image at `path`, or `out` cannot be written.
    """
    if num_images < 1:
        raise UserError(f"--images is {num_images}: give 1 or more")
    config = catalogue.get(recipe)
    if image_size is not None:
        config = replace(config, image_size=image_size)
    storage = _single_image(path) if path.is_file() else open_split(path, "train")
    storage.require_readable()
    index = epoch_order(len(storage), seed, 0)[:num_images].tolist()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        draw_views_grid(storage, index, config, seed=seed, out=out)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"cannot write --out {out} ({error}): give a .png in a writable folder"
        ) from error


def _single_image(path: Path) -> ClassFolder:
    """A data set of one file."""
    height, width, orientation = read_header(path)
    return ClassFolder(
        root=path.parent,
        paths=[path.name],
        classes=["image"],
        label=np.zeros(1, np.int64),
        sizes=np.array([[height, width]], np.int32),
        orientation=np.array([orientation], np.uint8),
    )
