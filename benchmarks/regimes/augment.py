"""Regime "augment": color of views that lie on the device as uint8 crops. No loader, no network.

    python -m benchmarks.augment --json benchmarks/results/augment.json

Configurations, SimSiam's two views of the same batch:
  eager         ours, tensor code as it stands
  compiled      ours, compiled as the trainer has it
  products      and the blur by products in half precision, instead of shifted sums in float32 (GPU)
  torchvision   torchvision's transforms on uint8 tensors, view by view, as one writes them
  pillow        the official recipe's transforms on PIL images, view by view (CPU)

All end with normalized views on the device. "images/s" counts source images of two views.
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

from benchmarks.harness import conclude, parser, run_all, summary, words_of
from benchmarks.peers.official import color
from fastsimsiam.augment import blur
from fastsimsiam.augment.photometric import IMAGENET_MEAN, IMAGENET_STD, Photometric
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
    """Crops and parameters of a batch; the crops are a few made-up photographs again and again."""
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


def ours(device: torch.device, image_size: int, *, compiled: bool) -> Work:
    """Our photometric part, into the dtype that the device's network takes."""
    specs = catalogue.recipe("imagenet-100ep").views
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    photometric = Photometric(specs, (image_size, image_size), dtype)
    if compiled:
        photometric.compile_alone()
    return lambda batch: photometric(batch.crops, batch.photometric)


def half_products(planes: Tensor, weight: Tensor) -> Tensor:
    """`blur_by_shifts` on a GPU's matrix units: half precision has 11 bits, and views end with 8."""
    return blur.blur_by_products(planes.half(), weight).float()


def products(device: torch.device, image_size: int) -> Work:
    """Ours, compiled, with another blur for the rest of this process."""
    blur.blur_by_shifts = half_products
    return ours(device, image_size, compiled=True)


def torchvision(device: torch.device, image_size: int) -> Work:
    """Torchvision's transforms on tensors. A batch at once would get one draw for all of it."""
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([v2.GaussianBlur(13, (0.1, 2.0))], p=0.5),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )

    def work(batch: Batch) -> list[Tensor]:
        views = batch.crops[0].flatten(0, 1).permute(0, 3, 1, 2)
        return [transform(view) for view in views]

    return work


def pillow(device: torch.device, image_size: int) -> Work:
    """The official recipe's color, which takes and gives what it does in a DataLoader's worker."""
    transform = color()

    def work(batch: Batch) -> list[Tensor]:
        views = batch.crops[0].flatten(0, 1).numpy()
        return [transform(Image.fromarray(view)) for view in views]

    return work


CONFIGURATIONS: dict[str, Callable[[torch.device, int], Work]] = {
    "eager": lambda device, image_size: ours(device, image_size, compiled=False),
    "compiled": lambda device, image_size: ours(device, image_size, compiled=True),
    "products": products,
    "torchvision": torchvision,
    "pillow": pillow,
}
CPU_ONLY = ("pillow",)
GPU_ONLY = ("products",)


def measure(
    name: str, images: int, image_size: int, threads: int | None = None, seconds: float = _SECONDS
) -> dict[str, Any]:
    """Times one configuration in this process."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if threads:
        torch.set_num_threads(threads)
    batch = batch_of(images, image_size, device)
    work = CONFIGURATIONS[name](device, image_size)
    taken = []
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
            taken.append(time.perf_counter() - started)
    return {"batch_seconds": taken, "warm_up_seconds": warm_up}


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    rows = [
        f"{result['image_size']} pixels, batches of {result['batch_size']}:",
        "",
        "| color | images/s | times pillow | spread |",
        "|---|---:|---:|---:|",
    ]
    least = min(found["median"] for found in result["summary"].values())
    yardstick = result["summary"].get("pillow", {"median": least})["median"]
    if "pillow" not in result["summary"]:
        rows[2] = rows[2].replace("pillow", "the slowest")
    for name, found in result["summary"].items():
        rows.append(
            f"| {name} | {found['median']:,.0f} | {found['median'] / yardstick:.1f} | "
            f"{found['spread']:.0%} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Runs the command line."""
    gpu = torch.cuda.is_available()
    options = parser(__doc__)
    options.add_argument("--image-size", type=int, default=224, help="pixels (224)")
    options.add_argument("--batch-size", type=int, default=256 if gpu else 32, help="images")
    options.add_argument("--threads", type=int, help="of torch, on a CPU (as torch has it)")
    options.add_argument("--only", nargs="+", choices=CONFIGURATIONS, help="configurations (all)")
    args = options.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.batch_size, args.image_size, args.threads)))
        return
    elsewhere = CPU_ONLY if gpu else GPU_ONLY
    names = args.only or [name for name in CONFIGURATIONS if name not in elsewhere]
    passed = words_of(args, ("image_size", "batch_size", "threads"))
    samples, failed = run_all("benchmarks.augment", names, args.repeats, passed)
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
