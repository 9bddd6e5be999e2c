"""The variants of the training step that `benchmarks.step` compares and describes."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.aten_batch_norm import use_aten
from benchmarks.joint_views import JointSimSiam, join_views
from benchmarks.roofline import PARTS
from benchmarks.stem import use_stem
from fastsimsiam.config.optimizer import OptimizerConfig
from fastsimsiam.config.run import Config
from fastsimsiam.config.views import view_sizes
from fastsimsiam.doctor.measure import wait_for
from fastsimsiam.methods.base import Method, ParameterGroup, Progress
from fastsimsiam.methods.registry import build_method
from fastsimsiam.models.backbones import feature_extractor
from fastsimsiam.models.fused_batch_norm.fuse import fuse_norms
from fastsimsiam.models.fused_bottleneck.fuse import fuse_bottlenecks
from fastsimsiam.models.fused_stem.fuse import fuse_stem
from fastsimsiam.models.small_convolutions import use_matmul_for_small_maps
from fastsimsiam.optim.base import Optimizer
from fastsimsiam.optim.build import build_optimizer
from fastsimsiam.optim.schedule import peak_lr
from fastsimsiam.system.malloc import keep_freed_memory
from fastsimsiam.train.step import optimizer_step

Metrics = dict[str, Tensor]
_HALFWAY = Progress(step=50_000, steps_per_epoch=1_000, total_steps=100_000)
"""Where the run stands: nothing is frozen any more, and every queue is in use."""
_CLASSES = 2


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A variant of the step. The defaults are the trainer's.

    Attributes:
        dtype: dtype of the network's arithmetic (bfloat16: by autocast).
        channels_last: whether views and weights are in channels_last memory format.
        sgd: `fused`: the config's optimizer with tensor learning rates; or torch's SGD, `foreach` or
            `plain`.
        compiled: whether the whole step is compiled as one graph.
        joint: whether both views pass through the network in one batch.
        norm: BatchNorm by the compiler, by ATen's kernels, by fastsimsiam/models/fused_batch_norm, its
            sums by the compiler or by custom operators, or within the 1x1 convolutions of bottleneck
            blocks by fastsimsiam/models/fused_bottleneck, of all stages or of the two with wide maps.
        stem: shape of the first convolution, see benchmarks/parts/stem.py; `fused`: with all that comes
            before the first block, by fastsimsiam/models/fused_stem.
        inductor: options of Inductor.
        cudnn_benchmark: whether cuDNN times its convolutions and keeps the fastest.
        keep_memory: whether freed memory stays with the process (CPU).
        products: whether convolutions of small maps are matrix products (CPU).
        only: the only device on which the variant makes sense; None: both.
    """

    dtype: torch.dtype = torch.bfloat16
    channels_last: bool = True
    sgd: Literal["fused", "foreach", "plain"] = "fused"
    compiled: bool = True
    joint: bool = False
    norm: Literal["compiler", "aten", "fused", "fused-sums", "fused-1x1", "fused-1x1-early"] = (
        "compiler"
    )
    stem: Literal["plain", "padded", "space-to-depth", "fused"] = "plain"
    inductor: dict[str, Any] = field(default_factory=dict)
    cudnn_benchmark: bool = True
    keep_memory: bool = True
    products: bool = True
    only: Literal["cpu", "cuda"] | None = None


_TEXTBOOK = Variant(compiled=False, sgd="plain", keep_memory=False, products=False)
VARIANTS: dict[str, Variant] = {
    "textbook-fp32": replace(_TEXTBOOK, dtype=torch.float32, channels_last=False),
    "textbook-amp": replace(_TEXTBOOK, channels_last=False),
    "textbook-amp-nhwc": _TEXTBOOK,
    "eager": Variant(compiled=False),
    "eager-convolutions": Variant(compiled=False, products=False, only="cpu"),
    "eager-returned-memory": Variant(compiled=False, keep_memory=False, only="cpu"),
    "compiled": Variant(),
    "compiled-foreach-sgd": Variant(sgd="foreach"),
    "compiled-joint-views": Variant(joint=True),
    "compiled-aten-bn": Variant(norm="aten"),
    "compiled-fused-bn": Variant(norm="fused"),
    "compiled-fused-bn-sums": Variant(norm="fused-sums"),
    "compiled-fused-stem": Variant(norm="fused-sums", stem="fused"),
    "compiled-fused-1x1": Variant(norm="fused-1x1", only="cuda"),
    "compiled-fused-1x1-stem": Variant(norm="fused-1x1", stem="fused", only="cuda"),
    "compiled-fused-1x1-early": Variant(norm="fused-1x1-early", stem="fused", only="cuda"),
    "compiled-padded-stem": Variant(stem="padded"),
    "compiled-space-to-depth": Variant(stem="space-to-depth"),
    "compiled-1x1-matmul": Variant(inductor={"conv_1x1_as_mm": True}),
    "compiled-autotuned": Variant(inductor={"max_autotune": True}, only="cuda"),
    "compiled-cuda-graphs": Variant(inductor={"triton.cudagraphs": True}, only="cuda"),
    "compiled-cudnn-guess": Variant(cudnn_benchmark=False, only="cuda"),
}


def make_method(config: Config, *, joint: bool) -> Method:
    """The config's method, or `JointSimSiam` with the same initial weights."""
    if not joint:
        return build_method(config)
    torch.manual_seed(config.seed)
    backbone, feature_dim = feature_extractor(config.arch, config.stem)
    method = JointSimSiam(backbone, feature_dim, config.method)
    join_views(method)
    return method


def with_variant(backbone: nn.Module, variant: Variant) -> nn.Module:
    """A backbone with the variant's BatchNorm and first convolution, made from the same layers."""
    if variant.norm == "aten":
        use_aten(backbone)
    elif variant.norm in ("fused-1x1", "fused-1x1-early"):
        fuse_bottlenecks(backbone, (1, 2, 3, 4) if variant.norm == "fused-1x1" else (1, 2))
    elif variant.norm != "compiler":
        backbone = fuse_norms(backbone, opaque=variant.norm == "fused-sums")
    if variant.stem == "fused":
        backbone = fuse_stem(backbone)
    elif variant.stem != "plain":
        use_stem(backbone, variant.stem)
    return backbone


class TorchSGD:
    """torch.optim.SGD with a constant learning rate, as an `Optimizer`."""

    def __init__(
        self, groups: Sequence[ParameterGroup], config: OptimizerConfig, lr: float, *, foreach: bool
    ) -> None:
        """Puts all parameters into one group."""
        self._sgd = torch.optim.SGD(
            [parameter for group in groups for parameter in group.parameters],
            lr=lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            foreach=foreach,
        )

    def set_lr(self, lr: float, peak_lr: float) -> None:
        """Does nothing: the learning rate is constant."""

    def step(self, at: Progress) -> None:
        """Updates the parameters and frees the gradients."""
        self._sgd.step()
        self._sgd.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Momentum buffers and settings."""
        return self._sgd.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`."""
        self._sgd.load_state_dict(state)


class Step:
    """The training step of a variant."""

    def __init__(
        self, config: Config, variant: Variant, device: torch.device, lr: float | None = None
    ) -> None:
        """Builds method and optimizer; `lr` is the peak learning rate, None: that of the config."""
        torch.backends.cudnn.benchmark = variant.cudnn_benchmark
        layout = torch.channels_last if variant.channels_last else torch.contiguous_format
        self.method = make_method(config, joint=variant.joint).to(device).to(memory_format=layout)
        backbone = with_variant(self.method.get_submodule("backbone"), variant)
        self.method.set_submodule("backbone", backbone)
        if variant.keep_memory and device.type == "cpu":
            keep_freed_memory()
        if variant.products and device.type == "cpu":
            use_matmul_for_small_maps(self.method)
        self._variant, self._device, self._layout = variant, device, layout
        groups = self.method.parameter_groups()
        self._lr = peak_lr(config.optimizer, config.batch_size) if lr is None else lr
        self._optimizer: Optimizer
        if variant.sgd == "fused":
            self._optimizer = build_optimizer(groups, config.optimizer, device)
        else:
            self._optimizer = TorchSGD(
                groups, config.optimizer, self._lr, foreach=variant.sgd == "foreach"
            )
        self._labels = torch.arange(config.batch_size, device=device) % _CLASSES
        self._compute = self._forward
        if variant.compiled:
            self._compute = torch.compile(
                self._forward, fullgraph=True, dynamic=False, options=variant.inductor
            )

    def views(self, config: Config, seed: int) -> tuple[Tensor, ...]:
        """Random views of a batch on the device, (N, 3, H, W) each, as many as the config has."""
        generator = torch.Generator(self._device).manual_seed(seed)
        return tuple(
            torch.randn(
                (config.batch_size, 3, size, size), device=self._device, generator=generator
            ).to(self._variant.dtype, memory_format=self._layout)
            for size in view_sizes(config.views, config.image_size)
        )

    def _forward(self, views: tuple[Tensor, ...], labels: Tensor) -> tuple[Tensor, Metrics]:
        enabled = self._variant.dtype != torch.float32
        with torch.autocast(self._device.type, self._variant.dtype, enabled=enabled):
            loss, metrics = self.method(views, labels)
        return loss, metrics

    def __call__(
        self, views: tuple[Tensor, ...], after: Callable[[str], None] = lambda phase: None
    ) -> Tensor:
        """Runs one step and returns its loss; `after` is called as in `optimizer_step`."""
        if self._variant.inductor.get("triton.cudagraphs"):
            torch.compiler.cudagraph_mark_step_begin()
        means = optimizer_step(
            self._compute,
            [(views, self._labels)],
            method=self.method,
            optimizer=self._optimizer,
            at=_HALFWAY,
            lr=self._lr,
            peak_lr=self._lr,
            after=after,
        )
        return means["loss"].clone()  # a CUDA graph writes into the same memory in its next run

    def gradient_norms(self, views: tuple[Tensor, ...]) -> dict[str, float]:
        """Parameter -> norm of its gradient, with all BatchNorm2d weights set to 1; updates nothing.

        The recipe starts with weights of 0 at the end of residual branches, where no parameter of the
        branch has a gradient.
        """
        weights = [m.weight for m in self.method.modules() if isinstance(m, nn.BatchNorm2d)]
        initial = [weight.detach().clone() for weight in weights]
        for weight in weights:
            nn.init.ones_(weight)
        self._compute(views, self._labels)[0].backward()
        norms = {
            name: parameter.grad.norm().item()
            for name, parameter in self.method.named_parameters()
            if parameter.grad is not None
        }
        self.method.zero_grad()
        with torch.no_grad():
            for weight, value in zip(weights, initial, strict=True):
                weight.copy_(value)
        return norms

    def seconds_of_parts(self, views: tuple[Tensor, ...]) -> dict[str, float]:
        """Part (`benchmarks.roofline.PARTS`) -> seconds; waits for the device after each part."""
        times = [time.perf_counter()]

        def record(_: str) -> None:
            wait_for(self._device)
            times.append(time.perf_counter())

        self(views, record)
        return {
            part: end - start for part, start, end in zip(PARTS, times, times[1:], strict=False)
        }
