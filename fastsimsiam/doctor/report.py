"""The doctor's report, as text and as JSON."""

from dataclasses import asdict, dataclass
from typing import Any

from fastsimsiam.config.run import Config
from fastsimsiam.doctor.diagnosis import Forecast, Measurements, advice, bottleneck
from fastsimsiam.system.text import printable


@dataclass(frozen=True, kw_only=True)
class Report:
    """A diagnosed run.

    Attributes:
        machine: description of the machine, see `hardware.describe`.
        config: the run's configuration.
        images: number of training images.
        synthetic: whether synthetic photographs replaced a missing data set.
        measured_batch: images per step of the measurement.
        storage_bytes_per_second: rate of reading files.
        choices: the choices of `auto`, with their reasons.
        passed_over: kind -> number, of entries of the data set that are not among the images.
        shared_cores: what other programs used of the cores meanwhile; None: little.
        measurements: the measured rates.
        forecast: the whole run's duration.
    """

    machine: dict[str, Any]
    config: Config
    images: int
    synthetic: bool
    measured_batch: int
    storage_bytes_per_second: float
    choices: str
    passed_over: dict[str, int]
    shared_cores: str | None
    measurements: Measurements
    forecast: Forecast

    def as_dict(self) -> dict[str, Any]:
        """Returns the report for JSON."""
        part, explanation = bottleneck(self.measurements)
        return {
            "machine": self.machine,
            "recipe": self.config.recipe,
            "method": self.config.method.name,
            "arch": self.config.arch,
            "image_size": self.config.image_size,
            "batch_size": self.config.batch_size,
            "measured_batch": self.measured_batch,
            "images": self.images,
            "synthetic_images": self.synthetic,
            "choices": self.choices,
            "passed_over": self.passed_over,
            "shared_cores": self.shared_cores,
            "measurements": asdict(self.measurements),
            "storage_bytes_per_second": self.storage_bytes_per_second,
            "bottleneck": part,
            "bottleneck_explained": explanation,
            "advice": advice(self.measurements),
            "forecast": asdict(self.forecast),
        }


def format_report(report: Report) -> str:
    """Returns the report as text: machine, run, rates, bottleneck, advice, forecast."""
    blocks = [
        [*_machine_lines(report.machine), *_lines_on_sharing(report), _run_line(report)],
        _rate_lines(report),
        [f"Bottleneck: {bottleneck(report.measurements)[1]}."]
        + [f"  - {line}" for line in advice(report.measurements)],
        [_forecast_line(report.config, report.forecast)],
    ]
    return "\n\n".join("\n".join(block) for block in blocks)


def _machine_lines(machine: dict[str, Any]) -> list[str]:
    optional = ", ".join(
        f"{name} {'yes' if there else 'no'}" for name, there in machine["optional"].items()
    )
    gpus = ", ".join(
        f"{gpu['name']}, {gpu['memory'] / 1e9:.0f} GB ({gpu['free'] / 1e9:.0f} free)"
        for gpu in machine["gpus"]
    )
    cuda = f", CUDA {machine['cuda']}, driver {machine['driver']}" if machine["gpus"] else ""
    return [
        f"fastsimsiam {machine['fastsimsiam']}, torch {machine['versions']['torch']}, Python "
        f"{machine['python']}{cuda}; {optional}",
        f"CPU: {machine['cpu']}, {machine['cores']} cores, {machine['memory'] / 1e9:.0f} GB",
        f"GPU: {gpus or 'none'}",
    ]


def _lines_on_sharing(report: Report) -> list[str]:
    lines = [report.machine["limits"]]
    if report.shared_cores:
        lines.append(f"{report.shared_cores}: on cores of its own this machine is faster")
    return [line[0].upper() + line[1:] for line in lines if line]


def _run_line(report: Report) -> str:
    config = report.config
    source = "synthetic photographs" if report.synthetic else printable(config.data)
    return (
        f"{config.recipe}: {config.method.name}, {config.arch}, {config.image_size} px, batch "
        f"{config.batch_size}, "
        f"{report.images:,} images ({source})"
    )


def _rate_lines(report: Report) -> list[str]:
    measured = report.measurements
    notes = {
        "storage": f"reading only, {report.storage_bytes_per_second / 1e6:,.0f} MB/s",
        "one_file": "the same from one small file, as pack writes it: an upper bound",
        "decode": f"decoding only, {measured.workers} threads",
        "loader": f"loader {measured.loader_name}: decoded, cropped and on the device",
        "augment": "color augmentation of all views",
        "step": "training step on one batch, color augmentation included",
        "train": f"loader and step together; data-wait {measured.data_wait:.0%}",
        "features": "feature extraction of the kNN evaluation",
    }
    return [f"{'':10}{'images/s':>10}"] + [
        f"{name.replace('_', ' '):10}{rate:>10,.0f}   {note}"
        for name, note in notes.items()
        if (rate := getattr(measured, name)) is not None
    ]


def _forecast_line(config: Config, forecast: Forecast) -> str:
    length = f"{config.epochs} epochs" if config.max_steps is None else f"{config.max_steps} steps"
    return (
        f"{length} will take {_duration(forecast.seconds)} ({_duration(forecast.low)} to "
        f"{_duration(forecast.high)}): training {_duration(forecast.train)}, kNN evaluations "
        f"{_duration(forecast.evaluate)}, compilation {_duration(forecast.compile)}."
    )


def _duration(seconds: float) -> str:
    if seconds >= 2 * 86400:
        return f"{seconds / 86400:.1f} days"
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"
