"""Regime "augment": color augmentation of uint8 crops that are on the device. No loader, no network.

    python -m benchmarks.augment --json benchmarks/results/augment.json

Configurations, for SimSiam's two views of the same batch:
  eager         ours, not compiled
  compiled      ours, compiled as in the trainer
  products      compiled, blur by matrix products in half precision instead of shifted sums in float32
                (GPU)
  fused         compiled, the pixels by the Triton kernels of fastsimsiam/augment/kernels.py (GPU)
  torchvision   torchvision's transforms on uint8 tensors, one view at a time
  pillow        the official recipe's transforms on PIL images, one view at a time (CPU)

All return normalized views on the device. "images/s" counts source images, each with two views.
"""

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.harness import conclude, regime_parser, run_all, summary, to_argv
from benchmarks.peers.official import color
from fastsimsiam.augment import blur
from fastsimsiam.augment.photometric import Photometric
from fastsimsiam.config.views import IMAGENET_PIXELS
from fastsimsiam.doctor.measure import wait_for
from fastsimsiam.doctor.synthetic import photograph
from fastsimsiam.loaders.base import Batch, assemble
from fastsimsiam.plan.batches import TrainPlan
from fastsimsiam.recipes import catalogue

Work = Callable[[Batch], object]
_SECONDS = 5.0
_WARM_UP = 3
_PICTURES = 8


def batch_of(images: int, image_size: int, device: torch.device) -> Batch:
    """A batch with its color parameters; the crops repeat a few synthetic photographs."""
    specs = catalogue.recipe("imagenet-100ep").views
    sizes = np.full((images, 2), 500, np.int32)
    plan = TrainPlan(
        label=np.zeros(images, np.int64),
        sizes=sizes,
        seed=0,
        specs=specs,
        image_size=image_size,
        batch_size=images,
    )
    rng = np.random.default_rng(0)
    pictures = [np.asarray(photograph(rng, image_size, image_size)) for _ in range(_PICTURES)]
    crops = np.stack(
        [
            np.stack([pictures[(2 * row + view) % _PICTURES] for view in range(2)])
            for row in range(images)
        ]
    )
    return assemble(plan.batch(0, 0), (torch.from_numpy(crops),)).to(device)


def ours(device: torch.device, image_size: int, *, compiled: bool, fused: bool = False) -> Work:
    """`Photometric`, with output in the dtype of the network on this device."""
    specs = catalogue.recipe("imagenet-100ep").views
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    photometric = Photometric(specs, (image_size, image_size), dtype, fused=fused)
    if compiled:
        photometric.compile_alone()
    return lambda batch: photometric(batch.crops, batch.photometric)


def half_products(planes: Tensor, weight: Tensor) -> Tensor:
    """Blur on a GPU's matrix units; half precision has 11 bits of mantissa, a pixel has 8 bits."""
    return blur.blur_by_products(planes.half(), weight).float()


def products(device: torch.device, image_size: int) -> Work:
    """Ours, compiled, with `half_products` as the blur; replaces the blur of the whole process."""
    blur.blur_by_shifts = half_products
    return ours(device, image_size, compiled=True)


def torchvision(device: torch.device, image_size: int) -> Work:
    """Torchvision's transforms, view by view: on a batch they would draw one set of parameters."""
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([v2.GaussianBlur(13, (0.1, 2.0))], p=0.5),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_PIXELS.mean, IMAGENET_PIXELS.std),
        ]
    )

    def work(batch: Batch) -> list[Tensor]:
        views = batch.crops[0].flatten(0, 1).permute(0, 3, 1, 2)
        return [transform(view) for view in views]

    return work


def pillow(device: torch.device, image_size: int) -> Work:
    """The official recipe's color: PIL image to normalized tensor, as in a DataLoader's worker."""
    transform = color()

    def work(batch: Batch) -> list[Tensor]:
        views = batch.crops[0].flatten(0, 1).numpy()
        return [transform(Image.fromarray(view)) for view in views]

    return work


CONFIGURATIONS: dict[str, Callable[[torch.device, int], Work]] = {
    "eager": lambda device, image_size: ours(device, image_size, compiled=False),
    "compiled": lambda device, image_size: ours(device, image_size, compiled=True),
    "products": products,
    "fused": lambda device, image_size: ours(device, image_size, compiled=True, fused=True),
    "torchvision": torchvision,
    "pillow": pillow,
}
CPU_ONLY = ("pillow",)
GPU_ONLY = ("products", "fused")


def measure(
    name: str, images: int, image_size: int, threads: int | None = None, seconds: float = _SECONDS
) -> dict[str, Any]:
    """Times one configuration in this process."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if threads:
        torch.set_num_threads(threads)
    batch = batch_of(images, image_size, device)
    work = CONFIGURATIONS[name](device, image_size)
    batch_seconds = []
    with torch.inference_mode():
        started = time.perf_counter()
        for _ in range(_WARM_UP):
            work(batch)
        wait_for(device)
        warm_up = time.perf_counter() - started
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            started = time.perf_counter()
            work(batch)
            wait_for(device)
            batch_seconds.append(time.perf_counter() - started)
    return {"batch_seconds": batch_seconds, "warm_up_seconds": warm_up}


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    rows = [
        f"{result['image_size']} pixels, batches of {result['batch_size']}:",
        "",
        "| color | images/s | times pillow | spread |",
        "|---|---:|---:|---:|",
    ]
    slowest = min(rate["median"] for rate in result["summary"].values())
    baseline = result["summary"].get("pillow", {"median": slowest})["median"]
    if "pillow" not in result["summary"]:
        rows[2] = rows[2].replace("pillow", "the slowest")
    for name, rate in result["summary"].items():
        rows.append(
            f"| {name} | {rate['median']:,.0f} | {rate['median'] / baseline:.1f} | "
            f"{rate['spread']:.0%} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Runs the command line."""
    gpu = torch.cuda.is_available()
    parser = regime_parser(__doc__)
    parser.add_argument(
        "--image-size", type=int, default=224, help="side of the views in pixels (224)"
    )
    parser.add_argument(
        "--batch-size", type=int, default=256 if gpu else 32, help="images per batch"
    )
    parser.add_argument("--threads", type=int, help="torch's threads on a CPU (torch's default)")
    parser.add_argument("--only", nargs="+", choices=CONFIGURATIONS, help="configurations (all)")
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.batch_size, args.image_size, args.threads)))
        return
    unsupported = CPU_ONLY if gpu else GPU_ONLY
    names = args.only or [name for name in CONFIGURATIONS if name not in unsupported]
    argv = to_argv(args, ("image_size", "batch_size", "threads"))
    samples, failed = run_all("benchmarks.augment", names, args.repeats, argv)
    result = {
        "regime": "augment",
        "image_size": args.image_size,
        "batch_size": args.batch_size,
        "samples": samples,
        "failed": failed,
        "summary": {
            name: summary(
                [args.batch_size / statistics.median(run["batch_seconds"]) for run in runs]
            )
            for name, runs in samples.items()
        },
    }
    conclude(args, result, table)


if __name__ == "__main__":
    main()
