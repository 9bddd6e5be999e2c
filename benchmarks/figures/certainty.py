r"""What kappa is worth: `fastsimsiam uncertainty` of a run, as a result file and a picture.

python -m benchmarks.certainty RUN --data DATA --json FILE.json --png FILE.png [--ood OTHER]
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import fastsimsiam, write_result


def table(result: dict[str, Any]) -> str:
    """The measures as Markdown."""
    measures = result["measures"]
    corruptions = list(next(iter(measures.values()))["auroc_corrupted"])
    ood = [] if result["ood"] is None else ["other data"]
    titles = ["least certain tenth", "most certain tenth", "AURC", "errors", *corruptions, *ood]
    lines = [
        f"kNN (k {result['k']}) top-1 {result['top1']:.2f} % of {result['queries']:,} images; accuracy "
        "of the least and the most certain tenth; AUROC of errors, damaged images and other data:",
        "",
        f"| measure | {' | '.join(titles)} |",
        f"|---|{'---:|' * len(titles)}",
    ]
    for name, measure in measures.items():
        values = [f"{100 * measure['accuracy'][0]:.1f} %", f"{100 * measure['accuracy'][-1]:.1f} %"]
        aurocs = [measure["auroc_errors"], *(measure["auroc_corrupted"][c] for c in corruptions)]
        aurocs += [measure["auroc_ood"]] if ood else []
        values.append(f"{measure['aurc']:.3f}")
        values += ["-" if value is None else f"{value:.3f}" for value in aurocs]
        lines.append(f"| {name} | {' | '.join(values)} |")
    return "\n".join(lines)


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run of VI-SimSiam, or any checkpoint")
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and val/")
    parser.add_argument("--ood", type=Path, help="another data set, of other classes")
    parser.add_argument("--json", type=Path, required=True, help="write the result to this file")
    parser.add_argument("--png", type=Path, required=True, help="write the picture to this file")
    args = parser.parse_args()
    other = ["--ood", args.ood] if args.ood else []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.json"
        fastsimsiam(
            *("uncertainty", args.run, "--data", args.data, *other, "--json", file),
            *("--png", args.png),
        )
        result: dict[str, Any] = json.loads(file.read_text())
    for key in ("checkpoint", "data", "ood"):
        if result[key]:
            result[key] = Path(result[key]).name
    result = {"regime": "certainty", **result, "bad_images": len(result["bad_images"])}
    write_result(args.json, result)
    print(table(result))


if __name__ == "__main__":
    main()
