"""SwAV's 2 views of 224 and 6 of 96 pixels beside 2 views of 224, through the loaders of a CPU.

    python -m benchmarks.multi_crop --data PHOTOS --json benchmarks/results/multi-crop.json

All crops of an image are cut from one decoded frame, so that six small ones cost their pixels, not six
decodings. Loaders and views alternate in one process; the best epoch of each counts:
  cpu        decode and crops
  resident   crops alone, of images decoded beforehand
  ffcv       a packed file: decode and crops
"""

import argparse
import time
from typing import Any

from benchmarks.harness import add_data, conclude, part_parser, photographs
from benchmarks.loader import CPU, PREFETCH, packed
from fastsimsiam.doctor.synthetic import repeated
from fastsimsiam.loaders.base import Loader, LoaderOptions
from fastsimsiam.loaders.cpu_loader import cpu_loader
from fastsimsiam.loaders.resident_loader import resident_loader
from fastsimsiam.plan.batches import TrainPlan
from fastsimsiam.recipes import catalogue
from fastsimsiam.storage.class_folder import open_split
from fastsimsiam.storage.image_files import ImageFiles
from fastsimsiam.system.optional import has_ffcv

VIEWS = {
    "2x224": catalogue.recipe("swav-imagenet-400ep-2x224").views,
    "2x224+6x96": catalogue.recipe("swav-imagenet-200ep").views,
}
_BATCH = 50


def loaders(files: ImageFiles, workers: int) -> dict[str, Loader]:
    """The loaders by name; ffcv where it is installed."""
    options = LoaderOptions(device=CPU, workers=workers)
    made: dict[str, Loader] = {
        "cpu": cpu_loader(files, options, prefetch=PREFETCH),
        "resident": resident_loader(files, options, prefetch=PREFETCH),
    }
    if has_ffcv():
        from fastsimsiam.loaders.ffcv_loader import FfcvLoader

        made["ffcv"] = FfcvLoader(packed(files), options)
    return made


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Images per second of each loader and set of views, best of the rounds."""
    files = repeated(open_split(photographs(args), "train"), args.images)
    best: dict[str, dict[str, float]] = {}
    for name, loader in loaders(files, args.workers).items():
        rates = dict.fromkeys(VIEWS, 0.0)
        for number in range(args.rounds + 1):  # the first compiles, and is not counted
            for views, specs in VIEWS.items():
                plan = TrainPlan(
                    label=files.label,
                    sizes=files.sizes,
                    seed=0,
                    specs=specs,
                    image_size=224,
                    batch_size=_BATCH,
                )
                started = time.perf_counter()
                count = sum(len(batch.index) for batch in loader.iterate(plan, number))
                if number:
                    rates[views] = max(rates[views], count / (time.perf_counter() - started))
        loader.close()
        best[name] = rates
    return {"regime": "multi-crop", "workers": args.workers, "images_per_second": best}


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    names = list(VIEWS)
    lines = [
        f"| loader | {', images/s | '.join(names)}, images/s | time of 8 crops over 2 |",
        "|---|---:|---:|---:|",
    ]
    for name, rates in result["images_per_second"].items():
        few, many = (rates[views] for views in names)
        lines.append(f"| {name} | {few:,.0f} | {many:,.0f} | {few / many:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Runs the command line."""
    parser = part_parser(__doc__, rounds=3)
    add_data(parser)
    parser.add_argument("--workers", type=int, default=2, help="threads (2)")
    parser.add_argument("--images", type=int, default=1000, help="images per epoch (1000)")
    args = parser.parse_args()
    conclude(args, measure(args), table)


if __name__ == "__main__":
    main()
