r"""What a pretrained network is worth with few labels: linear, fine-tuned, and distilled.

    python -m benchmarks.few_labels RUN --data DATA --out DIR --json FILE.json [--labels 10%]

All three use the same labels. The linear layer is trained on cached features with several learning
rates, of which the best score on the validation split counts; fine-tuning and distillation have one
each. `--epochs` are theirs. The student begins with the pretrained weights; it is trained without
labels and, again, with those that the teacher knew. DIR must be new.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.harness import fastsimsiam, write_result

_LINEAR_LR = (0.1, 0.5, 2.0)
_SGD = "--optimizer.name sgd --optimizer.lr-scaling linear --optimizer.weight-decay 0".split()


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Runs all commands and returns their results, without the paths of this machine."""
    args.out.mkdir(parents=True, exist_ok=True)
    data = ["--data", args.data]
    results: dict[str, Any] = {}
    for lr in _LINEAR_LR:
        options = ["--cached", "--labels", args.labels, "--lr", lr, "--batch-size", args.batch_size]
        results[f"linear, lr {lr}"] = _run(args.out, "linear", args.run, *data, *options)
    training = [*_SGD, "--batch-size", args.batch_size]
    tuned, students = args.out / "tuned", args.out / "student"
    results["finetune"] = _run(
        *(args.out, "finetune", args.run, *data, "--out", tuned, "--labels", args.labels),
        *(*training, "--optimizer.lr", args.lr, "--epochs", args.epochs[0]),
    )
    for weight in (0.0, 0.5):
        out = students.with_name(f"student-{weight}")
        results[f"distill, label weight {weight}"] = _run(
            *(args.out, "distill", tuned, *data, "--out", out, "--student", args.run),
            *(*training, "--optimizer.lr", args.lr, "--optimizer.warmup-epochs", 0),
            *("--epochs", args.epochs[1], "--label-weight", weight, "--temperature", 0.1),
        )
    return {"regime": "few-labels", "labels": args.labels, "results": results}


def _run(out: Path, *command: object) -> dict[str, Any]:
    """The result of a command of fastsimsiam."""
    file = out / "result.json"
    fastsimsiam(*command, "--json", file)
    result: dict[str, Any] = json.loads(file.read_text())
    for key in ("checkpoint", "data", "file", "teacher", "student"):
        if result.get(key):
            result[key] = Path(result[key]).name
    result["bad_images"] = len(result["bad_images"])
    return result


def table(result: dict[str, Any]) -> str:
    """The scores as Markdown."""
    lines = [
        f"{result['labels']} of the labels:",
        "",
        "| training | top-1 | top-5 | minutes |",
        "|---|---:|---:|---:|",
    ]
    linear = [run for name, run in result["results"].items() if name.startswith("linear")]
    others = {name: r for name, r in result["results"].items() if not name.startswith("linear")}
    best = max(linear, key=lambda run: run["top1"])
    for name, run in {f"linear, best of {len(linear)} learning rates": best, **others}.items():
        lines.append(
            f"| {name} | {run['top1']:.2f} % | {run['top5']:.2f} % | {run['seconds'] / 60:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a pretrained checkpoint")
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and val/")
    parser.add_argument("--out", type=Path, required=True, help="folder of the classifiers")
    parser.add_argument("--json", type=Path, required=True, help="write the result to this file")
    parser.add_argument("--labels", default="10%", help="share of the labels (10%%)")
    parser.add_argument("--batch-size", type=int, default=64, help="images per step (64)")
    parser.add_argument("--lr", type=float, default=0.2, help="per 256 images, SGD (0.2)")
    parser.add_argument(
        "--epochs", type=int, nargs=2, default=(30, 5), help="fine-tuning, distillation (30 5)"
    )
    args = parser.parse_args()
    result = measure(args)
    write_result(args.json, result)
    print(table(result))


if __name__ == "__main__":
    main()
