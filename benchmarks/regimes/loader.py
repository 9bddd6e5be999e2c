"""Regime "loader": decode and crops, no model. Images per second; each yields two 224-pixel views.

    python -m benchmarks.loader --data PHOTOS --json benchmarks/results/loader.json

Configurations, all on the same files and with the same number of workers:
  decode            libjpeg-turbo alone, reused buffers: the upper bound
  cpu               one decode, two antialiased crops; color is left to the device
  cpu-color         cpu, and our color on the CPU as well
  resident          crops alone, of images decoded beforehand
  ffcv              a packed file through FFCV's pipeline with our crop operation
  ffcv-stock        FFCV's own operations, one pipeline per view (benchmarks/peers/stock_ffcv.py)
  dali              DALI on the CPU with the plan's crop boxes
  dali-stock        DALI with two random_resized_crops (benchmarks/peers/stock_dali.py)
  reference-crops   PIL in processes, decode and crops alone
  reference         PIL in processes, the official recipe's full work, color included
  official          the same work as users write it: ImageFolder, torchvision's transforms, float
                    tensors normalized in the workers (benchmarks/peers/official.py)
  lightly           lightly's SimSiam transform in a DataLoader (benchmarks/peers/lightly_simsiam.py)

Each run has a short warm-up epoch and a timed one. Another process runs three epochs and records the
peak memory of each: anonymous and shared memory of all processes, the interpreter's included.
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

from benchmarks.harness import (
    add_data,
    conclude,
    photographs,
    regime_parser,
    run_all,
    summary,
    to_argv,
)
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
from fastsimsiam.storage.class_folder import open_split
from fastsimsiam.storage.image_files import ImageFiles
from fastsimsiam.tools.pack import PackOptions, pack

CPU = torch.device("cpu")
PREFETCH = 2
"""Batches decoded ahead: the default on a GPU. On a CPU that also trains, it is 0."""
BATCH = 50
EPOCHS_FOR_MEMORY = 3
IMAGES_FOR_MEMORY = 1000

Epoch = Callable[[int, int], Iterator[int]]
"""(number of the epoch, number of images) -> number of images of each batch."""
Make = Callable[[ImageFiles, int], Epoch]
"""(files, number of workers) -> an epoch function."""


def plan_of(storage: Storage, images: int) -> TrainPlan:
    """A plan of SimSiam's two 224-pixel views of the first `images` images."""
    recipe = catalogue.recipe("imagenet-100ep")
    return TrainPlan(
        label=storage.label[:images],
        sizes=storage.sizes[:images],
        seed=0,
        specs=recipe.views,
        image_size=224,
        batch_size=BATCH,
    )


def decode(storage: ImageFiles, workers: int) -> Epoch:
    """Decodes every image without an orientation flag and drops the pixels."""
    upright = np.flatnonzero(storage.orientation == 1).tolist()

    def decode_one(index: int) -> int:
        read_rgb(storage, index)
        return 1

    def epoch(_: int, images: int) -> Iterator[int]:
        with ThreadPoolExecutor(workers) as pool:
            yield from pool.map(decode_one, upright[:images], chunksize=8)

    return epoch


def unchecked(workers: int) -> LoaderOptions:
    """Options as in all epochs but the first, in which some loaders decode each JPEG once more."""
    return LoaderOptions(device=CPU, workers=workers, check_images=False)


def ours(make: Callable[[ImageFiles, int], Loader]) -> Make:
    """A configuration of one of our loaders."""

    def configuration(storage: ImageFiles, workers: int) -> Epoch:
        loader = make(storage, workers)

        def epoch(number: int, images: int) -> Iterator[int]:
            for batch in loader.iterate(plan_of(storage, images), number):
                assert batch.crops[0].shape[1:] == (2, 224, 224, 3)
                yield len(batch.index)

        return epoch

    return configuration


def cpu_color(storage: ImageFiles, workers: int) -> Epoch:
    """The loader cpu and our color, compiled as in long runs."""
    loader = cpu_loader(storage, LoaderOptions(device=CPU, workers=workers))
    photometric = Photometric(catalogue.recipe("imagenet-100ep").views, (224, 224))
    photometric.compile_alone()

    def epoch(number: int, images: int) -> Iterator[int]:
        with torch.inference_mode():
            for batch in loader.iterate(plan_of(storage, images), number):
                yield len(photometric(batch.crops, batch.photometric)[0])

    return epoch


def ffcv_stock(storage: ImageFiles, workers: int) -> Epoch:
    """FFCV's own operations. Every epoch reads the whole file."""
    from benchmarks.peers.stock_ffcv import stock_ffcv_loader

    loader = stock_ffcv_loader(packed(storage).root, BATCH, workers)
    return lambda number, images: (len(views[0]) for views in loader)


def dali_stock(storage: ImageFiles, workers: int) -> Epoch:
    """DALI's own reader and crops. It has no epochs: its queue stays full from one to the next."""
    from benchmarks.peers.stock_dali import stock_dali_batches

    batches = stock_dali_batches(storage.root, BATCH, workers)

    def epoch(_: int, images: int) -> Iterator[int]:
        for _ in range(images // BATCH):
            next(batches)
            yield BATCH

    return epoch


def official(storage: ImageFiles, workers: int) -> Epoch:
    """The official recipe's loader."""
    num_files = len(set(storage.paths))

    def epoch(_: int, images: int) -> Iterator[int]:
        times = max(1, images // num_files)
        for views, _ in official_loader(storage.root, times, BATCH, workers):
            yield len(views[0])

    return epoch


def lightly(storage: ImageFiles, workers: int) -> Epoch:
    """Lightly's transform and dataset."""
    from benchmarks.peers.lightly_simsiam import lightly_loader

    num_files = len(set(storage.paths))

    def epoch(_: int, images: int) -> Iterator[int]:
        times = max(1, images // num_files)
        for views, _, _ in lightly_loader(storage.root, times, BATCH, workers):
            yield len(views[0])

    return epoch


def packed(storage: ImageFiles) -> Beton:
    """The images as a packed file, written at the first call."""
    content = "\n".join([str(storage.root), *storage.paths])
    digest = hashlib.sha256(content.encode()).hexdigest()[:12]
    file = Path(tempfile.gettempdir()) / f"fastsimsiam-benchmark-{digest}.beton"
    if not file.exists():
        pack(storage, file, PackOptions())
    return open_beton(file)


CONFIGURATIONS: dict[str, Make] = {
    "decode": decode,
    "cpu": ours(
        lambda files, workers: cpu_loader(
            files, LoaderOptions(device=CPU, workers=workers), prefetch=PREFETCH
        )
    ),
    "cpu-color": cpu_color,
    "resident": ours(
        lambda files, workers: resident_loader(
            files, LoaderOptions(device=CPU, workers=workers), prefetch=PREFETCH
        )
    ),
    "ffcv": ours(
        lambda files, workers: FfcvLoader(packed(files), LoaderOptions(device=CPU, workers=workers))
    ),
    "ffcv-stock": ffcv_stock,
    "dali": ours(lambda files, workers: DaliLoader(files, unchecked(workers))),
    "dali-stock": dali_stock,
    "reference-crops": ours(
        lambda files, workers: ReferenceLoader(files, unchecked(workers), full=False)
    ),
    "reference": ours(lambda files, workers: ReferenceLoader(files, unchecked(workers))),
    "official": official,
    "lightly": lightly,
}
# These read half of the images: their epochs take about as long, and starting up stays a small share.
SLOW = (
    "cpu-color",
    "ffcv-stock",
    "dali",
    "dali-stock",
    "reference-crops",
    "reference",
    "official",
    "lightly",
)
RATIOS = (
    ("cpu", "decode"),
    ("cpu", "reference-crops"),
    ("cpu", "reference"),
    ("cpu", "official"),
    ("cpu", "lightly"),
    ("cpu-color", "official"),
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
    """Peak memory of each of three epochs, in MiB."""
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
    for name, rate in result["summary"].items():
        peaks = " ".join(f"{peak:,.0f}" for peak in result["memory"][name]["peak_mib"])
        rows.append(
            f"| {name} | {rate['median']:,.0f} | {rate['median'] / bound:.2f} | "
            f"{rate['spread']:.0%} | {peaks} |"
        )
    times = {pair: f"{ratio:.{2 if ratio < 2 else 1}f}" for pair, ratio in result["ratios"].items()}
    return "\n".join(
        [
            *rows,
            "",
            f"`cpu` is {times['cpu/reference-crops']} times `reference-crops`, "
            f"{times['cpu/reference']} times `reference`, {times['cpu/official']} times "
            f"`official` and {times['cpu/lightly']} times",
            f"`lightly`; with our color on the CPU too (`cpu-color`), "
            f"{times['cpu-color/official']} times `official`.",
            f"`ffcv` is {times['ffcv/ffcv-stock']} times `ffcv-stock`, `dali` "
            f"{times['dali/dali-stock']} times `dali-stock`.",
        ]
    )


def brief(result: dict[str, Any]) -> str:
    """Rates and ratios of an incomplete result, as JSON; the table needs all configurations."""
    return json.dumps({"summary": result["summary"], "ratios": result["ratios"]}, indent=1)


def main() -> None:
    """Runs the command line."""
    parser = regime_parser(__doc__)
    add_data(parser)
    parser.add_argument("--workers", type=int, default=2, help="threads or processes (2)")
    parser.add_argument("--images", type=int, default=2400, help="images per timed epoch (2400)")
    parser.add_argument("--only", nargs="+", choices=CONFIGURATIONS, help="configurations (all)")
    args = parser.parse_args()
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
    argv = to_argv(args, ("data", "workers", "images"))
    samples, failed = run_all("benchmarks.loader", names, args.repeats, argv)
    memory_names = [f"{name}:memory" for name in samples]
    memory, failed_memory = run_all("benchmarks.loader", memory_names, 1, argv)
    rates = {
        name: summary([run["images_per_second"] for run in runs]) for name, runs in samples.items()
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
        "memory": {name.removesuffix(":memory"): runs[0] for name, runs in memory.items()},
        "failed": failed + failed_memory,
    }
    conclude(args, result, brief if args.only or result["failed"] else table)


if __name__ == "__main__":
    main()
