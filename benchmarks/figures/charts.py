"""Bar charts of result files, as PNGs with a digest of their source in the metadata."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.harness import read_result
from benchmarks.roofline import PARTS

# Okabe and Ito's palette, safe for all types of color vision.
_BLUE, _ORANGE, _GREEN, _GRAY, _LIGHT = "#0072B2", "#E69F00", "#009E73", "#999999", "#56B4E9"
_PEERS = ("ffcv-stock", "dali-stock", "reference-crops", "reference", "official", "lightly")
_KEY = "Drawn from"


def loader_chart(result: dict[str, Any], figure: Figure) -> None:
    """Images per second by loader, against the decode bound."""
    # The bound is that of loaders that decode, which `resident` does beforehand.
    rates = {
        name: rate["median"]
        for name, rate in result["summary"].items()
        if name not in ("decode", "resident")
    }
    bound = result["summary"]["decode"]["median"]
    names = sorted(rates, key=lambda name: rates[name])
    axes = figure.subplots()
    bars = axes.barh(
        names,
        [rates[name] for name in names],
        color=[_GRAY if name in _PEERS else _BLUE for name in names],
    )
    axes.bar_label(bars, labels=[f"{rates[name]:,.0f}" for name in names], padding=3, fontsize=9)
    axes.axvline(bound, color="black", linestyle="--", linewidth=1)
    axes.text(
        bound, -0.35, f" libjpeg-turbo alone: {bound:,.0f} ", ha="right", va="center", fontsize=9
    )
    axes.set_xlim(0, 1.08 * bound)
    axes.set_xlabel(
        "source images/s, two 224-pixel views each (blue: ours, gray: existing loaders)"
    )
    machine = result["machine"]
    axes.set_title(
        f"Loaders on {result['workers']} threads of an {machine['cpu']} ({machine['cores']} cores)",
        fontsize=11,
        loc="left",
    )


def step_chart(result: dict[str, Any], figure: Figure) -> None:
    """Time of the training step by part, against the roofline."""
    variants = result["variants"]
    names = list(variants)[::-1]
    axes = figure.subplots()
    left = [0.0] * len(names)
    for part, color in zip(PARTS, (_LIGHT, _BLUE, _ORANGE), strict=True):
        widths = [variants[name]["part_ms"][part] for name in names]
        axes.barh(names, widths, left=left, color=color, label=part, height=0.7)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for row, name in enumerate(names):
        limit = sum(variants[name]["part_limit_ms"].values())
        axes.plot(
            [limit, limit],
            [row - 0.42, row + 0.42],
            color="black",
            linewidth=2,
            label="roofline (BatchNorm, ReLU and add fused)" if row == 0 else None,
        )
        share = limit / variants[name]["step_ms"]
        axes.text(left[row], row, f" {share:.0%}", va="center", fontsize=9)
    axes.set_xlim(0, 1.1 * max(left))
    axes.set_xlabel("ms per step (percentage: share of the roofline reached)")
    axes.legend(fontsize=8, loc="lower right")
    machine = result["machine"]
    where = machine["gpu"] or f"{machine['cpu']} ({machine['cores']} cores)"
    axes.set_title(
        f"{result['arch']}, {result['image_size']} pixels, batch {result['batch_size']}, on an {where}",
        fontsize=11,
        loc="left",
    )


_DRAW: dict[str, Callable[[dict[str, Any], Figure], None]] = {
    "loader": loader_chart,
    "step": step_chart,
}


def _digest(source: Path) -> str:
    # The result as well: it depends on how names in the file are translated.
    result = json.dumps(read_result(source)).encode()
    return hashlib.sha256(source.read_bytes() + result + Path(__file__).read_bytes()).hexdigest()


def is_current(source: Path, picture: Path) -> bool:
    """Whether a picture was drawn from this version of the result file, by this code."""
    if not picture.exists():
        return False
    with Image.open(picture) as image:
        return bool(image.info.get(_KEY) == _digest(source))


def draw(source: Path, picture: Path) -> None:
    """Draws a result file as a PNG."""
    result = read_result(source)
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    _DRAW[result["regime"]](result, figure)
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=110, metadata={_KEY: _digest(source)})
