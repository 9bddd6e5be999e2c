"""The doctor's forecast of a run, and how long that run then takes.

    python -m benchmarks.forecast imagenette --data IMAGENETTE --json benchmarks/results/forecast.json \
        --arch resnet18 --image-size 64 --batch-size 64 --max-steps 300 --knn.every-epochs 0

What is not of this benchmark goes to both, `fastsimsiam doctor` and `fastsimsiam pretrain`. Each is a
process of its own, the doctor first.
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
    """Asks the doctor, then trains.

    Args:
        recipe: see `fastsimsiam recipes`.
        data: folder with train/ and val/.
        minutes: of the doctor's measurement.
        flags: of both commands.
        folder: for what they write.
    """
    told, out = folder / "doctor.json", folder / "run"
    fastsimsiam(
        "doctor", "--recipe", recipe, "--data", data, "--minutes", minutes, "--json", told, *flags
    )
    fastsimsiam("pretrain", recipe, "--data", data, *flags, "--out", out)
    doctor = json.loads(told.read_text())
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
    found, doctor = result["forecast"], result["doctor"]
    return (
        f"{doctor['arch']}, {doctor['image_size']} pixels, batch {doctor['batch_size']}, "
        f"{result['steps']} steps: measuring for {result['minutes']:g} minutes foretold "
        f"{found['seconds']:.0f} s "
        f"({found['low']:.0f} to {found['high']:.0f}), the run took "
        f"{result['measured_seconds']:.0f} s: {result['error']:+.1%}."
    )


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="see `fastsimsiam recipes`")
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and val/")
    parser.add_argument("--json", type=Path, help="file that receives the result")
    parser.add_argument("--minutes", type=float, default=1.0, help="of the doctor (1)")
    args, flags = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        conclude(args, measure(args.recipe, args.data, args.minutes, flags, Path(folder)), table)


if __name__ == "__main__":
    main()
