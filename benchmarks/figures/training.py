r"""A recipe as far as the machine allows: scores, their curve, and the minutes it took.

    python -m benchmarks.training cifar10-800ep --data CIFAR10 --out RUN --json FILE.json \
        [--png FILE.png] [--linear] -- --epochs 20 --arch resnet18 ...

What follows `--` goes to `fastsimsiam pretrain`. RUN may be one that was cut off: it is gone on with.
The result file has what is to be published of a run: its config, metrics by step, and scores. With
`--linear`, the quick linear evaluation on cached features too.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmarks.harness import fastsimsiam, write


def result_of(out: Path, flags: list[str]) -> dict[str, Any]:
    """What a run has left in its folder, without the folders of this machine."""
    found = json.loads((out / "summary.json").read_text())
    for key in ("data", "out"):
        found["config"][key] = Path(found["config"][key]).name
    found["bad_images"] = len(found["bad_images"])
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return {
        "regime": "training",
        "flags": flags,
        **found,
        "minutes": round(found["seconds"] / 60, 1),
        "metrics": [json.loads(line) for line in lines],
    }


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="see `fastsimsiam recipes`")
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and val/")
    parser.add_argument("--out", type=Path, required=True, help="the run's folder")
    parser.add_argument("--json", type=Path, required=True, help="file that receives the result")
    parser.add_argument("--png", type=Path, help="file that receives the curves")
    parser.add_argument(
        "--linear",
        type=int,
        nargs="?",
        const=256,
        metavar="BATCH",
        help="score by `linear --cached` too, with batches of so many images (256)",
    )
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    args, flags = parser.parse_args(words[:end]), words[end + 1 :]
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
        found = json.loads(scores.read_text())
        result["linear_cached"] = {
            key: found[key] for key in ("protocol", "config", "top1", "top5")
        }
    write(args.json, result)
    if args.png:
        shutil.copyfile(args.out / "curves.png", args.png)


if __name__ == "__main__":
    main()
