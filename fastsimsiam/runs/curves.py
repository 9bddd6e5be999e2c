"""The curves of a run as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastsimsiam.errors import UserError
from fastsimsiam.system.files import written_whole

PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#000000")
"""Okabe and Ito's colors, which people with any color vision can tell apart."""


def draw_curves(history: Sequence[dict[str, Any]], out: Path) -> str:
    """Draws loss, collapse metric, kNN and throughput over the epochs, as a PNG.

    Args:
        history: the lines of metrics.jsonl.
        out: file to write.

    Returns:
        A line for the log, also where the picture cannot be drawn; matplotlib is optional.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return "no curves.png: pip install 'fastsimsiam[demo]' brings matplotlib, which draws it"
    # Of an installation that does not fit the packages beside it.
    except (ImportError, AttributeError, OSError) as error:
        return f"no curves.png: matplotlib does not load ({error})"

    trained = [line for line in history if "epoch" in line]
    if not trained:
        return "no curves.png: the run has no metrics yet"
    steps_per_epoch = trained[-1]["step"] / trained[-1]["epoch"]
    figure = Figure(figsize=(10, 6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2).flatten()
    epoch = [line["epoch"] for line in trained]
    for panel, name, title in (
        (panels[0], "loss", "loss"),
        (panels[1], "collapse_std", "std of z/|z| times sqrt(D) (1 healthy, 0 collapsed)"),
        (panels[3], "images_per_second", "images/s per device"),
    ):
        panel.plot(epoch, [line.get(name, float("nan")) for line in trained], color=PALETTE[4])
        panel.set_title(title, fontsize=10)
    panels[1].set_ylim(0, 1.1)
    panels[3].set_ylim(bottom=0)
    scored = [line for line in history if any(name.startswith("knn_") for name in line)]
    names = dict.fromkeys(n for line in scored for n in line if n.startswith("knn_"))
    for number, name in enumerate(names):
        at = [line["step"] / steps_per_epoch for line in scored]
        label = name.removeprefix("knn_top1_k")
        panels[2].plot(
            at,
            [line.get(name, float("nan")) for line in scored],
            "o-",
            label=f"k = {label}",
            color=PALETTE[number % len(PALETTE)],
            markersize=4,
        )
    if scored:
        panels[2].legend(fontsize=8)
    panels[2].set_title("kNN top-1 on the validation split, % (epoch 0: untrained)", fontsize=10)
    for panel in panels:
        panel.set_xlabel("epoch")
        panel.grid(alpha=0.3)
    try:
        with written_whole(out, "the curves") as file:
            figure.savefig(file, dpi=100, format="png")
    except UserError as error:
        return f"no curves.png: {error}"
    except (OSError, ValueError, RuntimeError) as error:
        return f"no curves.png: it cannot be written ({getattr(error, 'strerror', None) or error})"
    return f"curves: {out}"
