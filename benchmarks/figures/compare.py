r"""Every method on the same images and cores, for the same minutes: tables and a picture.

    python -m benchmarks.compare SETTING --data DATA --out RUNS --results FOLDER --minutes 14 \
        [--seeds 0 1] [--only NAME ...] [--png FILE.png]

SETTING is `imagenette` (64 pixels) or `cifar10` (32 pixels), both with ResNet-18: the recipes of the
methods, cut down. How many epochs fit into the minutes is found by a short run of each method, so that
a method with more work per image gets fewer. `lightly` is lightly's SimSiam as its documentation
writes it, in a DataLoader, for the same minutes.

A result file that is in FOLDER already is kept, and drawn with the others: remove it to repeat a run.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.harness import fastsimsiam, write_result
from benchmarks.peers import lightly_training
from benchmarks.training import result_of
from fastsimsiam.recipes import catalogue

_KNN = "knn_top1_k20"
_EVALUATIONS = 3
"""Of a run: before it, half-way and at its end."""
_PROBE_STEPS = 72
_LONG_RUN = 0.96
"""Speed of a long run, over the best of a short one."""
LIGHTLY = "lightly"


@dataclass(frozen=True)
class Setting:
    """A data set and what all runs on it have in common.

    Attributes:
        flags: options of every run.
        train_images, val_images: images of a training and an evaluation.
        batch_size: images per step; small, as few epochs need many steps.
        side: of the images in pixels.
        crop_fraction: of evaluation.
    """

    flags: str
    train_images: int
    val_images: int
    batch_size: int
    side: int
    crop_fraction: float = 0.875


_COMMON = "--arch resnet18 --stem imagenet --optimizer.schedule step --knn.k 20 200 --log-every 37"
SETTINGS = {
    # A blur of the same size in an image of 64 instead of 224 pixels.
    "imagenette": Setting(
        f"{_COMMON} --image-size 64 --views.0.blur-sigma 0.1 0.6 --views.1.blur-sigma 0.1 0.6",
        train_images=9_469,
        val_images=3_925,
        batch_size=32,
        side=64,
    ),
    "cifar10": Setting(
        f"{_COMMON} --image-size 32 --views.0.blur 0 --views.1.blur 0",
        train_images=50_000,
        val_images=10_000,
        batch_size=64,
        side=32,
        crop_fraction=1.0,
    ),
}


@dataclass(frozen=True)
class Run:
    """A method of the table.

    Attributes:
        label: name in the table and the picture.
        recipe: the recipe that it is based on; that of Imagenette also on CIFAR-10, so that the data
            alone differs.
        lr: learning rate per 256 images; 5 to 25 times the recipe's, as the runs are short.
        flags: what else it changes, beyond the setting's.
        work: passes through networks per image, over SimSiam's (two forward, two backward).
    """

    label: str
    recipe: str
    lr: float
    flags: str = ""
    work: float = 1.0


_NO_MOMENTUM = "--method.predictor-lr-factor"
_GROUPS = "--method.bn-group-size 16"
RUNS = {
    "simsiam": Run("SimSiam", "imagenette", 0.8),
    "vi-simsiam": Run("VI-SimSiam", "vi-simsiam-imagenette", 1.2),
    "simclr": Run("SimCLR", "simclr-imagenette", 0.6),
    "simclr-v2": Run("SimCLRv2", "simclr-imagenette", 0.6, "--method.projector-layers 3"),
    "supcon": Run("SupCon", "supcon-imagenette", 0.3),
    "byol": Run("BYOL", "byol-imagenette", 0.3, work=8 / 6),
    "byol-no-momentum": Run(
        "BYOL without momentum", "byol-no-momentum-imagenette", 0.2, f"{_NO_MOMENTUM} 10"
    ),
    "byol-no-momentum-1": Run(
        "the same, predictor not faster", "byol-no-momentum-imagenette", 0.2, f"{_NO_MOMENTUM} 1"
    ),
    "moco-v1": Run("MoCo v1", "moco-v1-imagenette", 0.3, _GROUPS, 4 / 6),
    "moco-v2": Run(
        "MoCo v2", "moco-v2-imagenette", 0.3, f"{_GROUPS} --method.symmetric off", 4 / 6
    ),
    "moco-v3": Run("MoCo v3", "moco-v3-imagenette", 0.3, work=8 / 6),
    # Two views of the whole side, six of half of it; as many prototypes per image of a batch as in the
    # recipe.
    "swav": Run("SwAV", "swav-imagenette", 5e-3, "--method.prototypes 375", 7 / 4),
}


def flags_of(name: str, setting: Setting, epochs: int, *, seed: int = 0) -> list[str]:
    """The options of a run.

    Args:
        name: key of `RUNS`.
        setting: data set.
        epochs: of the run.
        seed: of weights, order and views.
    """
    run = RUNS[name]
    flags = [*setting.flags.split(), *run.flags.split(), "--seed", str(seed)]
    flags += ["--batch-size", str(setting.batch_size), "--epochs", str(epochs)]
    flags += ["--optimizer.lr", str(run.lr)]
    flags += ["--knn.every-epochs", str(max(1, -(-epochs // 2)))]
    flags += ["--knn.crop-fraction", str(setting.crop_fraction)]
    config = catalogue.recipe(run.recipe)
    for number, view in enumerate(config.views):
        if view.size is not None:
            flags += [f"--views.{number}.size", str(setting.side // 2)]
            flags += [f"--views.{number}.blur-sigma", "0.1", "0.6"]
    if milestones := config.optimizer.milestones:
        own = [max(1, round(milestone * epochs / config.epochs)) for milestone in milestones]
        kept = [milestone for milestone in dict.fromkeys(own) if milestone < epochs]
        flags += (
            ["--optimizer.milestones", *map(str, kept)]
            if kept
            else ["--optimizer.decay", "cosine", "--optimizer.milestones"]
        )
    return flags


def epochs_within(minutes: float, images_per_second: float, work: float, setting: Setting) -> int:
    """Whole epochs, and the evaluations of a run, that take at most so many minutes.

    An evaluation is a forward pass of every image without a head, a ninth of SimSiam's work.
    """
    evaluated = setting.train_images + setting.val_images
    evaluation = evaluated / (9 * images_per_second * work)
    seconds = 60 * minutes - _EVALUATIONS * evaluation
    return max(1, int(seconds * images_per_second / setting.train_images))


def probe(name: str, setting: Setting, data: Path, out: Path) -> float:
    """Images per second of a method's training on this machine."""
    shutil.rmtree(out, ignore_errors=True)
    flags = [*flags_of(name, setting, 2), "--max-steps", str(_PROBE_STEPS), "--log-every", "24"]
    flags += ["--knn.every-epochs", "0"]
    fastsimsiam("pretrain", RUNS[name].recipe, "--data", data, "--out", out, *flags)
    speeds = curve(result_of(out, flags), "images_per_second")[1]
    return _LONG_RUN * max(speeds)  # other programs only slow it


def curve(result: Mapping[str, Any], key: str) -> tuple[list[float], list[float]]:
    """Minutes and values of a metric of a run."""
    lines = [line for line in result["metrics"] if key in line]
    per_step = result["seconds"] / 60 / max(line["step"] for line in result["metrics"])
    return [line["step"] * per_step for line in lines], [line[key] for line in lines]


Results = Mapping[str, Sequence[Mapping[str, Any]]]
"""Name -> the result of each seed."""


def label_of(name: str) -> str:
    """A name in tables."""
    return "lightly's SimSiam, as documented" if name == LIGHTLY else RUNS[name].label


def table(results: Results) -> str:
    """The results as Markdown; scores are means over the seeds, with those of each where several."""
    lines = [
        "| method | kNN untrained | kNN trained | epochs | images/s | minutes |",
        "|---|---|---|---|---|---|",
    ]
    for name, runs in results.items():
        scores = [curve(run, _KNN)[1] for run in runs]
        last = [score[-1] for score in scores]
        each = f" ({', '.join(f'{score:.1f}' for score in last)})" if len(last) > 1 else ""
        epochs = dict.fromkeys(run["config"]["epochs"] for run in runs)
        speeds = [speed for run in runs for speed in curve(run, "images_per_second")[1]]
        lines.append(
            f"| {label_of(name)} | {mean(score[0] for score in scores):.1f} % "
            f"| {mean(last):.1f} %{each} | {', '.join(map(str, epochs))} | {median(speeds):.0f} "
            f"| {mean(run['minutes'] for run in runs):.1f} |"
        )
    return "\n".join(lines)


def draw(results: Results, png: Path) -> None:
    """Draws kNN accuracy over minutes and the collapse metric of every method, a line a seed."""
    columns = min(5, len(results))
    rows = -(-len(results) // columns)
    figure = Figure(figsize=(2.6 * columns, 2.9 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True, sharex=True).flatten()
    for panel, (name, runs) in zip(panels, results.items(), strict=False):
        health = panel.twinx()
        for run in runs:
            minutes, knn = curve(run, _KNN)
            panel.axhline(knn[0], color="#999999", linewidth=0.8, linestyle="--")
            panel.plot(minutes, knn, color="#0072B2", marker="o", markersize=2.5)
            if any("collapse_std" in line for line in run["metrics"]):
                collapse = curve(run, "collapse_std")
                health.plot(*collapse, color="#D55E00", linewidth=0.8, alpha=0.7)
        panel.annotate(
            f"{mean(curve(run, _KNN)[1][-1] for run in runs):.1f} %",
            (minutes[-1], knn[-1]),
            (0, 5),
            textcoords="offset points",
            ha="right",
        )
        health.set_ylim(0, 1.35)
        health.set_yticks([0, 1] if panel in panels[columns - 1 :: columns] else [])
        panel.set_title(label_of(name), fontsize=9)
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


def finished(folder: Path, setting: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yields the names of a setting in `folder`, in the order of `RUNS`, and a result for each seed."""
    for name in (*RUNS, LIGHTLY):
        files = sorted(folder.glob(f"{setting}-{name}-seed*.json"))
        if files:
            yield name, [json.loads(file.read_text()) for file in files]


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("setting", choices=SETTINGS)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and val/")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--results", type=Path, required=True, help="folder of the result files")
    parser.add_argument("--minutes", type=float, default=14.0, help="of each run (14)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="a run of each (0)")
    parser.add_argument("--only", nargs="+", choices=[*RUNS, LIGHTLY], help="these alone")
    parser.add_argument("--png", type=Path, help="write the picture to this file")
    args = parser.parse_args()
    setting = SETTINGS[args.setting]
    speeds: dict[str, float] = {}
    for seed in args.seeds:  # all methods with the first seed come first
        for name in args.only or (*RUNS, LIGHTLY):
            file = args.results / f"{args.setting}-{name}-seed{seed}.json"
            if file.exists():
                continue
            print(f"{name}, seed {seed}", file=sys.stderr, flush=True)
            out = args.out / f"{args.setting}-{name}-seed{seed}"
            if name == LIGHTLY:
                result = lightly_training.train(
                    args.data,
                    out,
                    side=setting.side,
                    crop_fraction=setting.crop_fraction,
                    minutes=args.minutes,
                    seed=seed,
                )
                write_result(file, result)
                continue
            chosen = out.with_suffix(
                ".epochs.json"
            )  # another speed must not change a run that was interrupted
            if chosen.exists():
                epochs = json.loads(chosen.read_text())
            else:
                if name not in speeds:
                    speeds[name] = probe(name, setting, args.data, args.out / "probe")
                epochs = epochs_within(args.minutes, speeds[name], RUNS[name].work, setting)
                out.parent.mkdir(parents=True, exist_ok=True)
                chosen.write_text(json.dumps(epochs))
            flags = flags_of(name, setting, epochs, seed=seed)
            recipe = RUNS[name].recipe
            fastsimsiam(
                "pretrain", recipe, "--data", args.data, "--out", out, *flags, "--resume", "auto"
            )
            write_result(file, result_of(out, flags))
    results = dict(finished(args.results, args.setting))
    print(table(results))
    if args.png:
        draw(results, args.png)


if __name__ == "__main__":
    main()
