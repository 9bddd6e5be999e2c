"""`fastsimsiam views`: draws the views of a recipe, of one image or of some images of a data set."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont

from fastsimsiam.augment.photometric import Photometric
from fastsimsiam.config.run import GRAY16_MAX, Config
from fastsimsiam.config.views import NormalizeConfig
from fastsimsiam.errors import BadImageError, UserError
from fastsimsiam.loaders.base import assemble, crop_shapes, view_groups
from fastsimsiam.loaders.decode import read_rgb
from fastsimsiam.loaders.host_crop import crop_views
from fastsimsiam.plan.batches import TrainPlan
from fastsimsiam.plan.order import epoch_order
from fastsimsiam.recipes import catalogue
from fastsimsiam.runs.curves import PALETTE
from fastsimsiam.storage.base import Storage
from fastsimsiam.storage.image_files import ImageFiles
from fastsimsiam.storage.image_header import read_header
from fastsimsiam.storage.open import is_data_set_file, open_split

_TILE = 192
_GAP = 8
_TITLE = 24


def write_views(
    path: Path,
    out: Path,
    *,
    recipe: str,
    image_size: int | None,
    num_images: int,
    seed: int,
    gray16_max: int = GRAY16_MAX,
) -> None:
    """Writes a grid of originals and their views.

    Args:
        path: an image file, or the folder of a data set.
        out: PNG file to write.
        recipe: name of the recipe that defines the views.
        image_size: side of the views in pixels; None: that of the recipe.
        num_images: number of rows if `path` is a folder.
        seed: seed of the sampled images and of the views.
        gray16_max: see `Config.gray16_max`.

    Raises:
        UserError: there is no image at `path`, or `out` cannot be written.
    """
    if num_images < 1:
        raise UserError(f"--images is {num_images}: give 1 or more")
    config = replace(catalogue.recipe(recipe), gray16_max=gray16_max)
    if image_size is not None:
        config = replace(config, image_size=image_size)
    is_image = path.is_file() and not is_data_set_file(path)
    storage = _single_image(path) if is_image else open_split(path, "train")
    order = epoch_order(len(storage), seed, 0).tolist()
    index = _intact(storage, order, num_images, gray16_max)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        draw_views_grid(storage, index, config, seed=seed, out=out)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"cannot write --out {out} ({error}): give a .png in a writable folder"
        ) from error


def _intact(storage: Storage, order: Sequence[int], number: int, gray16_max: int) -> list[int]:
    """The first `number` images of `order` that can be decoded; says how many cannot.

    Raises:
        UserError: none can be decoded.
    """
    intact: list[int] = []
    broken: list[str] = []
    for index in order:
        if len(intact) == number:
            break
        try:
            read_rgb(storage, index, gray16_max=gray16_max)
        except BadImageError as error:
            broken.append(str(error))
        else:
            intact.append(index)
    if not intact:
        raise UserError(f"{storage.root} has no intact image ({broken[0]}): pass another PATH")
    if broken:
        print(f"note: {len(broken)} broken images passed over ({broken[0]})", file=sys.stderr)
    return intact


def _single_image(path: Path) -> ImageFiles:
    """The data set of one image file."""
    try:
        height, width, orientation = read_header(path)
    except BadImageError as error:
        raise UserError(f"{path} is {error}: pass another") from error
    return ImageFiles(
        root=path.parent,
        paths=[path.name],
        classes=["image"],
        label=np.zeros(1, np.int64),
        sizes=np.array([[height, width]], np.int32),
        orientation=np.array([orientation], np.uint8),
        bytes_total=path.stat().st_size,
    )


def draw_views_grid(
    storage: Storage, index: Sequence[int], config: Config, *, seed: int, out: Path
) -> None:
    """Writes a grid with a row per image: the original with the boxes of its views, then the views.

    Args:
        storage: images of the data set.
        index: indices of the samples to draw.
        config: configuration that defines the views.
        seed: seed of the views.
        out: PNG file to write.
    """
    samples = np.array(index, dtype=np.int64)
    plan = TrainPlan(
        label=storage.label,
        sizes=storage.sizes,
        seed=seed,
        specs=config.views,
        image_size=config.image_size,
        batch_size=len(samples),
    )
    drawn, groups, sizes = plan.rows(0, samples), view_groups(plan), plan.view_sizes
    crops = tuple(
        torch.empty(shape, dtype=torch.uint8) for shape in crop_shapes(len(samples), sizes)
    )
    originals = []
    for row, sample in enumerate(samples):
        pixels = read_rgb(storage, int(sample), gray16_max=config.gray16_max)
        boxes = drawn.views.box[row]
        for tensor, group in zip(crops, groups, strict=True):
            crop_views(pixels, boxes[group.views], tensor[row].numpy(), group.interpolations)
        originals.append(_with_boxes(pixels, boxes))
    batch = assemble(drawn, crops)
    photometric = Photometric(config.views, sizes, normalize=config.normalize)
    views = photometric(batch.crops, batch.photometric)
    columns = [originals] + [
        [_to_image(image, config.normalize) for image in view] for view in views
    ]
    titles = ["original", *(f"view {number}" for number in range(1, len(views) + 1))]
    _grid(columns, titles).save(out)


def _to_image(view: torch.Tensor, constants: NormalizeConfig) -> Image.Image:
    """Converts a normalized view (3, S, S) to an image of a tile's size."""
    std, mean = torch.tensor(constants.std), torch.tensor(constants.mean)
    pixels = (view.permute(1, 2, 0) * std + mean).clamp(0, 1) * 255
    return Image.fromarray(pixels.round().to(torch.uint8).numpy()).resize((_TILE, _TILE))


def _with_boxes(pixels: npt.NDArray[np.uint8], boxes: npt.NDArray[np.int32]) -> Image.Image:
    """Draws the upright image on a square tile, with the box of each view."""
    height, width = pixels.shape[:2]
    scale = _TILE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    tile = Image.new("RGB", (_TILE, _TILE), "white")
    corner = ((_TILE - size[0]) // 2, (_TILE - size[1]) // 2)
    tile.paste(Image.fromarray(pixels).resize(size), corner)
    draw = ImageDraw.Draw(tile)
    for number, (top, left, box_height, box_width) in enumerate(boxes.tolist()):
        x, y = corner[0] + left * scale, corner[1] + top * scale
        right, bottom = x + box_width * scale - 1, y + box_height * scale - 1
        draw.rectangle((x, y, right, bottom), outline=PALETTE[number % len(PALETTE)], width=2)
    return tile


def _grid(columns: Sequence[Sequence[Image.Image]], titles: Sequence[str]) -> Image.Image:
    """Arranges columns of tiles under their titles."""
    pitch = _TILE + _GAP
    height = _TITLE + pitch * len(columns[0])
    grid = Image.new("RGB", (pitch * len(columns) + _GAP, height + _GAP), "white")
    draw = ImageDraw.Draw(grid)
    font = ImageFont.load_default(16)
    for column, (tiles, title) in enumerate(zip(columns, titles, strict=True)):
        x = _GAP + column * pitch
        color = "black" if column == 0 else PALETTE[(column - 1) % len(PALETTE)]
        draw.rectangle((x, 4, x + _TILE - 1, 6), fill=color if column else "white")
        draw.text((x, 8), title, fill="black", font=font)
        for row, tile in enumerate(tiles):
            grid.paste(tile, (x, _TITLE + _GAP + row * pitch))
    return grid
