"""From figures to what they mean: what holds a machine back, what to change, how long it will take.

Pure functions; nothing here measures anything. Rates are images per second on one device.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from fastsimsiam.loaders.registry import RESIDENT_DEVICE_SHARE, RESIDENT_HOST_SHARE

_LEAST_UNCERTAINTY = 0.05
"""What a machine's speed changes between a measurement and a run, at the least."""
_LARGE_SHARE = 0.25
_MUCH_LARGER = 2.0


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What was measured, and what it was measured on.

    Attributes:
        gpu: training runs on a GPU, so loader and step run side by side.
        storage, decode, loader, augment, step, train, features: rates. `storage` is reading files
            alone, `decode` decoding alone on all threads, `loader` batches, `augment` color, `step`
            the synthetic step, `train` everything together, `features` the kNN evaluation.
        samples: rates of parts of the measurement of `train`.
        data_wait: share of the time of `train` spent waiting for the loader.
        compile_seconds: what the first step took beyond its work.
        loader_name: `folder`, `ffcv`, `dali`, `resident` or `reference`.
        workers, cores: loader threads, and CPU cores of this process.
        decoded_bytes: of the whole training split.
        device_memory, device_free: bytes; of the host where there is no GPU.
        mean_pixels: of an image.
        crop_pixels: of a view.
        packed: the data set is a packed file.
        has_dali: an optional part.
        mend_for_compiling: what to do before torch.compile works here, or None.
        precision: `bfloat16` or `float32`.
        compiled: `step`, `color` or `off`.
        batch_size: images per step.
    """

    gpu: bool
    storage: float
    decode: float
    loader: float
    augment: float
    step: float
    train: float
    features: float
    samples: Sequence[float]
    data_wait: float
    compile_seconds: float
    loader_name: str
    workers: int
    cores: int
    decoded_bytes: int
    device_memory: int
    device_free: int
    mean_pixels: float
    crop_pixels: float
    packed: bool
    has_dali: bool
    mend_for_compiling: str | None
    precision: str
    compiled: str
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """How long a run will take.

    Attributes:
        seconds: of training, evaluation and compilation, from the first step to the last.
        low, high: between which it will be, about.
        train, evaluate, compile: what it is made of, in seconds.
    """

    seconds: float
    low: float
    high: float
    train: float
    evaluate: float
    compile: float


def parts_allow(loader: float, step: float, *, gpu: bool) -> tuple[float, str]:
    """The rate that loader and step allow together, and by which rule."""
    if gpu:
        return min(loader, step), "the slower of loader and step"
    return 1 / (1 / loader + 1 / step), "loader and step taking turns on the same cores"


def forecast(
    figures: Figures, *, steps: int, evaluations: int, images_per_evaluation: int
) -> Forecast:
    """How long a run will take at the measured rates.

    Args:
        figures: the measurement.
        steps: of the run.
        evaluations: by kNN.
        images_per_evaluation: of both splits.
    """
    train = steps * figures.batch_size / figures.train
    evaluate = evaluations * images_per_evaluation / figures.features
    seconds = train + evaluate + figures.compile_seconds
    error = max(_LEAST_UNCERTAINTY, _relative_error(figures.samples))
    return Forecast(
        seconds=seconds,
        low=seconds * (1 - error),
        high=seconds * (1 + error),
        train=train,
        evaluate=evaluate,
        compile=figures.compile_seconds,
    )


def _relative_error(samples: Sequence[float]) -> float:
    """Two standard errors of the mean, over the mean."""
    if len(samples) < 2:
        return _LEAST_UNCERTAINTY
    return 2 * statistics.stdev(samples) / math.sqrt(len(samples)) / statistics.fmean(samples)


def holds_back(figures: Figures) -> tuple[str, str]:
    """What training waits for most: `storage`, `decode`, `loader` or `step`; and a sentence."""
    share = figures.train / figures.loader
    if figures.gpu and figures.loader >= figures.step:
        idle = 1 - figures.train / figures.step
        return "step", (
            f"the training step: the loader could feed {figures.loader / figures.step:.1f} times as "
            f"much (data-wait {figures.data_wait:.0%}; {idle:.0%} below the step alone)"
        )
    if not figures.gpu and figures.loader >= figures.step:
        return "step", (
            f"the training step on the CPU: {1 - share:.0%} of the time, the loader takes {share:.0%}"
        )
    costs = "costs" if figures.gpu else f"takes {share:.0%} of the CPU's time, and costs"
    if figures.loader_name == "resident":
        return "loader", f"cropping images that are decoded already: it {costs} more than the step"
    if figures.storage < 1.25 * figures.loader:
        return "storage", (
            f"the storage: it gives {figures.storage:,.0f} images/s, hardly more than the loader's "
            f"{figures.loader:,.0f}"
        )
    return "decode", (
        f"decoding: the loader makes {figures.loader:,.0f} images/s on {figures.workers} threads, and "
        f"decoding alone {figures.decode:,.0f}; the step could take {figures.step:,.0f}"
    )


def advice(figures: Figures) -> list[str]:
    """What to change, the most useful first."""
    what, _ = holds_back(figures)
    found = []
    if what in ("storage", "decode"):
        found += _feed_advice(figures, what)
    elif what == "step":
        found += _step_advice(figures)
        if not figures.gpu and figures.train / figures.loader >= _LARGE_SHARE:
            found += _feed_advice(figures, what)
    if figures.loader_name == "reference":
        found.append("--loader auto: the loader reference is slow, and there to compare with")
    return found


def _feed_advice(figures: Figures, what: str) -> list[str]:
    found = []
    room = figures.device_memory * (RESIDENT_DEVICE_SHARE if figures.gpu else RESIDENT_HOST_SHARE)
    if figures.loader_name != "resident" and figures.decoded_bytes <= room:
        found.append(
            f"--loader resident: all images decoded take {figures.decoded_bytes / 1e9:.1f} GB, which "
            f"fits the {'GPU' if figures.gpu else 'memory'}"
        )
    if figures.workers < figures.cores:
        found.append(
            f"--workers {figures.cores}: there are {figures.cores} cores, and {figures.workers} "
            "threads in use"
        )
    if what == "storage":
        found.append(
            "copy the data set to a local disk, or pack it (fastsimsiam pack SRC DST.beton): one file "
            "is read faster than many, and stays in the page cache"
        )
    if figures.gpu and figures.loader_name != "dali":
        found.append(
            "--loader dali: the GPU decodes"
            if figures.has_dali
            else "pip install 'fastsimsiam[dali]' and --loader dali: the GPU decodes"
        )
    # As 512 pixels for views of 224: nothing that a view could show is lost.
    side = math.ceil(math.sqrt(figures.crop_pixels) * 512 / 224)
    usual = 0.75 * side**2
    if not figures.packed and figures.mean_pixels > _MUCH_LARGER * usual:
        found.append(
            f"fastsimsiam pack SRC DST.beton --max-side {side}: images have "
            f"{figures.mean_pixels / 1e6:.1f} megapixels on average, {figures.mean_pixels / usual:.0f} "
            "times what views of this size can show"
        )
    if figures.gpu and not found:
        found.append("more CPU cores for each GPU")
    return found


def _step_advice(figures: Figures) -> list[str]:
    if not figures.gpu:
        found = ["a GPU: it takes a training step some hundred times as fast as a few CPU cores"]
        if figures.compiled == "off" and figures.mend_for_compiling:
            found.append(f"{figures.mend_for_compiling}: long runs then compile the views' color")
        return found
    found = []
    if figures.precision == "float32":
        found.append("--precision bf16, where the GPU computes in it: about twice as fast")
    if figures.compiled != "step":
        first = f"{figures.mend_for_compiling}, then " if figures.mend_for_compiling else ""
        found.append(f"{first}--compile step: fuses what is left of the step between convolutions")
    if figures.device_free > 0.5 * figures.device_memory:
        found.append(
            f"a larger --batch-size than {figures.batch_size}: {figures.device_free / 1e9:.0f} GB of "
            "the GPU's memory are free (it changes the recipe: the learning rate follows by itself)"
        )
    return found
