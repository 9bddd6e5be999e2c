"""The doctor's forecast of a run's duration, and the measured duration of that run.

    python -m benchmarks.forecast imagenette --data IMAGENETTE --json benchmarks/results/forecast.json \
        --arch resnet18 --image-size 64 --batch-size 64 --max-steps 300 --knn.every-epochs 0

Options that are not in --help are passed to both `fastsimsiam doctor` and `fastsimsiam pretrain`, which
run one after the other in separate processes.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import conclude, fastsimsiam


def measure(
    recipe: str, data: Path, minutes: float, flags: list[str], folder: Path
) -> dict[str, Any]:
    """Runs the doctor, then the training, and compares their durations.

    Args:
        recipe: name of the recipe, see `fastsimsiam recipes`.
        data: folder with train/ and val/.
        minutes: duration of the doctor's measurement.
        flags: further options of both commands.
        folder: where both write their files.
    """
    report, out = folder / "doctor.json", folder / "run"
    fastsimsiam(
        "doctor", "--recipe", recipe, "--data", data, "--minutes", minutes, "--json", report, *flags
    )
    fastsimsiam("pretrain", recipe, "--data", data, *flags, "--out", out)
    doctor = json.loads(report.read_text())
    run = json.loads((out / "summary.json").read_text())
    return {
        "regime": "forecast",
        "minutes": minutes,
        "steps": run["steps"],
        "forecast": doctor["forecast"],
        "measured_seconds": run["seconds"],
        "error": doctor["forecast"]["seconds"] / run["seconds"] - 1,
        "doctor": doctor,
    }


def table(result: dict[str, Any]) -> str:
    """The result as a sentence of Markdown."""
    forecast, doctor = result["forecast"], result["doctor"]
    return (
        f"{doctor['arch']}, {doctor['image_size']} pixels, batch {doctor['batch_size']}, "
        f"{result['steps']} steps: after measuring for {result['minutes']:g} minutes the forecast was "
        f"{forecast['seconds']:.0f} s ({forecast['low']:.0f} to {forecast['high']:.0f}), the run took "
        f"{result['measured_seconds']:.0f} s: {result['error']:+.1%}."
    )


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="name of a recipe, see `fastsimsiam recipes`")
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and val/")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument(
        "--minutes", type=float, default=1.0, help="duration of the doctor's measurement (1)"
    )
    args, flags = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        conclude(args, measure(args.recipe, args.data, args.minutes, flags, Path(folder)), table)


if __name__ == "__main__":
    main()
