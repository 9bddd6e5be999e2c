"""Diagnosis from measurements: the bottleneck, advice, and the forecast of a run's duration.

Pure functions; nothing here measures. Rates are images per second on one device.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from fastsimsiam.loaders.registry import FREE_SHARE, RESIDENT_DEVICE_SHARE, RESIDENT_HOST_SHARE

_LEAST_UNCERTAINTY = 0.05
"""A machine's speed varies at least this much between a measurement and a run."""
_LARGE_SHARE = 0.25
_MUCH_LARGER = 2.0
_PAYS = 1.25
"""Gain in reading from which on packing is advised."""


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """Measured rates, and the conditions of the measurement.

    Attributes:
        gpu: whether training runs on a GPU, where loader and step run side by side.
        storage: rate of reading the images in random order, nothing else.
        one_file: the same from one file on the same disk, as `pack` would write it; None if the images
            lie in few files already, or the disk cannot be written.
        decode: rate of decoding on all threads, nothing else.
        loader: rate of the loader's batches.
        augment: rate of the color augmentation.
        step: rate of the training step on a batch that is on the device already.
        train: rate of loader and step together.
        features: rate of the kNN evaluation's feature extraction.
        samples: rates of consecutive parts of the measurement of `train`.
        data_wait: share of the time of `train` spent waiting for the loader.
        compile_seconds: duration of the first step beyond that of later ones.
        loader_name: name of the loader, as `--loader` takes it.
        workers: number of loader threads.
        cores: number of CPU cores of this process.
        decoded_bytes: size of the whole training split when decoded.
        device_memory: bytes of GPU memory; of host memory without a GPU.
        device_free: bytes of free GPU memory during training; 0 without a GPU.
        host_free: bytes of host memory that no program used before the measurement.
        mean_pixels: mean number of pixels of an image.
        crop_pixels: number of pixels of a view.
        packed: whether the data set is a packed file.
        has_dali: whether DALI is installed.
        why_compile_fails: what to install before torch.compile works here; None where it works.
        precision: `bfloat16` or `float32`.
        compiled: `step`, `color` or `off`.
        batch_size: images per optimizer step.
    """

    gpu: bool
    storage: float
    one_file: float | None
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
    host_free: int
    mean_pixels: float
    crop_pixels: float
    packed: bool
    has_dali: bool
    why_compile_fails: str | None
    precision: str
    compiled: str
    batch_size: int


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The expected duration of a run, in seconds.

    Attributes:
        seconds: training, evaluation and compilation, from the first step to the last.
        low: lower bound of `seconds`, approximately.
        high: upper bound of `seconds`, approximately.
        train: share of training.
        evaluate: share of kNN evaluations.
        compile: share of compilation.
    """

    seconds: float
    low: float
    high: float
    train: float
    evaluate: float
    compile: float


def parts_allow(loader: float, step: float, *, gpu: bool) -> tuple[float, str]:
    """Returns the rate that loader and step allow together, and the rule it follows."""
    if gpu:
        return min(loader, step), "the slower of loader and step"
    return 1 / (1 / loader + 1 / step), "loader and step taking turns on the same cores"


def forecast(
    measured: Measurements, *, steps: int, evaluations: int, images_per_evaluation: int
) -> Forecast:
    """Forecasts the duration of a run from measured rates.

    Args:
        measured: the measurements.
        steps: optimizer steps of the run.
        evaluations: number of kNN evaluations.
        images_per_evaluation: images of both splits.
    """
    train = steps * measured.batch_size / measured.train
    evaluate = evaluations * images_per_evaluation / measured.features
    seconds = train + evaluate + measured.compile_seconds
    error = max(_LEAST_UNCERTAINTY, _relative_error(measured.samples))
    return Forecast(
        seconds=seconds,
        low=seconds * (1 - error),
        high=seconds * (1 + error),
        train=train,
        evaluate=evaluate,
        compile=measured.compile_seconds,
    )


def _relative_error(samples: Sequence[float]) -> float:
    """Two standard errors of the mean, over the mean."""
    if len(samples) < 2:
        return _LEAST_UNCERTAINTY
    return 2 * statistics.stdev(samples) / math.sqrt(len(samples)) / statistics.fmean(samples)


def bottleneck(measured: Measurements) -> tuple[str, str]:
    """Returns the slowest part (`storage`, `decode`, `loader` or `step`) and an explanation."""
    share = measured.train / measured.loader
    if measured.gpu and measured.loader >= measured.step:
        slower = 1 - measured.train / measured.step
        return "step", (
            f"the training step; the loader delivers {measured.loader / measured.step:.1f} times as "
            f"much (data-wait {measured.data_wait:.0%}; training is {slower:.0%} slower than the step "
            "alone)"
        )
    if not measured.gpu and measured.loader >= measured.step:
        return "step", (
            f"the training step on the CPU; it takes {1 - share:.0%} of the time, the loader "
            f"{share:.0%}"
        )
    if measured.loader_name == "resident":
        cost = "it costs" if measured.gpu else f"it takes {share:.0%} of the CPU time,"
        return "loader", f"cropping the decoded images; {cost} more than the step"
    if measured.storage < 1.25 * measured.loader:
        return "storage", (
            f"the storage; it delivers {measured.storage:,.0f} images/s, little more than the "
            f"loader's {measured.loader:,.0f}"
        )
    return "decode", (
        f"decoding; the loader delivers {measured.loader:,.0f} images/s on {measured.workers} threads "
        f"(decoding alone {measured.decode:,.0f}), the step could take {measured.step:,.0f}"
    )


def advice(measured: Measurements) -> list[str]:
    """Returns what to change, the most useful first."""
    part, _ = bottleneck(measured)
    lines = []
    if part in ("storage", "decode"):
        lines += _loader_advice(measured, part)
    elif part == "step":
        lines += _step_advice(measured)
        if not measured.gpu and measured.train / measured.loader >= _LARGE_SHARE:
            lines += _loader_advice(measured, part)
    if measured.loader_name == "reference":
        lines.append("--loader auto: the loader reference is slow, a baseline for comparisons")
    return lines


def _loader_advice(measured: Measurements, part: str) -> list[str]:
    lines = []
    share = RESIDENT_DEVICE_SHARE if measured.gpu else RESIDENT_HOST_SHARE
    room = min(measured.device_memory * share, measured.host_free * FREE_SHARE)
    if measured.loader_name != "resident" and measured.decoded_bytes <= room:
        lines.append(
            f"--loader resident: the decoded images take {measured.decoded_bytes / 1e9:.1f} GB and "
            f"fit in {'GPU memory' if measured.gpu else 'memory'}"
        )
    if measured.workers < measured.cores:
        lines.append(
            f"--workers {measured.cores}: {measured.workers} loader threads are in use on "
            f"{measured.cores} cores"
        )
    if part == "storage":
        gain = measured.one_file / measured.storage if measured.one_file else 0.0
        if gain >= _PAYS:
            lines.append(
                f"pack the data set (fastsimsiam pack SRC DST.beton): one file is read {gain:.1f} "
                "times as fast here"
            )
        lines.append("copy the data set to a local disk, or one with faster random reads")
    if measured.gpu and measured.loader_name != "dali":
        lines.append(
            "--loader dali: decodes on the GPU"
            if measured.has_dali
            else "pip install 'fastsimsiam[dali]' and --loader dali: decodes on the GPU"
        )
    # The ratio of 512 pixels for views of 224, at which views lose no detail.
    side = math.ceil(math.sqrt(measured.crop_pixels) * 512 / 224)
    usual = 0.75 * side**2
    if not measured.packed and measured.mean_pixels > _MUCH_LARGER * usual:
        lines.append(
            f"fastsimsiam pack SRC DST.beton --max-side {side}: images have "
            f"{measured.mean_pixels / 1e6:.1f} megapixels on average, "
            f"{measured.mean_pixels / usual:.0f} times what views of this size can show"
        )
    if measured.gpu and not lines:
        lines.append("more CPU cores per GPU")
    return lines


def _step_advice(measured: Measurements) -> list[str]:
    if not measured.gpu:
        lines = ["a GPU: its training step is about a hundred times as fast as on a few CPU cores"]
        if measured.compiled == "off" and measured.why_compile_fails:
            lines.append(
                f"{measured.why_compile_fails}: long runs then compile the color augmentation"
            )
        return lines
    lines = []
    if measured.precision == "float32":
        lines.append("--precision bf16, if the GPU supports it: about twice as fast")
    if measured.compiled != "step":
        first = f"{measured.why_compile_fails}, then " if measured.why_compile_fails else ""
        lines.append(f"{first}--compile step: fuses the operations between convolutions")
    if measured.device_free > 0.5 * measured.device_memory:
        lines.append(
            f"a larger --batch-size than {measured.batch_size}: {measured.device_free / 1e9:.0f} GB "
            "of GPU memory are free (this changes the recipe; the learning rate scales with it)"
        )
    return lines
