"""The picture of `fastsimsiam uncertainty`."""

from pathlib import Path
from typing import Any

from fastsimsiam.evaluate.uncertainty import UncertaintyResult
from fastsimsiam.runs.curves import PALETTE
from fastsimsiam.system.files import written_whole

COLORS = {"kappa": PALETTE[5], "norm": PALETTE[4], "margin": PALETTE[2]}
"""Measure -> its color."""


def draw_uncertainty(result: UncertaintyResult, png: Path) -> None:
    """Draws accuracy by quantile, risk-coverage curves, and what tells damaged images apart.

    Args:
        result: what to draw.
        png: file to write.

    Raises:
        UserError: the file cannot be written.
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3)
    _draw_quantiles(panels[0], result)
    _draw_risk(panels[1], result)
    _draw_aurocs(panels[2], result)
    for panel in panels:
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    with written_whole(png, "--png") as file:
        figure.savefig(file, dpi=110, format="png")


def _draw_quantiles(panel: Any, result: UncertaintyResult) -> None:
    for name, measure in result.measures.items():
        parts = range(1, len(measure.accuracy) + 1)
        shares = [100 * share for share in measure.accuracy]
        panel.plot(parts, shares, "o-", color=COLORS[name], label=name, markersize=4)
    panel.axhline(result.top1, color="#888888", linewidth=0.8, linestyle="--")
    panel.set_xlabel("part of the images, from least to most certain")
    panel.set_title(f"kNN accuracy (k {result.k}), %; dashed: all images", fontsize=10)
    panel.set_ylim(0, 103)
    panel.legend(fontsize=8)


def _draw_risk(panel: Any, result: UncertaintyResult) -> None:
    for name, measure in result.measures.items():
        label = f"{name}, AURC {measure.aurc:.3f}"
        panel.plot(measure.coverage, measure.risk, color=COLORS[name], label=label)
    wrong = 1 - result.top1 / 100
    panel.axhline(wrong, color="#888888", linewidth=0.8, linestyle="--")
    panel.set_xlim(0, 1)
    panel.set_ylim(bottom=0)
    panel.set_xlabel("coverage: share of the images that are answered")
    panel.set_title(f"error rate among them; a perfect order: {result.least_aurc:.3f}", fontsize=10)
    panel.legend(fontsize=8)


def _draw_aurocs(panel: Any, result: UncertaintyResult) -> None:
    width = 0.8 / len(result.measures)
    for number, (name, measure) in enumerate(result.measures.items()):
        bars = {"errors": measure.auroc_errors, **measure.auroc_corrupted}
        if result.ood is not None:
            bars["other data"] = measure.auroc_ood
        places = [place + (number + 0.5) * width - 0.4 for place in range(len(bars))]
        heights = [value if value is not None else float("nan") for value in bars.values()]
        panel.bar(places, heights, width=0.92 * width, color=COLORS[name], label=name)
        panel.set_xticks(range(len(bars)), list(bars))
    panel.axhline(0.5, color="#888888", linewidth=0.8, linestyle="--")
    panel.set_ylim(0, 1)
    panel.set_title("AUROC of telling these apart; dashed: chance", fontsize=10)
