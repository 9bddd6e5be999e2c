"""Regime "loader": decode and crops, no model. Images per second; each yields two 224-pixel views.

    python -m benchmarks.loader --data PHOTOS --json benchmarks/results/loader.json

Configurations, all on the same files and with the same number of workers:
  decode            libjpeg-turbo alone, reused buffers: the bound
  folder            decode once, two antialiased crops; colour is left to the device
  reference-crops   PIL and a DataLoader: decode and crops alone
  reference         PIL and a DataLoader doing the official recipe's full job, colour included
  folder-colour     folder, and our colour on the CPU as well
  ffcv              a packed file through FFCV's pipeline with our operation
  ffcv-stock        FFCV as it comes: one pipeline per view (benchmarks/peers/stock_ffcv.py)
  dali              DALI on the CPU, the plan's boxes
  dali-stock        DALI with two random_resized_crops (benchmarks/peers/stock_dali.py)
  official          the same job as users write it: ImageFolder, torchvision's transforms, float
                    tensors normalised in the workers (benchmarks/peers/official.py)
"""

import argparse
import functools
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import run_all, summary, write
from benchmarks.peers.official import official_loader
from fastsimsiam import recipes
from fastsimsiam.augment.photometric import Photometric
from fastsimsiam.loaders.batch import Loader
from fastsimsiam.loaders.dali_loader import DaliLoader
from fastsimsiam.loaders.decode import read_rgb
from fastsimsiam.loaders.ffcv_loader import FfcvLoader
from fastsimsiam.loaders.folder_loader import folder_loader
from fastsimsiam.loaders.reference_loader import ReferenceLoader
from fastsimsiam.pack import PackOptions, pack
from fastsimsiam.plan.batches import TrainPlan
from fastsimsiam.storage.beton import Beton, open_beton
from fastsimsiam.storage.class_folder import ClassFolder, open_split

CPU = torch.device("cpu")
EPOCHS_FOR_MEMORY = 10


def repeated(storage: ClassFolder, images: int) -> ClassFolder:
    """The same files again and again, until there are at least `images`."""
    times = -(-images // len(storage))
    return replace(
        storage,
        paths=list(storage.paths) * times,
        label=np.tile(storage.label, times),
        sizes=np.tile(storage.sizes, (times, 1)),
        orientation=np.tile(storage.orientation, times),
    )


def plan_of(storage: ClassFolder) -> TrainPlan:
    """SimSiam's two views at 224 pixels."""
    recipe = recipes.get("imagenet-100ep")
    return TrainPlan(
        label=storage.label, sizes=storage.sizes, seed=0, specs=recipe.views, image_size=224,
        batch_size=50,
    )  # fmt: skip


def resident_mib() -> float:
    """Memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def decode_all(storage: ClassFolder, workers: int) -> None:
    """Decodes every image and throws it away."""

    def decode(index: int) -> None:
        read_rgb(storage, index)

    upright = np.flatnonzero(storage.orientation == 1).tolist()
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(decode, upright, chunksize=8):
            pass


def load_all(loader: Loader, storage: ClassFolder, epoch: int) -> None:
    """Makes every batch of an epoch."""
    for batch in loader.iterate(plan_of(storage), epoch):
        assert batch.crops[0].shape[1:] == (2, 224, 224, 3)


LOADERS: dict[str, Callable[[ClassFolder, int], Loader]] = {
    "folder": lambda storage, workers: folder_loader(storage, device=CPU, workers=workers),
    "ffcv": lambda storage, workers: FfcvLoader(packed(storage), device=CPU, workers=workers),
    "dali": lambda storage, workers: DaliLoader(storage, device=CPU, workers=workers),
    "reference-crops": lambda storage, workers: ReferenceLoader(
        storage, device=CPU, workers=workers, full=False
    ),
    "reference": lambda storage, workers: ReferenceLoader(storage, device=CPU, workers=workers),
}


SLOW = ("reference-crops", "reference", "official", "folder-colour", "dali", "dali-stock")
NAMES = ["decode", "folder", "folder-colour", "ffcv", "ffcv-stock", "dali", "dali-stock"]
NAMES += ["reference-crops", "reference", "official"]


def packed(storage: ClassFolder) -> Beton:
    """The images as a packed file, made at the first call."""
    file = Path(tempfile.gettempdir()) / f"fastsimsiam-benchmark-{len(storage)}.beton"
    if not file.exists():
        pack(storage, file, PackOptions())
    return open_beton(file)


def timed(batches: Iterator[Any]) -> tuple[int, float]:
    """Batches and seconds, after the first two of them."""
    next(batches)
    next(batches)
    started = time.perf_counter()
    return sum(1 for _ in batches), time.perf_counter() - started


@functools.cache
def compiled_colour() -> Photometric:
    """Our colour; eager, a CPU needs many times as long, so whoever wants it there compiles it."""
    photometric = Photometric(recipes.get("imagenet-100ep").views, (224, 224))
    photometric.compile(fullgraph=True, dynamic=False)
    return photometric


def colour(loader: Loader, storage: ClassFolder, epoch: int) -> None:
    """Makes every batch of an epoch, colour and normalisation included."""
    plan = plan_of(storage)
    photometric = compiled_colour()
    with torch.inference_mode():
        for batch in loader.iterate(plan, epoch):
            photometric(batch.crops, batch.photometric)


def measure(name: str, data: Path, workers: int, images: int) -> dict[str, Any]:
    """One configuration in this process: a warm-up, then one timed pass."""
    photographs = open_split(data, "train")
    if name == "memory":
        return measure_memory(repeated(photographs, 400), workers)
    # The slow ones get fewer images: the same time, and the start of their processes still is small.
    many = repeated(photographs, images // 4 if name in SLOW else images)
    if name == "decode":
        decode_all(photographs, workers)
        started = time.perf_counter()
        decode_all(many, workers)
        count = int((many.orientation == 1).sum())
    elif name == "official":
        times = len(many) // len(photographs)
        for _ in official_loader(data, 1, 50, workers):
            pass
        batches = official_loader(data, times, 50, workers)
        started = time.perf_counter()
        count = sum(len(views[0]) for views, _ in batches)
    elif name == "ffcv-stock":
        from benchmarks.peers.stock_ffcv import stock_ffcv_loader

        loader = stock_ffcv_loader(packed(many).root, 50, workers)
        for _ in loader:  # compiles
            pass
        started = time.perf_counter()
        count = sum(len(views[0]) for views in loader)
    elif name == "dali-stock":
        from benchmarks.peers.stock_dali import stock_dali_batches

        batches, seconds = timed(stock_dali_batches(data, len(many), 50, workers))
        count, started = batches * 50, time.perf_counter() - seconds
    else:
        loader = LOADERS[name.removesuffix("-colour")](many, workers)
        work = colour if name.endswith("-colour") else load_all
        # The first epoch warms up; ffcv knows the images of its file alone.
        work(loader, photographs if name != "ffcv" else many, 0)
        started = time.perf_counter()
        work(loader, many, 1)
        count = plan_of(many).num_batches * 50
    seconds = time.perf_counter() - started
    if name.removesuffix("-colour") in LOADERS:
        loader.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if name in ("reference", "reference-crops", "official"):  # the largest worker, for each of them
        peak += workers * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {"images_per_second": count / seconds, "seconds": seconds, "peak_mib": peak}


def measure_memory(storage: ClassFolder, workers: int) -> dict[str, Any]:
    """Resident memory after each of ten epochs through `folder`."""
    loader = folder_loader(storage, device=CPU, workers=workers)
    after = []
    for epoch in range(EPOCHS_FOR_MEMORY):
        load_all(loader, storage, epoch)
        after.append(resident_mib())
    loader.close()
    return {"resident_mib": after}


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    runs = len(result["samples"]["decode"])
    rows = [
        f"| loader | images/s | of decode | spread of {runs} runs | peak MiB |",
        "|---|---:|---:|---:|---:|",
    ]
    bound = result["summary"]["decode"]["median"]
    for name, figure in result["summary"].items():
        peak = max(sample["peak_mib"] for sample in result["samples"][name])
        rows.append(
            f"| {name} | {figure['median']:,.0f} | {figure['median'] / bound:.2f} | "
            f"{figure['spread']:.0%} | {peak:,.0f} |"
        )
    memory = result["memory"]["resident_mib"]
    ratios = result["ratios"]
    return "\n".join(
        [
            *rows,
            "",
            f"`folder` is {ratios['folder/reference-crops']:.1f} times `reference-crops`, "
            f"{ratios['folder/reference']:.1f} times `reference`, "
            f"{ratios['folder/official']:.1f} times `official`, {ratios['folder-colour/official']:.1f} "
            f"times with our colour on the CPU too;\n`ffcv` is {ratios['ffcv/ffcv-stock']:.1f} times "
            f"`ffcv-stock`, `dali` {ratios['dali/dali-stock']:.2f} times `dali-stock`. `folder`:\n"
            f"its memory is {memory[1]:.0f} MiB after 2 epochs and {memory[-1]:.0f} MiB after "
            f"{len(memory)}.",
        ]
    )


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="class folders of photographs")
    parser.add_argument("--workers", type=int, default=2, help="threads or processes (2)")
    parser.add_argument("--images", type=int, default=4000, help="images per timed pass (4000)")
    parser.add_argument("--repeats", type=int, default=5, help="runs per configuration (5)")
    parser.add_argument("--json", type=Path, help="file that receives the result")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.data, args.workers, args.images)))
        return
    passed = [
        "--data",
        str(args.data),
        "--workers",
        str(args.workers),
        "--images",
        str(args.images),
    ]
    photographs = open_split(args.data, "train")
    packed(repeated(photographs, args.images))  # not within a measurement
    samples = run_all("benchmarks.loader", NAMES, args.repeats, passed)
    memory = run_all("benchmarks.loader", ["memory"], 1, passed)["memory"][0]
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
            f"folder/{other}": rates["folder"]["median"] / rates[other]["median"]
            for other in ("decode", "reference-crops", "reference", "official")
        }
        | {
            f"{ours}/{other}": rates[ours]["median"] / rates[other]["median"]
            for ours, other in (
                ("ffcv", "decode"),
                ("ffcv", "ffcv-stock"),
                ("dali", "dali-stock"),
                ("folder-colour", "reference"),
                ("folder-colour", "official"),
            )
        },
        "memory": memory,
    }
    print(table(result))
    if args.json:
        write(args.json, result)


if __name__ == "__main__":
    main()
