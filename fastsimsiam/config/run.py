"""The configuration of a run: frozen dataclasses, checked on construction.

Fields made with `_neutral` do not change what is learned (beyond floating-point rounding); a run may
be resumed with other values of them. All others must match, see `config_io.differing_keys`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from fastsimsiam.errors import UserError

_SWITCH = {"on": True, "off": False}
CompileName = Literal["auto", "step", "colour", "off"]
LoaderName = Literal["auto", "folder", "ffcv", "dali", "resident", "reference"]
OnBadImage = Literal["error", "skip"]
DeviceName = Literal["auto", "cpu", "cuda"]
PrecisionName = Literal["auto", "bf16", "fp32"]
Switch = Annotated[
    bool,
    tyro.conf.FlagConversionOff,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="{on,off}",
        instance_from_str=lambda words: _SWITCH[words[0]],
        is_instance=lambda value: isinstance(value, bool),
        str_from_instance=lambda value: ["on" if value else "off"],
        choices=("on", "off"),
    ),
]
"""A boolean written `on` or `off` on the command line."""


def _neutral(default: Any) -> Any:
    return field(default=default, metadata={"neutral": True})


def _require(condition: bool, key: str, value: object, mend: str) -> None:
    if not condition:
        raise UserError(f"{key} is {value}: {mend}")


def _require_probability(owner: str, config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(0.0 <= value <= 1.0, f"{owner}.{name}", value, "give a probability from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class ViewSpec:
    """How one view of an image is drawn. Defaults are SimSiam's, see recipes.py."""

    size: int | None = None
    """Side of the square crop in pixels; None takes image_size."""
    area: tuple[float, float] = (0.2, 1.0)
    """Smallest and largest share of the image's area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width / height of the box."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    jitter: float = 0.8
    """Probability of colour jitter."""
    brightness: float = 0.4
    """Factor drawn from 1 - x to 1 + x."""
    contrast: float = 0.4
    """Factor drawn from 1 - x to 1 + x."""
    saturation: float = 0.4
    """Factor drawn from 1 - x to 1 + x."""
    hue: float = 0.1
    """Rotation drawn from -x to x, in turns; at most 0.5."""
    grey: float = 0.2
    """Probability of greyscale."""
    blur: float = 0.5
    """Probability of Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest standard deviation of the blur, in pixels of the crop."""
    solarize: float = 0.0
    """Probability of inverting the levels from 128 up."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        _require_probability("views", self, "flip", "jitter", "grey", "blur", "solarize")
        _require(self.size is None or self.size > 0, "views.size", self.size, "give 1 or more")
        low, high = self.area
        _require(0 < low <= high <= 1, "views.area", self.area, "give 0 < low <= high <= 1")
        low, high = self.ratio
        _require(0 < low <= high, "views.ratio", self.ratio, "give 0 < low <= high")
        low, high = self.blur_sigma
        _require(0 < low <= high, "views.blur_sigma", self.blur_sigma, "give 0 < low <= high")
        for name in ("brightness", "contrast", "saturation"):
            _require(
                getattr(self, name) >= 0, f"views.{name}", getattr(self, name), "give 0 or more"
            )
        _require(0 <= self.hue <= 0.5, "views.hue", self.hue, "give 0 to 0.5")


@dataclass(frozen=True, kw_only=True)
class SimSiamConfig:
    """SimSiam (arXiv 2011.10566) and the switches of its ablations."""

    stop_gradient: Switch = True
    """Off: gradients flow through both sides, and the network collapses (paper, section 4.1)."""
    predictor: Literal["mlp", "none", "fixed"] = "mlp"
    """none: p = z. fixed: an untrained random MLP (paper, section 4.2)."""
    predictor_lr: Literal["constant", "decay"] = "constant"
    """constant: the predictor keeps the starting lr. decay: it follows the schedule."""
    symmetric: Switch = True
    """Off: only the first view is predicted from the second (paper, section 4.6)."""
    projector_layers: int = 3
    """Linear layers of the projector; 2 on CIFAR-10."""
    projector_output_bn: Switch = True
    """Off: BatchNorm in hidden layers only (paper, section 4.4); outputs can then be all alike."""
    projector_dim: int = 2048
    """Width of the projector's hidden layers and of z."""
    predictor_dim: int = 512
    """Width of the predictor's hidden layer."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        for name in ("projector_layers", "projector_dim", "predictor_dim"):
            _require(
                getattr(self, name) >= 1, f"method.{name}", getattr(self, name), "give 1 or more"
            )


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """SGD with momentum and a cosine schedule."""

    lr: float = 0.05
    """Learning rate per 256 samples of batch size (the linear scaling rule)."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 1e-4
    """Weight decay, on all parameters, BatchNorm and biases too."""
    schedule: Literal["epoch", "step"] = "epoch"
    """The cosine is evaluated once an epoch (as published) or every step."""
    warmup_epochs: float = 0.0
    """Epochs of linear warm-up; published: 10 from batch 1024 up."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        _require(self.lr > 0, "optimizer.lr", self.lr, "give more than 0")
        _require(0 <= self.momentum < 1, "optimizer.momentum", self.momentum, "give 0 to below 1")
        for name in ("weight_decay", "warmup_epochs"):
            value = getattr(self, name)
            _require(value >= 0, f"optimizer.{name}", value, "give 0 or more")


@dataclass(frozen=True, kw_only=True)
class KnnConfig:
    """The weighted kNN classification of frozen features during training."""

    every_epochs: int = 10
    """Epochs between two evaluations (also before the first epoch and after the last); 0: never."""
    k: tuple[int, ...] = (200, 10, 20, 100)
    """Numbers of neighbours; the first one is the headline figure."""
    temperature: float = 0.1
    """Neighbours are weighted by exp(cosine similarity / temperature)."""
    crop_fraction: float = 0.875
    """Side of the centred square over the image's shorter side: 224/256 by custom."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        _require(self.every_epochs >= 0, "knn.every_epochs", self.every_epochs, "give 0 or more")
        _require(bool(self.k) and min(self.k) >= 1, "knn.k", self.k, "give numbers from 1 up")
        _require(self.temperature > 0, "knn.temperature", self.temperature, "give more than 0")
        fraction = self.crop_fraction
        _require(0 < fraction <= 1, "knn.crop_fraction", fraction, "give more than 0, at most 1")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When a run is saved. It is also saved at its end, on SIGINT, on SIGTERM and on an error."""

    every_epochs: float = 1.0
    """Epochs between two checkpoints; fractions are allowed."""
    keep: int = 3
    """How many of the newest checkpoints stay on the disk."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        every = self.every_epochs
        _require(every > 0, "checkpoint.every_epochs", every, "give more than 0")
        _require(self.keep >= 1, "checkpoint.keep", self.keep, "give 1 or more")


@dataclass(frozen=True, kw_only=True)
class DaliConfig:
    """Options of `--loader dali`."""

    decoder: Literal["auto", "cpu", "mixed"] = "auto"
    """Where JPEGs are decoded. mixed: by nvJPEG on the GPU. auto: mixed where there is one."""
    prefetch: int = 2
    """Batches under way."""
    hw_decoder_load: float = 0.65
    """Share of images for the GPU's JPEG engine, where it has one."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        _require(self.prefetch >= 1, "dali.prefetch", self.prefetch, "give 1 or more")
        load = self.hw_decoder_load
        _require(0 <= load <= 1, "dali.hw_decoder_load", load, "give 0 to 1")


@dataclass(frozen=True, kw_only=True)
class FolderConfig:
    """Options of `--loader folder`, for a GPU."""

    decoder: Literal["cpu", "nvjpeg"] = "cpu"
    """Where JPEGs are decoded. nvjpeg: on the GPU, by torchvision; crops are cut there too."""
    crops: Literal["host", "device"] = "host"
    """Where crops are cut. device: whole frames travel to the GPU."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """A pretraining run. Made by a function of recipes.py; overridden field by field."""

    recipe: tyro.conf.Suppress[str]
    """Name of the recipe this started from."""
    data: Path = _neutral(Path("data"))
    """Folder of class folders of JPEG or PNG files, with train/ and val/ or flat."""
    out: Path = _neutral(Path("runs/run"))
    """Folder for checkpoints, metrics and logs."""
    epochs: int = 100
    """Passes over the training images."""
    batch_size: int = 256
    """Images per optimiser step, all devices and accumulated parts together."""
    accumulate: int = 1
    """Parts into which a device's share of a batch is cut; BatchNorm sees one part at a time."""
    image_size: int = 224
    """Side of the crops, in pixels."""
    arch: str = "resnet50"
    """Any classification network of torchvision.models, by name."""
    stem: Literal["imagenet", "cifar"] = "imagenet"
    """cifar: a ResNet begins with a 3x3 convolution of stride 1 and no max-pooling."""
    seed: int = 0
    """Seed of weights, order and views."""
    precision: PrecisionName = "auto"
    """bf16: autocast to bfloat16. auto: bf16 where the device computes in it."""
    loader: LoaderName = _neutral("auto")
    """folder: decode as you go. ffcv: packed files. dali: NVIDIA DALI, on the GPU if there is one.
    resident: decode once, keep on the device. reference: PIL, slow. auto: by sizes and machine."""
    on_bad_image: OnBadImage = _neutral("error")
    """error: a broken image stops the run. skip: another image stands in, and it is reported."""
    device: DeviceName = _neutral("auto")
    """auto: cuda where there is one."""
    workers: int | None = _neutral(None)
    """Loader threads (processes for reference); None: one per CPU core of this process."""
    compile: CompileName = _neutral("auto")
    """What torch.compile is used for: the whole step, or the colour part of the views alone. auto: step
    on a GPU, colour on several GPUs and for long runs on a CPU."""
    max_steps: int | None = _neutral(None)
    """Stop (and save) after this many steps in all; None: at the end of the last epoch."""
    log_every: int = _neutral(10)
    """Steps between two lines of metrics; between them the host never waits for the device."""
    views: tuple[ViewSpec, ...] = (ViewSpec(), ViewSpec())
    """One spec per view."""
    method: SimSiamConfig = SimSiamConfig()
    """The self-supervised method."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimiser and its schedule."""
    knn: KnnConfig = _neutral(KnnConfig())
    """kNN evaluation during training."""
    checkpoint: CheckpointConfig = _neutral(CheckpointConfig())
    """Checkpoints."""
    folder: FolderConfig = _neutral(FolderConfig())
    """The loader folder."""
    dali: DaliConfig = _neutral(DaliConfig())
    """NVIDIA DALI."""

    def __post_init__(self) -> None:
        """Checks ranges."""
        for name in ("epochs", "batch_size", "accumulate", "image_size", "log_every"):
            value = getattr(self, name)
            _require(value >= 1, f"--{name.replace('_', '-')}", value, "give 1 or more")
        for name in ("workers", "max_steps"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"--{name.replace('_', '-')}", value, "give 1 up")
        _require(
            self.batch_size % self.accumulate == 0,
            "--accumulate", self.accumulate, f"give a divisor of --batch-size {self.batch_size}",
        )  # fmt: skip
        _require(len(self.views) >= 2, "views", len(self.views), "a Siamese method needs 2 or more")
        _require(self.seed >= 0, "--seed", self.seed, "give 0 or more")
