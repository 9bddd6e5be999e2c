r"""Every method on the same images and cores, within a quarter of an hour each: a table and a picture.

    python -m benchmarks.methods --data IMAGENETTE-160 --out RUNS --results FOLDER --png FILE.png \
        [--only NAME ...] [--epochs 20]

The recipes for Imagenette, cut down to 64 pixels and batches of 64. `--epochs` is that of a method
whose networks do as much work per image as SimSiam's; BYOL, whose targets cost two more passes, gets
fewer. A result file that is in FOLDER already is kept, and drawn with the others: remove it to repeat a
run.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.harness import fastsimsiam, write_result
from benchmarks.training import result_of
from fastsimsiam.recipes import catalogue

FLAGS = (
    "--arch resnet18 --image-size 64 --batch-size 64 --optimizer.schedule step --knn.k 20 200 "
    "--knn.every-epochs 2 --log-every 37 "
    "--views.0.blur-sigma 0.1 0.6 --views.1.blur-sigma 0.1 0.6"
).split()
"""A blur of the same size in an image of 64 instead of 224 pixels."""
_KNN = "knn_top1_k20"


@dataclass(frozen=True)
class Run:
    """A run of the table.

    Attributes:
        label: name in the table and the picture.
        recipe: the recipe that it is based on.
        lr: learning rate; five times the recipe's, as the runs are short.
        flags: what else it changes, beyond `FLAGS`.
        work: passes through networks per image, over SimSiam's (two forward, two backward).
    """

    label: str
    recipe: str
    lr: float
    flags: str = ""
    work: float = 1.0


_NO_MOMENTUM = "--method.predictor-lr-factor"
RUNS = {
    "simsiam": Run("SimSiam", "imagenette", 0.3),
    "simclr": Run("SimCLR", "simclr-imagenette", 0.3),
    "simclr-v2": Run("SimCLRv2", "simclr-imagenette", 0.3, "--method.projector-layers 3"),
    "supcon": Run("SupCon", "supcon-imagenette", 0.3),
    "byol": Run("BYOL", "byol-imagenette", 0.075, work=8 / 6),
    "byol-no-momentum": Run(
        "BYOL without momentum", "byol-no-momentum-imagenette", 0.075, f"{_NO_MOMENTUM} 10"
    ),
    "byol-no-momentum-1": Run(
        "the same, predictor not faster", "byol-no-momentum-imagenette", 0.075, f"{_NO_MOMENTUM} 1"
    ),
    "moco-v1": Run("MoCo v1", "moco-v1-imagenette", 0.3, work=4 / 6),
    "moco-v2": Run("MoCo v2", "moco-v2-imagenette", 0.3, "--method.symmetric off", 4 / 6),
    "moco-v3": Run("MoCo v3", "moco-v3-imagenette", 0.075, work=8 / 6),
}


def flags_of(run: Run, epochs: int) -> list[str]:
    """The options of a run whose networks do as much work as those of SimSiam in `epochs`."""
    own = round(epochs / run.work)
    flags = [*FLAGS, *run.flags.split(), "--optimizer.lr", str(run.lr), "--epochs", str(own)]
    milestones = catalogue.recipe(run.recipe).optimizer.milestones
    if milestones:
        whole = catalogue.recipe(run.recipe).epochs
        flags += ["--optimizer.milestones", *(str(round(m * own / whole)) for m in milestones)]
    return flags


def curve(result: Mapping[str, Any], key: str) -> tuple[list[float], list[float]]:
    """Minutes and values of a metric of a run."""
    lines = [line for line in result["metrics"] if key in line]
    per_step = result["seconds"] / 60 / max(line["step"] for line in result["metrics"])
    return [line["step"] * per_step for line in lines], [line[key] for line in lines]


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The results as Markdown."""
    lines = [
        "| method | kNN untrained | kNN trained | epochs | images/s | minutes |",
        "|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        knn = curve(result, _KNN)[1]
        lines.append(
            f"| {RUNS[name].label} | {knn[0]:.1f} % | {knn[-1]:.1f} % | {result['config']['epochs']} "
            f"| {median(curve(result, 'images_per_second')[1]):.0f} | {result['minutes']} |"
        )
    return "\n".join(lines)


def draw(results: Mapping[str, Mapping[str, Any]], png: Path) -> None:
    """Draws kNN accuracy over minutes, and loss and collapse metric of every run."""
    columns = 5
    rows = -(-len(results) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.9 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True, sharex=True).flatten()
    for panel, (name, result) in zip(panels, results.items(), strict=False):
        minutes, knn = curve(result, _KNN)
        panel.axhline(knn[0], color="#999999", linewidth=0.8, linestyle="--")
        panel.plot(minutes, knn, color="#0072B2", marker="o", markersize=2.5)
        panel.annotate(
            f"{knn[-1]:.1f} %",
            (minutes[-1], knn[-1]),
            (0, 5),
            textcoords="offset points",
            ha="right",
        )
        health = panel.twinx()
        health.plot(*curve(result, "collapse_std"), color="#D55E00", linewidth=0.8, alpha=0.7)
        health.set_ylim(0, 1.35)
        health.set_yticks([0, 1] if panel in panels[columns - 1 :: columns] else [])
        panel.set_title(RUNS[name].label, fontsize=10)
        panel.grid(alpha=0.2)
        panel.spines[["top"]].set_visible(False)
        health.spines[["top"]].set_visible(False)
    for panel in panels[len(results) :]:
        panel.set_axis_off()
    for panel in panels[::columns]:
        panel.set_ylabel("kNN top-1, k 20 (%)", color="#0072B2")
    for panel in panels[-columns:]:
        panel.set_xlabel("minutes")
    figure.suptitle(
        "kNN accuracy (dots; dashed: untrained network) and std of z/|z| times sqrt(D) "
        "(thin line; 1: healthy, 0: collapsed)",
        fontsize=10,
    )
    png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png, dpi=110)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and val/")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--results", type=Path, required=True, help="folder of the result files")
    parser.add_argument("--png", type=Path, help="write the picture to this file")
    parser.add_argument("--only", nargs="+", choices=RUNS, help="run these alone")
    parser.add_argument(
        "--epochs", type=int, default=20, help="of a method that does SimSiam's work"
    )
    args = parser.parse_args()
    for name in args.only or RUNS:
        file, out, run = args.results / f"{name}.json", args.out / name, RUNS[name]
        if file.exists():
            continue
        flags = flags_of(run, args.epochs)
        fastsimsiam(
            "pretrain", run.recipe, "--data", args.data, "--out", out, *flags, "--resume", "auto"
        )
        write_result(file, result_of(out, flags))
    files = {name: args.results / f"{name}.json" for name in RUNS}
    results = {name: json.loads(f.read_text()) for name, f in files.items() if f.exists()}
    print(table(results))
    if args.png:
        draw(results, args.png)


if __name__ == "__main__":
    main()
