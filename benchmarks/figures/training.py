r"""Trains a recipe, scaled to the machine by flags: scores, their curve, and the minutes it took.

    python -m benchmarks.training cifar10-800ep --data CIFAR10 --out RUN --json FILE.json \
        [--png FILE.png] [--linear] -- --epochs 20 --arch resnet18 ...

Arguments after `--` are passed to `fastsimsiam pretrain`. If RUN is an interrupted run, it is resumed.
The result file holds the run's config, its metrics by step, and the scores; with `--linear` also the
quick linear evaluation on cached features.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.harness import fastsimsiam, write_result


def result_of(out: Path, flags: list[str]) -> dict[str, Any]:
    """Summary and metrics of the run in `out`, without the paths of this machine."""
    summary = json.loads((out / "summary.json").read_text())
    for key in ("data", "out"):
        summary["config"][key] = Path(summary["config"][key]).name
    summary["bad_images"] = len(summary["bad_images"])
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return {
        "regime": "training",
        "flags": flags,
        **summary,
        "minutes": round(summary["seconds"] / 60, 1),
        "metrics": [json.loads(line) for line in lines],
    }


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="name of a recipe, see `fastsimsiam recipes`")
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and val/")
    parser.add_argument("--out", type=Path, required=True, help="the run's folder")
    parser.add_argument("--json", type=Path, required=True, help="write the result to this file")
    parser.add_argument("--png", type=Path, help="write the curves to this file")
    parser.add_argument(
        "--linear",
        type=int,
        nargs="?",
        const=256,
        metavar="BATCH",
        help="also score by `linear --cached`, with batches of BATCH images (256)",
    )
    argv = sys.argv[1:]
    end = argv.index("--") if "--" in argv else len(argv)
    args, flags = parser.parse_args(argv[:end]), argv[end + 1 :]
    resume = ["--resume"] if (args.out / "checkpoints").exists() else []
    fastsimsiam("pretrain", args.recipe, "--data", args.data, "--out", args.out, *flags, *resume)
    result = result_of(args.out, flags)
    if args.linear:
        scores = args.out / "linear.json"
        fastsimsiam(
            "linear",
            args.out,
            "--data",
            args.data,
            "--cached",
            "--json",
            scores,
            "--batch-size",
            args.linear,
        )
        linear = json.loads(scores.read_text())
        result["linear_cached"] = {
            key: linear[key] for key in ("protocol", "config", "top1", "top5")
        }
    write_result(args.json, result)
    if args.png:
        shutil.copyfile(args.out / "curves.png", args.png)


if __name__ == "__main__":
    main()
