"""The ablations of the SimSiam paper in minutes on a CPU: what keeps the network from collapsing?

    python -m benchmarks.ablations --data IMAGENETTE --json FILE.json --png FILE.png

Imagenette's recipe cut down to ResNet-18 and 32 pixels; each run differs from the first by one or two
switches. After the projector's last BatchNorm the outputs cannot all be equal, and the collapse metric
stays above 2 / sqrt(batch). With BatchNorm in hidden layers only, which the paper trains too, it can
reach 0.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.harness import fastsimsiam, write_result
from benchmarks.loss_curves import COLORS, curve_of

BATCH = 256
FLAGS = (
    f"--arch resnet18 --image-size 32 --batch-size {BATCH} --optimizer.lr 0.3 --log-every 2 --knn.k 20 "
    "--views.0.blur 0 --views.1.blur 0"
).split()
HIDDEN_BN = ["--method.projector-output-bn", "off"]
RUNS = {
    "full": [],
    "no stop-gradient": ["--method.stop-gradient", "off"],
    "no predictor": ["--method.predictor", "none"],
    "fixed predictor": ["--method.predictor", "fixed"],
    "asymmetric": ["--method.symmetric", "off"],
    "BN in hidden layers only": HIDDEN_BN,
    "the same, no stop-gradient": [*HIDDEN_BN, "--method.stop-gradient", "off"],
}


def run(switches: list[str], data: Path, epochs: int, out: Path) -> dict[str, Any]:
    """Runs one training; returns its switches and `curve_of` its folder."""
    fastsimsiam(
        "pretrain",
        "imagenette",
        "--data",
        str(data),
        "--out",
        str(out),
        "--epochs",
        str(epochs),
        "--knn.every-epochs",
        str(epochs),
        *FLAGS,
        *switches,
    )
    return {"switches": switches, **curve_of(out)}


def draw(curves: dict[str, Any], out: Path) -> None:
    """Draws loss and collapse metric by step, side by side."""
    figure = Figure(figsize=(10, 5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2)
    for color, (name, curve) in zip(COLORS, curves.items(), strict=False):
        knn = curve["knn_top1_k20"]
        label = f"{name} (kNN {knn['first']:.1f} → {knn['last']:.1f} %)"
        style = "--" if HIDDEN_BN[0] in curve["switches"] else "-"
        for panel, metric in zip(panels, ("loss", "collapse"), strict=True):
            panel.plot(curve["step"], curve[metric], style, color=color, label=label)
    panels[0].set_title("loss (-1: views agree perfectly)", fontsize=10)
    panels[1].set_title("std of z/|z| times sqrt(D) (1: healthy, 0: collapsed)", fontsize=10)
    panels[1].axhline(2 / BATCH**0.5, color="black", linewidth=0.8, linestyle=":")
    panels[1].text(0, 2 / BATCH**0.5, "lower bound after BN ", va="bottom", fontsize=8)
    panels[1].set_ylim(0, 1.1)
    for panel in panels:
        panel.set_xlabel("step")
        panel.grid(alpha=0.2)
        panel.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=9,
    )
    figure.savefig(out, dpi=110)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="Imagenette: train/ and val/")
    parser.add_argument("--epochs", type=int, default=6, help="epochs of each run (6)")
    parser.add_argument("--json", type=Path, required=True, help="write the result to this file")
    parser.add_argument("--png", type=Path, required=True, help="write the plot to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        curves = {
            name: run(switches, args.data, args.epochs, Path(folder) / name.replace(" ", "-"))
            for name, switches in RUNS.items()
        }
    result = {"regime": "ablations", "flags": FLAGS, "epochs": args.epochs, "curves": curves}
    write_result(args.json, result)
    draw(curves, args.png)


if __name__ == "__main__":
    main()
