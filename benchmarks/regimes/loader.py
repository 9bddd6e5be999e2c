"""Regime "loader": decode and crops, no model. Images per second; each yields two 224-pixel views.

    python -m benchmarks.loader --data PHOTOS --json benchmarks/results/loader.json

Configurations, all on the same files and with the same number of workers:
  decode            libjpeg-turbo alone, reused buffers: the bound
  folder            decode once, two antialiased crops; color is left to the device
  folder-color     folder, and our color on the CPU as well
  resident          everything decoded beforehand: crops alone
  ffcv              a packed file through FFCV's pipeline with our operation
  ffcv-stock        FFCV as it comes: one pipeline per view (benchmarks/peers/stock_ffcv.py)
  dali              DALI on the CPU, the plan's boxes
  dali-stock        DALI with two random_resized_crops (benchmarks/peers/stock_dali.py)
  reference-crops   PIL and a DataLoader: decode and crops alone
  reference         PIL and a DataLoader doing the official recipe's full job, color included
  official          the same job as users write it: ImageFolder, torchvision's transforms, float
                    tensors normalized in the workers (benchmarks/peers/official.py)
  lightly           lightly's SimSiam transform in a DataLoader (benchmarks/peers/lightly_simsiam.py)

Each runs a short epoch to warm up and a timed one, and in another process three epochs whose peak of
memory is looked at: anonymous and shared memory, of all processes, the interpreter's included.
"""

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import add_data, conclude, parser, photographs, run_all, summary, words_of
from benchmarks.memory import PeakMemory
from benchmarks.peers.official import official_loader
from fastsimsiam.augment.photometric import Photometric
from fastsimsiam.doctor.synthetic import repeated
from fastsimsiam.loaders.base import Loader, LoaderOptions
from fastsimsiam.loaders.cpu_loader import cpu_loader
from fastsimsiam.loaders.dali_loader import DaliLoader
from fastsimsiam.loaders.decode import read_rgb
from fastsimsiam.loaders.ffcv_loader import FfcvLoader
from fastsimsiam.loaders.reference_loader import ReferenceLoader
from fastsimsiam.loaders.resident_loader import resident_loader
from fastsimsiam.plan.batches import TrainPlan
from fastsimsiam.recipes import catalogue
from fastsimsiam.storage.base import Storage
from fastsimsiam.storage.beton import Beton, open_beton
from fastsimsiam.storage.class_folder import ClassFolder, open_split
from fastsimsiam.tools.pack import PackOptions, pack

CPU = torch.device("cpu")
AHEAD = 2
"""Batches made ahead, as beside a GPU; on a CPU that trains there would be none."""
BATCH = 50
EPOCHS_FOR_MEMORY = 3
IMAGES_FOR_MEMORY = 1000

Epoch = Callable[[int, int], Iterator[int]]
"""Called with an epoch's number and images, yields the number of images of each batch."""
Make = Callable[[ClassFolder, int], Epoch]
"""Called with the files and the number of workers."""


def plan_of(storage: Storage, images: int) -> TrainPlan:
    """SimSiam's two views at 224 pixels, of the first `images`."""
    recipe = catalogue.recipe("imagenet-100ep")
    return TrainPlan(
        label=storage.label[:images],
        sizes=storage.sizes[:images],
        seed=0,
        specs=recipe.views,
        image_size=224,
        batch_size=BATCH,
    )


def decode(storage: ClassFolder, workers: int) -> Epoch:
    """Decodes every image that stands upright, and throws it away."""
    upright = np.flatnonzero(storage.orientation == 1).tolist()

    def one(index: int) -> int:
        read_rgb(storage, index)
        return 1

    def epoch(_: int, images: int) -> Iterator[int]:
        with ThreadPoolExecutor(workers) as pool:
            yield from pool.map(one, upright[:images], chunksize=8)

    return epoch


def ours(make: Callable[[ClassFolder, int], Loader]) -> Make:
    """One of our loaders."""

    def configuration(storage: ClassFolder, workers: int) -> Epoch:
        loader = make(storage, workers)

        def epoch(number: int, images: int) -> Iterator[int]:
            for batch in loader.iterate(plan_of(storage, images), number):
                assert batch.crops[0].shape[1:] == (2, 224, 224, 3)
                yield len(batch.index)

        return epoch

    return configuration


def folder_color(storage: ClassFolder, workers: int) -> Epoch:
    """`folder`, and our color, compiled as long runs have it."""
    loader = cpu_loader(storage, LoaderOptions(device=CPU, workers=workers))
    photometric = Photometric(catalogue.recipe("imagenet-100ep").views, (224, 224))
    photometric.compile_alone()

    def epoch(number: int, images: int) -> Iterator[int]:
        with torch.inference_mode():
            for batch in loader.iterate(plan_of(storage, images), number):
                yield len(photometric(batch.crops, batch.photometric)[0])

    return epoch


def ffcv_stock(storage: ClassFolder, workers: int) -> Epoch:
    """FFCV's own loader. Its epochs are all of the file."""
    from benchmarks.peers.stock_ffcv import stock_ffcv_loader

    loader = stock_ffcv_loader(packed(storage).root, BATCH, workers)
    return lambda number, images: (len(views[0]) for views in loader)


def dali_stock(storage: ClassFolder, workers: int) -> Epoch:
    """DALI's own reader and crops. It knows no epochs: at their ends its queue stays full."""
    from benchmarks.peers.stock_dali import stock_dali_batches

    batches = stock_dali_batches(storage.root, BATCH, workers)

    def epoch(_: int, images: int) -> Iterator[int]:
        for _ in range(images // BATCH):
            next(batches)
            yield BATCH

    return epoch


def official(storage: ClassFolder, workers: int) -> Epoch:
    """The official recipe word for word."""
    different = len(set(storage.paths))

    def epoch(_: int, images: int) -> Iterator[int]:
        times = max(1, images // different)
        for views, _ in official_loader(storage.root, times, BATCH, workers):
            yield len(views[0])

    return epoch


def lightly(storage: ClassFolder, workers: int) -> Epoch:
    """Lightly's transform and dataset."""
    from benchmarks.peers.lightly_simsiam import lightly_loader

    different = len(set(storage.paths))

    def epoch(_: int, images: int) -> Iterator[int]:
        times = max(1, images // different)
        for views, _, _ in lightly_loader(storage.root, times, BATCH, workers):
            yield len(views[0])

    return epoch


def packed(storage: ClassFolder) -> Beton:
    """The images as a packed file, made at the first call."""
    digest = hashlib.sha256("\n".join([str(storage.root), *storage.paths]).encode()).hexdigest()[
        :12
    ]
    file = Path(tempfile.gettempdir()) / f"fastsimsiam-benchmark-{digest}.beton"
    if not file.exists():
        pack(storage, file, PackOptions())
    return open_beton(file)


CONFIGURATIONS: dict[str, Make] = {
    "decode": decode,
    "folder": ours(
        lambda files, workers: cpu_loader(
            files, LoaderOptions(device=CPU, workers=workers), prefetch=AHEAD
        )
    ),
    "folder-color": folder_color,
    "resident": ours(
        lambda files, workers: resident_loader(
            files, LoaderOptions(device=CPU, workers=workers), prefetch=AHEAD
        )
    ),
    "ffcv": ours(
        lambda files, workers: FfcvLoader(packed(files), LoaderOptions(device=CPU, workers=workers))
    ),
    "ffcv-stock": ffcv_stock,
    "dali": ours(
        lambda files, workers: DaliLoader(files, LoaderOptions(device=CPU, workers=workers))
    ),
    "dali-stock": dali_stock,
    "reference-crops": ours(
        lambda files, workers: ReferenceLoader(
            files, LoaderOptions(device=CPU, workers=workers), full=False
        )
    ),
    "reference": ours(
        lambda files, workers: ReferenceLoader(files, LoaderOptions(device=CPU, workers=workers))
    ),
    "official": official,
    "lightly": lightly,
}
# These get half of the images: about the same time, and what it takes to start still is small.
SLOW = (
    "folder-color",
    "ffcv-stock",
    "dali",
    "dali-stock",
    "reference-crops",
    "reference",
    "official",
    "lightly",
)
RATIOS = (
    ("folder", "decode"),
    ("folder", "reference-crops"),
    ("folder", "reference"),
    ("folder", "official"),
    ("folder", "lightly"),
    ("folder-color", "official"),
    ("ffcv", "decode"),
    ("ffcv", "ffcv-stock"),
    ("dali", "dali-stock"),
)


def measure(name: str, data: Path, workers: int, images: int) -> dict[str, Any]:
    """Times one configuration in this process."""
    files = open_split(data, "train")
    if name in SLOW:
        images //= 2
    epoch = CONFIGURATIONS[name](repeated(files, images), workers)
    for _ in epoch(0, len(files)):
        pass
    started = time.perf_counter()
    count = sum(epoch(1, images))
    seconds = time.perf_counter() - started
    return {"images_per_second": count / seconds, "seconds": seconds}


def measure_memory(name: str, data: Path, workers: int) -> dict[str, Any]:
    """The peak of memory in each of three epochs."""
    files = open_split(data, "train")
    epoch = CONFIGURATIONS[name](repeated(files, IMAGES_FOR_MEMORY), workers)
    peaks = []
    for number in range(EPOCHS_FOR_MEMORY):
        with PeakMemory() as peak:
            for _ in epoch(number, IMAGES_FOR_MEMORY):
                pass
        peaks.append(peak.mib)
    return {"peak_mib": peaks}


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    runs = len(result["samples"]["decode"])
    rows = [
        f"| loader | images/s | of decode | spread of {runs} runs | peak MiB, epochs 1 to 3 |",
        "|---|---:|---:|---:|---:|",
    ]
    bound = result["summary"]["decode"]["median"]
    for name, figure in result["summary"].items():
        peaks = " ".join(f"{peak:,.0f}" for peak in result["memory"][name]["peak_mib"])
        rows.append(
            f"| {name} | {figure['median']:,.0f} | {figure['median'] / bound:.2f} | "
            f"{figure['spread']:.0%} | {peaks} |"
        )
    times = {pair: f"{ratio:.{2 if ratio < 2 else 1}f}" for pair, ratio in result["ratios"].items()}
    return "\n".join(
        [
            *rows,
            "",
            f"`folder` is {times['folder/reference-crops']} times `reference-crops`, "
            f"{times['folder/reference']} times `reference`, {times['folder/official']} times "
            f"`official` and {times['folder/lightly']} times",
            f"`lightly`; with our color on the CPU too (`folder-color`), "
            f"{times['folder-color/official']} times `official`.",
            f"`ffcv` is {times['ffcv/ffcv-stock']} times `ffcv-stock`, `dali` "
            f"{times['dali/dali-stock']} times `dali-stock`.",
        ]
    )


def brief(result: dict[str, Any]) -> str:
    """Rates and ratios of those that there are; the table wants all."""
    return json.dumps({"summary": result["summary"], "ratios": result["ratios"]}, indent=1)


def main() -> None:
    """Runs the command line."""
    options = parser(__doc__)
    add_data(options)
    options.add_argument("--workers", type=int, default=2, help="threads or processes (2)")
    options.add_argument("--images", type=int, default=2400, help="images per timed epoch (2400)")
    options.add_argument("--only", nargs="+", choices=CONFIGURATIONS, help="configurations (all)")
    args = options.parse_args()
    data = photographs(args)
    if args.measure:
        name, _, memory = args.measure.partition(":")
        if memory:
            print(json.dumps(measure_memory(name, data, args.workers)))
        else:
            print(json.dumps(measure(name, data, args.workers, args.images)))
        return
    names = args.only or list(CONFIGURATIONS)
    if any(name.startswith("ffcv") for name in names):
        files = open_split(data, "train")
        for images in (args.images, args.images // 2, IMAGES_FOR_MEMORY):
            packed(repeated(files, images))  # not within a measurement
    passed = words_of(args, ("data", "workers", "images"))
    samples, failed = run_all("benchmarks.loader", names, args.repeats, passed)
    memory, without = run_all(
        "benchmarks.loader", [f"{name}:memory" for name in samples], 1, passed
    )
    rates = {
        name: summary([sample["images_per_second"] for sample in found])
        for name, found in samples.items()
    }
    result = {
        "regime": "loader",
        "workers": args.workers,
        "samples": samples,
        "summary": rates,
        "ratios": {
            f"{one}/{other}": rates[one]["median"] / rates[other]["median"]
            for one, other in RATIOS
            if one in rates and other in rates
        },
        "memory": {name.removesuffix(":memory"): found[0] for name, found in memory.items()},
        "failed": failed + without,
    }
    conclude(args, result, brief if args.only or result["failed"] else table)


if __name__ == "__main__":
    main()
