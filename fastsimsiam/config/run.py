"""The configuration of a run: frozen dataclasses, checked on construction.

Fields made with `neutral` do not change what is learned, beyond floating-point rounding: a run may be
resumed with other values of them. All other fields must match, see `stored.differing_keys`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import tyro

from fastsimsiam.config.fields import (
    MOST_EPOCHS,
    MOST_PIXELS,
    MOST_WORKERS,
    Switch,
    neutral,
    require,
    require_checked,
    require_choices,
    require_gray16_max,
    require_within,
)
from fastsimsiam.config.methods import MethodConfig, SimSiamConfig
from fastsimsiam.config.optimizer import OptimizerConfig
from fastsimsiam.config.views import NormalizeConfig, ViewSpec
from fastsimsiam.errors import UserError

MOST_PROCESSES = 1024
CompileName = Literal["auto", "step", "color", "off"]
FuseName = Literal["auto", "off", "norms", "stem", "blocks"]
LoaderName = Literal["auto", "cpu", "nvjpeg", "dali", "ffcv", "resident", "reference"]
OnBadImage = Literal["error", "skip", "error-strict", "skip-strict"]
DeviceName = Literal["auto", "cpu", "cuda"]
PrecisionName = Literal["auto", "bf16", "fp32"]
GRAY16_MAX = (1 << 16) - 1
"""The largest gray level of 16 bits."""
_MOST_MINUTES = 10**6


@dataclass(frozen=True, kw_only=True)
class KnnConfig:
    """The weighted kNN classification of frozen features during training."""

    every_epochs: int = 10
    """Epochs between two evaluations (also before the first epoch and after the last); 0: never."""
    k: tuple[int, ...] = (200, 10, 20, 100)
    """Numbers of neighbors; the first one is the headline figure."""
    temperature: float = 0.1
    """Neighbors are weighted by exp(cosine similarity / temperature)."""
    crop_fraction: float = 0.875
    """Side of the centered square over the image's shorter side: 224/256 by custom."""

    def __post_init__(self) -> None:
        require_within("knn.every_epochs", self.every_epochs, 0, MOST_EPOCHS)
        require(bool(self.k), "knn.k", self.k, "give one number or more")
        for count in self.k:
            require_within("knn.k", count, 1, 10**9)
        require_within("knn.temperature", self.temperature, 1e-6, 1e6)
        # Less than a hundredth of an image is no picture of it.
        require_within("knn.crop_fraction", self.crop_fraction, 0.01, 1)


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When a run is saved. It is also saved at its end, on an error, and on a signal to end."""

    every_epochs: float = 1.0
    """Epochs between two checkpoints; fractions are allowed."""
    min_minutes: float = 1.0
    """Minutes at least between two: a checkpoint that is due sooner is left out. An epoch of a small
    data set can take less time on a GPU than its checkpoint takes on the disk."""
    keep: int = 3
    """Number of the newest checkpoints that are kept."""

    def __post_init__(self) -> None:
        every = self.every_epochs
        require_within("checkpoint.every_epochs", every, 0, MOST_EPOCHS, above=True)
        require_within("checkpoint.min_minutes", self.min_minutes, 0, _MOST_MINUTES)
        require_within("checkpoint.keep", self.keep, 1, 10**9)


@dataclass(frozen=True, kw_only=True)
class DaliConfig:
    """Options of `--loader dali`."""

    decoder: Literal["auto", "cpu", "mixed"] = "auto"
    """Where JPEGs are decoded. mixed: by nvJPEG on the GPU. auto: mixed where there is one."""
    prefetch: int = 2
    """Batches that DALI prepares ahead."""
    hw_decoder_load: float = 0.65
    """Share of the images that the GPU's hardware JPEG decoder takes, where there is one."""

    def __post_init__(self) -> None:
        require_choices("dali.", self)
        require_within("dali.prefetch", self.prefetch, 1, 1_000)
        require_within("dali.hw_decoder_load", self.hw_decoder_load, 0, 1)


@dataclass(frozen=True, kw_only=True)
class CpuConfig:
    """Options of `--loader cpu`."""

    crops: Literal["host", "device"] = "host"
    """Where crops are cut. device: on the GPU, to which whole frames are copied."""
    processes: int | None = None
    """Processes that share the loader's threads: the threads of one share an interpreter lock. 0:
    threads of the training process. None: 0 on a CPU, else a process for every four threads."""

    def __post_init__(self) -> None:
        require_choices("cpu.", self)
        if self.processes is not None:
            require_within("--cpu.processes", self.processes, 0, MOST_PROCESSES)


_LARGEST = {
    "epochs": MOST_EPOCHS,
    "batch_size": 10**7,
    "accumulate": 10**7,
    "image_size": MOST_PIXELS,
    "workers": MOST_WORKERS,
    "max_steps": 10**12,
    "log_every": 10**12,
    "shuffle_blocks": 10**6,
}
"""Field of `Config` -> its largest value; the smallest is 1."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """A pretraining run. A recipe returns one; the command line overrides single fields."""

    recipe: tyro.conf.Suppress[str]
    """Name of the recipe that this config is based on."""
    data: Path = neutral(Path("data"))
    """Images as they lie: folders of files, with classes or not, split into train/ and val/ or not;
    tars; packed files (.beton); Hugging Face's Arrow; lists (.txt, .csv, .tsv); arrays (.npy, .npz);
    CIFAR; URLs of tars, Arrow and packed files. docs/formats.md of the repository has the rules."""
    val: Path | None = neutral(None)
    """Validation images for kNN, of any format of data; None: those that data has."""
    out: Path = neutral(Path("runs/run"))
    """Folder for checkpoints, metrics and logs."""
    epochs: int = 100
    """Passes over the training images."""
    batch_size: int = 256
    """Images per optimizer step, all devices and accumulated parts together."""
    accumulate: int = 1
    """Parts of a batch whose gradients are accumulated; BatchNorm sees one part at a time."""
    image_size: int = 224
    """Side of the crops in pixels."""
    arch: str = "resnet50"
    """Backbone: name of a classification network of torchvision.models."""
    stem: Literal["imagenet", "cifar"] = "imagenet"
    """First layers of a ResNet. cifar: a 3x3 convolution of stride 1 and no max-pooling."""
    zero_init_residual: Switch = True
    """The scale of each residual block's last BatchNorm starts at 0 (ResNets)."""
    seed: int = 0
    """Seed of the weights, the order of the images and the views."""
    shuffle: Literal["full", "blocks"] = "full"
    """full: any image may follow any other. blocks: for disks on which random reads are slow: pieces of
    64 MB of tars, Arrow and packed files in random order, a few of which are shuffled together."""
    shuffle_blocks: int = 32
    """How many of these pieces are shuffled together."""
    precision: PrecisionName = "auto"
    """bf16: autocast to bfloat16. auto: bf16 where the device has arithmetic for it."""
    loader: LoaderName = neutral("auto")
    """cpu: decode on CPU threads. nvjpeg: decode on the GPU. dali: NVIDIA DALI, on the GPU if there is
    one. ffcv: FFCV, packed files only. resident: decode once, keep on the device. reference: PIL, slow.
    auto: resident, dali or cpu, by the data set's size and the machine."""
    on_bad_image: OnBadImage = neutral("error")
    """error: a broken image stops the run. skip: it is reported and replaced by another image.
    error-strict, skip-strict: a JPEG is broken, too, if the decoder warns of the image's data."""
    gray16_max: int = GRAY16_MAX
    """Largest gray level of 16-bit grayscale images, which is shown as white: 4095 for 12-bit data."""
    check_images: Switch = neutral(True)
    """Loaders dali, nvjpeg and reference decode each JPEG by libjpeg-turbo, too, at its first use, and
    so find what the others find. off: faster, but damage inside a JPEG goes unnoticed."""
    device: DeviceName = neutral("auto")
    """auto: cuda where there is one."""
    workers: int | None = neutral(None)
    """Loader threads (processes for reference); None: one per CPU core of this process."""
    compile: CompileName = neutral("auto")
    """What torch.compile compiles: the whole step, or the color augmentation alone. auto: step on a
    GPU, color on several GPUs and for long runs on a CPU."""
    fuse: FuseName = neutral("auto")
    """Kernels of the network, in a compiled step on one GPU. norms: BatchNorm, ReLU and residual
    additions in fewer passes over memory. stem: those, and the first convolution and max-pooling of
    a ResNet. blocks: also BatchNorm within the 1x1 convolutions of bottleneck blocks. auto: blocks for
    ResNets as ResNet-50 on an H100 or H200, where they are measured, in bf16; else off."""
    max_steps: int | None = neutral(None)
    """Optimizer steps of the whole run; None: those of all epochs."""
    log_every: int | None = neutral(None)
    """Steps between two lines of metrics; in between, the host never waits for the device. None: 100 on
    a GPU, whose steps may be so short that a tenth of them would be waited for; 10 on a CPU."""
    views: tuple[ViewSpec, ...] = (ViewSpec(), ViewSpec())
    """How each view is drawn."""
    normalize: NormalizeConfig = NormalizeConfig()
    """What is subtracted from pixels and what they are divided by."""
    method: MethodConfig = SimSiamConfig()
    """The self-supervised method and its options."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer and its schedule."""
    knn: KnnConfig = neutral(KnnConfig())
    """kNN evaluation during training."""
    checkpoint: CheckpointConfig = neutral(CheckpointConfig())
    """When checkpoints are written."""
    cpu: CpuConfig = neutral(CpuConfig())
    """Options of the loader cpu."""
    dali: DaliConfig = neutral(DaliConfig())
    """Options of the loader dali."""

    def __post_init__(self) -> None:
        require_choices("--", self)
        for name, most in _LARGEST.items():
            value = getattr(self, name)
            if value is not None:
                require_within(f"--{name.replace('_', '-')}", value, 1, most)
        require(
            self.batch_size % self.accumulate == 0,
            "--accumulate",
            self.accumulate,
            f"give a divisor of --batch-size {self.batch_size}",
        )
        require(len(self.views) >= 2, "views", len(self.views), "give 2 or more")
        require_within("--seed", self.seed, 0, 2**63 - 1)
        require_gray16_max(self.gray16_max)
        require_checked(self.on_bad_image, self.check_images)


class Scheduled(Protocol):
    """Options of something that is trained for some epochs."""

    @property
    def epochs(self) -> int: ...  # noqa: D102
    @property
    def optimizer(self) -> OptimizerConfig: ...  # noqa: D102


def require_schedule_within(config: Scheduled) -> None:
    """Refuses a warm-up or milestones beyond the run: the learning rate would not rise or fall.

    For runs that start. Configs that are stored may have such a schedule, and are read.

    Raises:
        UserError: says what to give: milestones in the same proportion, the last one at 4/5 of the run;
            a warm-up of a tenth of it.
    """
    epochs, warmup = config.epochs, config.optimizer.warmup_epochs
    milestones = config.optimizer.milestones
    if milestones and milestones[-1] >= epochs:
        scaled = {max(1, 4 * epochs * epoch // (5 * milestones[-1])) for epoch in milestones}
        fitting = [str(epoch) for epoch in sorted(scaled) if epoch < epochs]
        listed = " ".join(map(str, milestones))
        fix = " ".join(["--optimizer.milestones", *fitting])
        raise UserError(
            f"--optimizer.milestones {listed} {'is' if len(milestones) == 1 else 'are'} not within "
            f"--epochs {epochs}: give {fix if fitting else f'--optimizer.decay cosine {fix}'}"
        )
    if warmup >= epochs:
        raise UserError(
            f"--optimizer.warmup-epochs {warmup:g} is not within --epochs {epochs}: "
            f"give --optimizer.warmup-epochs {epochs / 10:g}"
        )
