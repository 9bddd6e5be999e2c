r"""A data set of 100 million images: how long its index takes to open, and a batch of its plan.

    python -m benchmarks.scale [--images 100000000] [--shards 10000] [--json FILE]

The shards are files with a hole instead of content, and their index is written as if they had been
read: opening looks at names, sizes and times of the shards, and at the index. It takes about 55 bytes
an image in the cache folder (`XDG_CACHE_HOME`), which is removed at the end.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.harness import write_result
from fastsimsiam.config.views import ViewSpec
from fastsimsiam.plan.batches import TrainPlan
from fastsimsiam.plan.order import BlockOrder, order_at
from fastsimsiam.storage.base import fingerprint
from fastsimsiam.storage.cached_arrays import cache_file
from fastsimsiam.storage.names import Names
from fastsimsiam.storage.open import open_split
from fastsimsiam.storage.packed_parts import Part, save_part
from fastsimsiam.storage.record_files import FileStamp
from fastsimsiam.storage.webdataset import FORM

_BYTES = 100_000
"""Of an image, as of ImageNet's."""
_BATCH = 256
_BATCHES = 50
_MORE = 10**9
"""Samples of a plan without a data set."""


def make(root: Path, images: int, shards: int) -> None:
    """Makes shards without content, and their index."""
    rows = [len(part) for part in np.array_split(np.arange(images), shards)]
    stamps = []
    for shard, count in enumerate(rows):
        path = root / f"{shard:06d}.tar"
        with open(path, "wb") as file:
            file.truncate(count * _BYTES + 10_240)
        stamps.append(FileStamp.of(path))
    # Names of one length, as img2dataset's: written as an array, not one by one.
    digits = np.arange(images)[:, None] // 10 ** np.arange(8, -1, -1) % 10 + ord("0")
    tail = np.tile(np.frombuffer(b".jpg\n", np.uint8), (images, 1))
    content = np.concatenate([digits.astype(np.uint8), tail], axis=1)
    within = np.concatenate([np.arange(count) for count in rows])
    columns = {
        "position": within * _BYTES + 512,
        "length": np.full(images, _BYTES - 512, np.int64),
        "sizes": np.tile(np.array([[375, 500]], np.int32), (images, 1)),
        "orientation": np.ones(images, np.uint8),
        "label": np.arange(images) % 1000,
    }
    part = Part(
        stamps=stamps,
        rows=rows,
        passed_over=[{}] * shards,
        names=Names(content.reshape(-1), np.arange(1, images + 1) * content.shape[1] - 1),
        columns=columns,
        classes=[str(number) for number in range(1000)],
    )
    save_part(cache_file(root, FORM), root, part)


def measure(root: Path) -> dict[str, Any]:
    """Opens the data set, in a process of its own, and draws batches of its plan."""
    # The peak that a new process reports is that of the process which has started it.
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak_mib()
    started = time.perf_counter()
    storage = open_split(root, "train")
    opened = time.perf_counter() - started
    started = time.perf_counter()
    known = fingerprint(storage)
    hashed = time.perf_counter() - started
    after_opening = _peak_mib()
    views = {"specs": (ViewSpec(), ViewSpec()), "image_size": 224, "batch_size": _BATCH}
    plan = TrainPlan(label=storage.label, sizes=storage.sizes, seed=0, **views)
    assert storage.blocks is not None
    blocks = BlockOrder(storage.blocks, 32, 0)
    by_blocks = TrainPlan(label=storage.label, sizes=storage.sizes, seed=0, blocks=blocks, **views)
    last = plan.num_batches - 1
    positions = np.arange(_MORE - _BATCH, _MORE)
    milliseconds = {
        "plan_first": _milliseconds(lambda number: plan.batch(number, 0)),
        "plan_last": _milliseconds(lambda number: plan.batch(number, last)),
        "plan_blocks": _milliseconds(lambda number: by_blocks.batch(0, last // 2 + number)),
        "order_of_a_billion": _milliseconds(lambda number: order_at(positions, _MORE, 0, number)),
    }
    return {
        "images": len(storage),
        "fingerprint": known,
        "open_seconds": opened,
        "fingerprint_seconds": hashed,
        "milliseconds": milliseconds,
        "peak_mib_of_libraries": before,
        "peak_mib_after_opening": after_opening,
        "peak_mib": _peak_mib(),
    }


def _peak_mib() -> float:
    """Largest resident memory of this process, pages of mapped files included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def _milliseconds(draw: Any) -> list[float]:
    """Milliseconds of each of some batches, after a first one."""
    draw(0)
    samples = []
    for number in range(1, _BATCHES + 1):
        started = time.perf_counter()
        draw(number)
        samples.append(1e3 * (time.perf_counter() - started))
    return samples


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    rows = [
        ("opening the data set by its index", f"{result['open_seconds']:.1f} s"),
        ("its fingerprint", f"{result['fingerprint_seconds']:.1f} s"),
    ]
    names = {
        "plan_first": "first batch of an epoch",
        "plan_last": "last batch of an epoch",
        "plan_blocks": "batch with `--shuffle blocks`",
        "order_of_a_billion": "order of a batch of 1e9 samples",
    }
    for key, name in names.items():
        samples = result["milliseconds"][key]
        rows.append((name, f"{median(samples):.2f} ms (largest {max(samples):.2f})"))
    rows.append(("resident memory, peak: libraries", f"{result['peak_mib_of_libraries']:,.0f} MiB"))
    rows.append(("after opening, with fingerprint", f"{result['peak_mib_after_opening']:,.0f} MiB"))
    rows.append(("after all batches", f"{result['peak_mib']:,.0f} MiB"))
    lines = [f"| {result['images']:,} images in {result['shards']:,} shards | |", "|---|---:|"]
    return "\n".join(lines + [f"| {name} | {value} |" for name, value in rows])


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument("--images", type=int, default=10**8)
    parser.add_argument("--shards", type=int, default=10**4)
    parser.add_argument("--measure", type=Path, help="folder of shards that `make` has made")
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure)))
        return
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"XDG_CACHE_HOME": f"{folder}/cache"}
        os.environ["XDG_CACHE_HOME"] = environment["XDG_CACHE_HOME"]
        root = Path(folder) / "shards"
        root.mkdir()
        make(root, args.images, args.shards)
        command = [sys.executable, "-m", "benchmarks.scale", "--measure", str(root)]
        done = subprocess.run(
            command, env=environment, check=True, stdout=subprocess.PIPE, text=True
        )
    result = {"regime": "scale", "shards": args.shards, **json.loads(done.stdout)}
    print(table(result))
    if args.json:
        write_result(args.json, result)


if __name__ == "__main__":
    main()
