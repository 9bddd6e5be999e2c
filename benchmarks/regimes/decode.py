"""Regime "decode": JPEG files to RGB pixels, nothing else. Images per second of all threads together.

    python -m benchmarks.decode --data PHOTOS --json benchmarks/results/decode.json

Configurations, all on the same files:
  ours                what all our loaders use: libjpeg-turbo, accurate DCT, smooth chroma upsampling
                      (bit-identical to PIL), file and frame in reused memory
  fresh-memory        the same, but newly allocated memory for each frame
  fast-dct            fresh-memory with the fast DCT and coarse chroma, as FFCV decodes: other pixels
  torchcodec          torchcodec on threads
  pillow              PIL on threads
  dali                DALI's decoder on the CPU
  torchcodec-nvjpeg   torchcodec's binding of nvJPEG, as the loader nvjpeg has it (GPU)
  dali-mixed          DALI's decoder on the GPU
"""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor

from benchmarks.harness import (
    add_data,
    conclude,
    photographs,
    regime_parser,
    run_all,
    summary,
    to_argv,
)
from fastsimsiam.loaders.decode import read_rgb
from fastsimsiam.loaders.device_decode import decode_jpegs
from fastsimsiam.storage.class_folder import open_split
from fastsimsiam.storage.image_files import ImageFiles
from fastsimsiam.system.optional import has_dali

_DALI_BATCH = 32
_NVJPEG_BATCH = 64

Decode = Callable[[ImageFiles, list[int], int], Iterator[int]]
"""(files, indices of the images, number of threads) -> numbers of decoded images, one per step."""


def threaded(decode_one: Callable[[ImageFiles, int], object]) -> Decode:
    """Runs a decoder of single files on threads."""

    def decode(files: ImageFiles, index: list[int], workers: int) -> Iterator[int]:
        def count(number: int) -> int:
            decode_one(files, number)
            return 1

        with ThreadPoolExecutor(workers) as pool:
            yield from pool.map(count, index, chunksize=8)

    return decode


def fresh_memory(files: ImageFiles, number: int) -> None:
    """libjpeg-turbo with newly allocated memory for each file and frame."""
    simplejpeg.decode_jpeg(files.file_of(number).read_bytes(), "RGB")


def fast_dct(files: ImageFiles, number: int) -> None:
    """libjpeg-turbo with its fastest settings."""
    simplejpeg.decode_jpeg(
        files.file_of(number).read_bytes(), "RGB", fastdct=True, fastupsample=True
    )


def encoded(files: ImageFiles, number: int) -> Tensor:
    """The bytes of a file."""
    return torch.from_numpy(np.fromfile(files.file_of(number), np.uint8))


def torchcodec_cpu(files: ImageFiles, number: int) -> None:
    """Torchcodec's binding of libjpeg-turbo."""
    decode_jpegs([encoded(files, number)], torch.device("cpu"))


def pillow(files: ImageFiles, number: int) -> None:
    """PIL."""
    with Image.open(files.file_of(number)) as image:
        np.asarray(image.convert("RGB"))


def nvjpeg(files: ImageFiles, index: list[int], workers: int) -> Iterator[int]:
    """Torchcodec's binding of nvJPEG, by batches; threads read the files."""
    with ThreadPoolExecutor(workers) as pool:
        for first in range(0, len(index), _NVJPEG_BATCH):
            batch = index[first : first + _NVJPEG_BATCH]
            data = list(pool.map(lambda number: encoded(files, number), batch))
            decode_jpegs(data, torch.device("cuda"))
            torch.cuda.synchronize()
            yield len(batch)


def dali(device: str) -> Decode:
    """DALI's reader and decoder, on the device `cpu` or `mixed` (the GPU)."""

    def decode(files: ImageFiles, index: list[int], workers: int) -> Iterator[int]:
        from nvidia.dali import fn, pipeline_def, types

        @pipeline_def
        def frames() -> Any:
            data, _ = fn.readers.file(files=[str(files.file_of(number)) for number in index])
            return fn.decoders.image(data, device=device, output_type=types.RGB)

        pipeline = frames(
            batch_size=_DALI_BATCH, num_threads=workers, device_id=0 if device == "mixed" else None
        )
        pipeline.build()
        for _ in range(len(index) // _DALI_BATCH):
            pipeline.run()
            yield _DALI_BATCH

    return decode


CONFIGURATIONS: dict[str, Decode] = {
    "ours": threaded(read_rgb),
    "fresh-memory": threaded(fresh_memory),
    "fast-dct": threaded(fast_dct),
    "torchcodec": threaded(torchcodec_cpu),
    "pillow": threaded(pillow),
    "dali": dali("cpu"),
    "torchcodec-nvjpeg": nvjpeg,
    "dali-mixed": dali("mixed"),
}
GPU_ONLY = ("torchcodec-nvjpeg", "dali-mixed")


def measure(name: str, data: Path, workers: int, images: int) -> dict[str, Any]:
    """Times one configuration in this process."""
    files = open_split(data, "train")
    # Only JPEGs without an orientation flag, which all configurations decode alike.
    jpegs = [
        number
        for number in np.flatnonzero(files.orientation == 1).tolist()
        if bytes(files.read(number)[:2]) == b"\xff\xd8"
    ]
    assert jpegs, f"{data} has no JPEG files"
    index = (jpegs * (images // len(jpegs) + 1))[:images]
    decode = CONFIGURATIONS[name]
    for _ in decode(files, index[: max(len(jpegs), _DALI_BATCH)], workers):
        pass
    batches = decode(files, index, workers)
    first = next(batches)  # starting up is not timed
    started = time.perf_counter()
    count = sum(batches)
    seconds = time.perf_counter() - started
    assert first + count > 0.9 * images
    return {"images_per_second": count / seconds, "seconds": seconds}


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    bound = result["summary"]["ours"]["median"]
    rows = ["| decoder | images/s | of ours | spread |", "|---|---:|---:|---:|"]
    for name, rate in result["summary"].items():
        rows.append(
            f"| {name} | {rate['median']:,.0f} | {rate['median'] / bound:.2f} | "
            f"{rate['spread']:.0%} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Runs the command line."""
    parser = regime_parser(__doc__)
    add_data(parser)
    parser.add_argument("--workers", type=int, default=2, help="threads (2)")
    parser.add_argument("--images", type=int, default=2400, help="images per run (2400)")
    parser.add_argument("--only", nargs="+", choices=CONFIGURATIONS, help="decoders (all)")
    args = parser.parse_args()
    data = photographs(args)
    if args.measure:
        print(json.dumps(measure(args.measure, data, args.workers, args.images)))
        return
    gpu = torch.cuda.is_available()
    names = args.only or [
        name
        for name in CONFIGURATIONS
        if (gpu or name not in GPU_ONLY) and (has_dali() or not name.startswith("dali"))
    ]
    if "ours" not in names:
        names.insert(0, "ours")
    argv = to_argv(args, ("data", "workers", "images"))
    samples, failed = run_all("benchmarks.decode", names, args.repeats, argv)
    result = {
        "regime": "decode",
        "workers": args.workers,
        "samples": samples,
        "failed": failed,
        "summary": {
            name: summary([run["images_per_second"] for run in runs])
            for name, runs in samples.items()
        },
    }
    conclude(args, result, table)


if __name__ == "__main__":
    main()
