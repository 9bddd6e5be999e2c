"""Pictures: the views of a recipe, and the curves of a run."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont

from fastsimsiam.augment.photometric import IMAGENET_MEAN, IMAGENET_STD, Photometric
from fastsimsiam.config.run import Config
from fastsimsiam.errors import UserError
from fastsimsiam.loaders.base import assemble, size_groups
from fastsimsiam.loaders.decode import read_rgb
from fastsimsiam.loaders.host_crop import crop_views
from fastsimsiam.plan.batches import BatchPlan
from fastsimsiam.plan.views import draw_views
from fastsimsiam.storage.base import Storage

_TILE = 192
_GAP = 8
_TITLE = 24
# Okabe and Ito's palette, told apart with any colour vision.
_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#000000")


def draw_views_grid(
    storage: Storage, index: Sequence[int], config: Config, *, seed: int, out: Path
) -> None:
    """A grid with a row per image: the original with the views' boxes, then every view.

    Args:
        storage: where the images lie.
        index: samples to show.
        config: whose views are drawn.
        seed: of the views.
        out: PNG file to write.
    """
    samples = np.array(index, dtype=np.int64)
    table = draw_views(
        config.views, seed=seed, epoch=0, index=samples, sizes=storage.sizes[samples]
    )
    sizes = tuple(spec.size or config.image_size for spec in config.views)
    crops = tuple(
        torch.empty((len(samples), len(views), side, side, 3), dtype=torch.uint8)
        for side, views in size_groups(sizes).items()
    )
    originals = []
    for row, sample in enumerate(samples):
        pixels = read_rgb(storage, int(sample))
        for group, views in zip(crops, size_groups(sizes).values(), strict=True):
            crop_views(pixels, table.box[row, views], group[row].numpy())
        originals.append(_with_boxes(pixels, table.box[row]))
    batch = assemble(
        BatchPlan(epoch=0, index=samples, label=storage.label[samples], views=table), crops
    )
    views = Photometric(config.views, sizes)(batch.crops, batch.photometric)
    columns = [originals] + [[_to_image(picture) for picture in view] for view in views]
    titles = ["original", *(f"view {number}" for number in range(1, len(views) + 1))]
    _grid(columns, titles).save(out)


def _to_image(view: torch.Tensor) -> Image.Image:
    """A normalised view (3, S, S) as a picture."""
    std, mean = torch.tensor(IMAGENET_STD), torch.tensor(IMAGENET_MEAN)
    pixels = (view.permute(1, 2, 0) * std + mean).clamp(0, 1) * 255
    return Image.fromarray(pixels.round().to(torch.uint8).numpy()).resize((_TILE, _TILE))


def _with_boxes(pixels: npt.NDArray[np.uint8], boxes: npt.NDArray[np.int32]) -> Image.Image:
    """The upright image on a square tile, with the outline of each view's box."""
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
        draw.rectangle((x, y, right, bottom), outline=_COLOURS[number % len(_COLOURS)], width=2)
    return tile


def _grid(columns: Sequence[Sequence[Image.Image]], titles: Sequence[str]) -> Image.Image:
    pitch = _TILE + _GAP
    height = _TITLE + pitch * len(columns[0])
    grid = Image.new("RGB", (pitch * len(columns) + _GAP, height + _GAP), "white")
    draw = ImageDraw.Draw(grid)
    font = ImageFont.load_default(16)
    for column, (pictures, title) in enumerate(zip(columns, titles, strict=True)):
        x = _GAP + column * pitch
        colour = "black" if column == 0 else _COLOURS[(column - 1) % len(_COLOURS)]
        draw.rectangle((x, 4, x + _TILE - 1, 6), fill=colour if column else "white")
        draw.text((x, 8), title, fill="black", font=font)
        for row, picture in enumerate(pictures):
            grid.paste(picture, (x, _TITLE + _GAP + row * pitch))
    return grid


def draw_curves(history: Sequence[dict[str, Any]], out: Path) -> str:
    """Loss, collapse figure, kNN and throughput over the epochs, as a PNG.

    Args:
        history: the lines of metrics.jsonl.
        out: file to write.

    Returns:
        What was done, for the log: matplotlib is optional.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return "no curves.png: pip install 'fastsimsiam[demo]' brings matplotlib, which draws it"
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    trained = [line for line in history if "epoch" in line]
    if not trained:
        return "no curves.png: the run has no metrics yet"
    steps_per_epoch = trained[-1]["step"] / trained[-1]["epoch"]
    figure = Figure(figsize=(10, 6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2).flatten()
    epoch = [line["epoch"] for line in trained]
    for panel, name, title in (
        (panels[0], "loss", "loss (-1 is perfect agreement)"),
        (panels[1], "collapse_std", "std of z/|z| times sqrt(D) (1 healthy, 0 collapsed)"),
        (panels[3], "images_per_second", "images/s per device"),
    ):
        panel.plot(epoch, [line.get(name, float("nan")) for line in trained], color=_COLOURS[4])
        panel.set_title(title, fontsize=10)
    panels[1].set_ylim(0, 1.1)
    panels[3].set_ylim(bottom=0)
    scored = [line for line in history if any(name.startswith("knn_") for name in line)]
    names = dict.fromkeys(n for line in scored for n in line if n.startswith("knn_"))
    for number, name in enumerate(names):
        at = [line["step"] / steps_per_epoch for line in scored]
        label = name.removeprefix("knn_top1_k")
        panels[2].plot(
            at, [line.get(name, float("nan")) for line in scored], "o-", label=f"k = {label}",
            color=_COLOURS[number % len(_COLOURS)], markersize=4,
        )  # fmt: skip
    if scored:
        panels[2].legend(fontsize=8)
    panels[2].set_title("kNN top-1 on the validation split, % (epoch 0: untrained)", fontsize=10)
    for panel in panels:
        panel.set_xlabel("epoch")
        panel.grid(alpha=0.3)
    try:
        figure.savefig(out, dpi=100)
    except OSError as error:
        raise UserError(f"cannot write {out} ({error.strerror})") from error
    return f"curves: {out}"
