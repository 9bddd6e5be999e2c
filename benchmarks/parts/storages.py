r"""How the images are stored: rates of the loader `cpu` and of bare reading, beside class folders.

    python -m benchmarks.storages [--data PHOTOGRAPHS] [--rounds 15] [--json FILE]

The same photographs in each form, in turns in one process: warm from the page cache, and cold after the
system was asked to drop their files from it. Ratios are those of a round, whose forms were measured
right after each other.
"""

import json
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.harness import add_data, part_parser, photographs, write_result
from fastsimsiam.loaders.base import LoaderOptions
from fastsimsiam.loaders.registry import build_loader
from fastsimsiam.plan.batches import TrainPlan
from fastsimsiam.plan.order import epoch_order
from fastsimsiam.recipes import catalogue
from fastsimsiam.storage.base import Storage
from fastsimsiam.storage.open import open_split
from fastsimsiam.system.resources import num_workers
from fastsimsiam.tools.pack import PackOptions, pack

_READ_THREADS = 8
_BATCH = 50


def as_tar(data: Path, target: Path) -> Path:
    """A tar of class folders."""
    with tarfile.open(target / "images.tar", "w") as tar:
        for folder in sorted(data.iterdir()):
            tar.add(folder, folder.name)
    return target / "images.tar"


def as_beton(data: Path, target: Path) -> Path:
    """A packed file."""
    pack(open_split(data, "train"), target / "images.beton", PackOptions())
    return target / "images.beton"


def as_arrow(data: Path, target: Path) -> Path:
    """A folder as `datasets` saves it."""
    import pyarrow as pa

    storage = open_split(data, "train")
    names = list(storage.classes)
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [("image", image), ("label", pa.int64())],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    folder = target / "saved"
    folder.mkdir()
    file = folder / "data-00000-of-00001.arrow"
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for start in range(0, len(storage), 100):
            numbers = range(start, min(start + 100, len(storage)))
            rows = [{"bytes": bytes(storage.read(i)), "path": f"{i}.jpg"} for i in numbers]
            labels = storage.label[start : start + 100].tolist()
            columns = [pa.array(rows, image), pa.array(labels, pa.int64())]
            writer.write_batch(pa.record_batch(columns, schema=schema))
    files = [{"filename": file.name}]
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_split": "train"}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    return folder


FORMS: dict[str, Callable[[Path, Path], Path]] = {
    "class folders": lambda data, target: data,
    "tar": as_tar,
    "Arrow": as_arrow,
    "beton": as_beton,
}
MEASURES = ("loader warm", "reading warm", "loader cold", "reading cold")


def loader_epoch(storage: Storage, epoch: int) -> float:
    """Images per second of an epoch of the loader `cpu`, without the next one begun."""
    plan = TrainPlan(
        label=storage.label,
        sizes=storage.sizes,
        seed=0,
        specs=catalogue.recipe("imagenet-100ep").views,
        image_size=224,
        batch_size=_BATCH,
    )
    options = LoaderOptions(device=torch.device("cpu"), check_images=False)
    with closing(build_loader("cpu", storage, options)) as loader:
        started = time.perf_counter()
        images = sum(len(batch.index) for batch in loader.iterate(plan, epoch))
        return images / (time.perf_counter() - started)


def read_all(storage: Storage, epoch: int) -> float:
    """Images per second that threads read in random order."""
    order = epoch_order(len(storage), 0, epoch).tolist()
    started = time.perf_counter()
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        read = sum(pool.map(lambda number: len(storage.read(number)) > 0, order))
    return read / (time.perf_counter() - started)


def drop_from_cache(storage: Storage) -> None:
    """Asks the system to drop the files of all images from the page cache."""
    for path in {storage.file_of(number) for number in range(len(storage))}:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def rounds(storages: dict[str, Storage], count: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Yields a measure and its images per second by form, round by round."""
    names = list(storages)
    for number in range(count + 1):
        for measure in MEASURES:
            what, _, state = measure.partition(" ")
            run = loader_epoch if what == "loader" else read_all
            rates = {}
            for name in names[number % len(names) :] + names[: number % len(names)]:
                if state == "cold":
                    drop_from_cache(storages[name])
                rates[name] = run(storages[name], number)
            if number:  # the first one fills the cache, and compiles
                yield measure, rates


def table(result: dict[str, Any]) -> str:
    """Images per second, and their ratios to those of class folders, as Markdown."""
    samples: dict[str, dict[str, list[float]]] = result["samples"]
    lines = ["| form | " + " | ".join(MEASURES) + " |", "|---|" + "---|" * len(MEASURES)]
    for form in FORMS:
        cells = []
        for measure in MEASURES:
            rates, folders = samples[measure][form], samples[measure]["class folders"]
            ratios = sorted(a / b for a, b in zip(rates, folders, strict=True))
            spread = f"{ratios[len(ratios) // 4]:.2f} to {ratios[-1 - len(ratios) // 4]:.2f}"
            ratio = "" if form == "class folders" else f" ({median(ratios):.2f}; {spread})"
            cells.append(f"{median(rates):,.0f}{ratio}")
        lines.append(f"| {form} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Runs the command line."""
    parser = part_parser(__doc__, rounds=15)
    add_data(parser)
    args = parser.parse_args()
    data = photographs(args)
    samples: dict[str, dict[str, list[float]]] = {
        measure: {form: [] for form in FORMS} for measure in MEASURES
    }
    with tempfile.TemporaryDirectory() as folder:
        storages: dict[str, Storage] = {}
        for form, make in FORMS.items():
            target = Path(folder) / form.replace(" ", "-")
            target.mkdir()
            storages[form] = open_split(make(data, target), "train")
        for measure, rates in rounds(storages, args.rounds):
            for form, rate in rates.items():
                samples[measure][form].append(rate)
        images, size = len(storages["tar"]), storages["tar"].bytes_total
    result: dict[str, Any] = {
        "regime": "storages",
        "images": images,
        "bytes": size,
        "workers": num_workers(None),
        "samples": samples,
    }
    print(table(result))
    if args.json:
        write_result(args.json, result)


if __name__ == "__main__":
    main()
