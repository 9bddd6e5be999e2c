"""The same short run through every loader: do the loss curves lie on each other?

    python -m benchmarks.loss_curves --data IMAGENETTE --json FILE.json --png FILE.png

Imagenette's recipe cut down to ResNet-18, 64 pixels and a few epochs, from the same seed. Training
magnifies the least difference, so two more runs through `folder` give the measure: one whose learning
rate differs by a millionth, one from another seed, which sees other views.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from benchmarks.harness import fastsimsiam, write

LEARNING_RATE = 0.3
# Loader, seed, learning rate.
RUNS = {
    "folder": ("folder", 0, LEARNING_RATE),
    "resident": ("resident", 0, LEARNING_RATE),
    "ffcv": ("ffcv", 0, LEARNING_RATE),
    "dali": ("dali", 0, LEARNING_RATE),
    "reference": ("reference", 0, LEARNING_RATE),
    "folder, learning rate + 1e-6": ("folder", 0, LEARNING_RATE * (1 + 1e-6)),
    "folder, another seed": ("folder", 1, LEARNING_RATE),
}
SHORT_RUN = (
    "--arch resnet18 --image-size 64 --batch-size 64 --log-every 20 --knn.k 20 "
    "--views.0.blur-sigma 0.1 0.6 --views.1.blur-sigma 0.1 0.6"
).split()
# Okabe and Ito's palette, told apart with any color vision.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#000000", "#999999")


def curve(name: str, data: Path, packed: Path, epochs: int, out: Path) -> dict[str, Any]:
    """One run: loss and collapse figure over the steps, kNN before and after."""
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
    """Loss and collapse figure of a run over its steps, and kNN before and after."""
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
    """Mean absolute difference of each loss curve to that of `folder`."""
    loss = np.array(curves["folder"]["loss"])
    return {
        name: float(np.abs(np.array(found["loss"]) - loss).mean())
        for name, found in curves.items()
        if name != "folder"
    }


def draw(curves: dict[str, Any], out: Path) -> None:
    """Loss by step above, difference to `folder` below."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 6), sharex=True, height_ratios=(2, 1))
    folder = np.array(curves["folder"]["loss"])
    for color, (name, found) in zip(COLORS, curves.items(), strict=True):
        style = ":" if "," in name else "-"
        knn = found["knn_top1_k20"]
        label = f"{name} (kNN {knn['first']:.1f} → {knn['last']:.1f} %)"
        above.plot(found["step"], found["loss"], style, color=color, label=label, linewidth=1.2)
        if name != "folder":
            below.plot(found["step"], np.array(found["loss"]) - folder, style, color=color)
    above.set_ylabel("loss")
    above.legend(frameon=False, fontsize=8)
    below.set_ylabel("loss minus folder's")
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
    parser.add_argument("--epochs", type=int, default=3, help="of each run (3)")
    parser.add_argument("--json", type=Path, required=True, help="file that receives the result")
    parser.add_argument("--png", type=Path, required=True, help="file that receives the plot")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / "packed"
        packed.mkdir()
        for split in ("train", "val"):
            fastsimsiam("pack", str(args.data / split), str(packed / f"{split}.beton"))
        curves = {
            name: curve(name, args.data, packed, args.epochs, Path(folder) / name.replace(" ", "-"))
            for name in RUNS
        }
    write(
        args.json,
        {
            "regime": "loss-curves",
            "flags": SHORT_RUN,
            "epochs": args.epochs,
            "mean_difference_to_folder": distances(curves),
            "curves": curves,
        },
    )
    draw(curves, args.png)


if __name__ == "__main__":
    main()
