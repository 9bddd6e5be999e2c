"""The same short run through every loader: do the loss curves coincide?

    python -m benchmarks.loss_curves --data IMAGENETTE --json FILE.json --png FILE.png

Imagenette's recipe cut down to ResNet-18, 64 pixels and a few epochs, from the same seed. Training
amplifies the smallest difference. Two more runs through `cpu` give the scale: one with a learning rate
that differs by a millionth, one from another seed, hence with other views.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from benchmarks.harness import fastsimsiam, write_result

LEARNING_RATE = 0.3
# Name -> loader, seed, learning rate.
RUNS = {
    "cpu": ("cpu", 0, LEARNING_RATE),
    "resident": ("resident", 0, LEARNING_RATE),
    "ffcv": ("ffcv", 0, LEARNING_RATE),
    "dali": ("dali", 0, LEARNING_RATE),
    "reference": ("reference", 0, LEARNING_RATE),
    "cpu, learning rate + 1e-6": ("cpu", 0, LEARNING_RATE * (1 + 1e-6)),
    "cpu, another seed": ("cpu", 1, LEARNING_RATE),
}
SHORT_RUN = (
    "--arch resnet18 --image-size 64 --batch-size 64 --log-every 20 --knn.k 20 "
    "--views.0.blur-sigma 0.1 0.6 --views.1.blur-sigma 0.1 0.6"
).split()
# Okabe and Ito's palette, safe for all types of color vision.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#000000", "#999999")


def run(name: str, data: Path, packed: Path, epochs: int, out: Path) -> dict[str, Any]:
    """Runs one training; returns `curve_of` its folder."""
    loader, seed, learning_rate = RUNS[name]
    fastsimsiam(
        "pretrain",
        "imagenette",
        "--data",
        str(packed if loader == "ffcv" else data),
        "--out",
        str(out),
        "--loader",
        loader,
        "--seed",
        str(seed),
        "--epochs",
        str(epochs),
        "--optimizer.lr",
        str(learning_rate),
        "--knn.every-epochs",
        str(epochs),
        *SHORT_RUN,
    )
    return curve_of(out)


def curve_of(out: Path) -> dict[str, Any]:
    """Loss and collapse metric of a run by step, and kNN accuracy before and after."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    knn = [line["knn_top1_k20"] for line in lines if "knn_top1_k20" in line]
    return {
        "step": [line["step"] for line in steps],
        "loss": [line["loss"] for line in steps],
        "collapse": [line["collapse_std"] for line in steps],
        "knn_top1_k20": {"first": knn[0], "last": knn[-1]},
    }


def distances(curves: dict[str, Any]) -> dict[str, float]:
    """Mean absolute difference of each loss curve to that of `cpu`."""
    baseline = np.array(curves["cpu"]["loss"])
    return {
        name: float(np.abs(np.array(curve["loss"]) - baseline).mean())
        for name, curve in curves.items()
        if name != "cpu"
    }


def draw(curves: dict[str, Any], out: Path) -> None:
    """Draws the loss by step, and below it the difference to the loss of `cpu`."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 6), sharex=True, height_ratios=(2, 1))
    baseline = np.array(curves["cpu"]["loss"])
    for color, (name, curve) in zip(COLORS, curves.items(), strict=True):
        style = ":" if "," in name else "-"
        knn = curve["knn_top1_k20"]
        label = f"{name} (kNN {knn['first']:.1f} → {knn['last']:.1f} %)"
        above.plot(curve["step"], curve["loss"], style, color=color, label=label, linewidth=1.2)
        if name != "cpu":
            below.plot(curve["step"], np.array(curve["loss"]) - baseline, style, color=color)
    above.set_ylabel("loss")
    above.legend(frameon=False, fontsize=8)
    below.set_ylabel("loss minus loss of cpu")
    below.set_xlabel("step")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.2)
    figure.tight_layout()
    figure.savefig(out, dpi=120)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="Imagenette: train/ and val/")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of each run (3)")
    parser.add_argument("--json", type=Path, required=True, help="write the result to this file")
    parser.add_argument("--png", type=Path, required=True, help="write the plot to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / "packed"
        packed.mkdir()
        for split in ("train", "val"):
            fastsimsiam("pack", str(args.data / split), str(packed / f"{split}.beton"))
        curves = {
            name: run(name, args.data, packed, args.epochs, Path(folder) / name.replace(" ", "-"))
            for name in RUNS
        }
    write_result(
        args.json,
        {
            "regime": "loss-curves",
            "flags": SHORT_RUN,
            "epochs": args.epochs,
            "mean_difference_to_cpu": distances(curves),
            "curves": curves,
        },
    )
    draw(curves, args.png)


if __name__ == "__main__":
    main()
