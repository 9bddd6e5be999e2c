"""The ways to run a training step that `benchmarks.step` compares; its docstring says what each is."""

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
from fastsimsiam.config.run import Config, OptimizerConfig
from fastsimsiam.doctor.measure import wait_for
from fastsimsiam.methods.base import Method, ParameterGroup, Progress
from fastsimsiam.methods.registry import build_method
from fastsimsiam.models.backbones import feature_extractor
from fastsimsiam.models.fused_batch_norm.fuse import fuse_norms
from fastsimsiam.models.small_convolutions import use_products
from fastsimsiam.optim.base import Optimizer
from fastsimsiam.optim.schedule import peak_lr
from fastsimsiam.optim.sgd import ScheduledSGD
from fastsimsiam.system.malloc import keep_freed_memory
from fastsimsiam.train.step import optimizer_step

Metrics = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A way to run the step.

    Attributes:
        dtype: of the network's arithmetic (bfloat16: autocast).
        channels_last: memory format of views and weights.
        sgd: `fused` with tensor learning rates, as the trainer has it, or torch's `foreach` or `plain`.
        compiled: the whole step as one graph.
        joint: both views at once.
        norm: BatchNorm as the compiler has it, by ATen's kernels (opaque to it), or fused with ReLU and
            addition in the way of benchmarks/norm, the sums the compiler's or operators of their own.
        stem: how the first convolution is done, see benchmarks/stem.py.
        inductor: options of the compiler.
        cudnn_benchmark: cuDNN times its convolutions and keeps the best, as the trainer has it.
        keep_memory: what a step has freed stays with the process, as the trainer has it on a CPU.
        products: small maps are convolved by products, as the trainer has it on a CPU.
        only: the device that it makes sense on, where there is but one.
    """

    dtype: torch.dtype = torch.bfloat16
    channels_last: bool = True
    sgd: Literal["fused", "foreach", "plain"] = "fused"
    compiled: bool = True
    joint: bool = False
    norm: Literal["compiler", "aten", "fused", "fused-sums"] = "compiler"
    stem: Literal["plain", "padded", "space-to-depth"] = "plain"
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
    "compiled-padded-stem": Variant(stem="padded"),
    "compiled-space-to-depth": Variant(stem="space-to-depth"),
    "compiled-1x1-matmul": Variant(inductor={"conv_1x1_as_mm": True}),
    "compiled-autotuned": Variant(inductor={"max_autotune": True}, only="cuda"),
    "compiled-cuda-graphs": Variant(inductor={"triton.cudagraphs": True}, only="cuda"),
    "compiled-cudnn-guess": Variant(cudnn_benchmark=False, only="cuda"),
}


def make_method(config: Config, *, joint: bool) -> Method:
    """The recipe's method, or one that takes both views at once, with the same fresh weights."""
    if not joint:
        return build_method(config)
    torch.manual_seed(config.seed)
    backbone, feature_dim = feature_extractor(config.arch, config.stem)
    method = JointSimSiam(backbone, feature_dim, config.method)
    join_views(method)
    return method


class TorchSGD:
    """torch's own SGD with one learning rate; an `Optimizer`."""

    def __init__(
        self, groups: Sequence[ParameterGroup], config: OptimizerConfig, lr: float, *, foreach: bool
    ) -> None:
        """Takes all parameters as one group."""
        self._sgd = torch.optim.SGD(
            [parameter for group in groups for parameter in group.parameters],
            lr=lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            foreach=foreach,
        )

    def set_lr(self, lr: float, peak_lr: float) -> None:
        """Nothing: the learning rate stays."""

    def step(self, step: int) -> None:
        """See `Optimizer.step`."""
        self._sgd.step()
        self._sgd.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Momentum buffers and settings."""
        return self._sgd.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`."""
        self._sgd.load_state_dict(state)


class Step:
    """A training step of a variant."""

    def __init__(self, config: Config, variant: Variant, device: torch.device) -> None:
        """Builds method and optimizer."""
        torch.backends.cudnn.benchmark = variant.cudnn_benchmark
        layout = torch.channels_last if variant.channels_last else torch.contiguous_format
        self.method = make_method(config, joint=variant.joint).to(device).to(memory_format=layout)
        if variant.norm == "aten":
            use_aten(self.method)
        elif variant.norm != "compiler":
            backbone = self.method.get_submodule("backbone")
            opaque = variant.norm == "fused-sums"
            self.method.set_submodule("backbone", fuse_norms(backbone, opaque=opaque))
        if variant.stem != "plain":
            use_stem(self.method, variant.stem)
        if variant.keep_memory and device.type == "cpu":
            keep_freed_memory()
        if variant.products and device.type == "cpu":
            use_products(self.method)
        self._variant, self._device, self._layout = variant, device, layout
        groups = self.method.parameter_groups()
        self._lr = peak_lr(config.optimizer, config.batch_size)
        self._optimizer: Optimizer
        if variant.sgd == "fused":
            self._optimizer = ScheduledSGD(groups, config.optimizer, device)
        else:
            self._optimizer = TorchSGD(
                groups, config.optimizer, self._lr, foreach=variant.sgd == "foreach"
            )
        self._labels = torch.zeros(config.batch_size, dtype=torch.int64, device=device)
        self._compute = self._forward
        if variant.compiled:
            self._compute = torch.compile(
                self._forward, fullgraph=True, dynamic=False, options=variant.inductor
            )

    def views(self, config: Config, seed: int) -> tuple[Tensor, ...]:
        """Two random views of a batch, on the device."""
        generator = torch.Generator(self._device).manual_seed(seed)
        shape = (config.batch_size, 3, config.image_size, config.image_size)
        kind = torch.float32 if self._variant.dtype == torch.float32 else self._variant.dtype
        return tuple(
            torch.randn(shape, device=self._device, generator=generator).to(
                kind, memory_format=self._layout
            )
            for _ in range(2)
        )

    def _forward(self, views: tuple[Tensor, ...], labels: Tensor) -> tuple[Tensor, Metrics]:
        enabled = self._variant.dtype != torch.float32
        with torch.autocast(self._device.type, self._variant.dtype, enabled=enabled):
            loss, metrics = self.method(views, labels)
        return loss, metrics

    def __call__(
        self, views: tuple[Tensor, ...], after: Callable[[str], None] = lambda phase: None
    ) -> Tensor:
        """One step as the trainer does it; its loss. `after`: see `optimizer_step`."""
        if self._variant.inductor.get("triton.cudagraphs"):
            torch.compiler.cudagraph_mark_step_begin()
        means = optimizer_step(
            self._compute,
            [(views, self._labels)],
            method=self.method,
            optimizer=self._optimizer,
            at=Progress(step=0, steps_per_epoch=1, total_steps=1),
            lr=self._lr,
            peak_lr=self._lr,
            after=after,
        )
        return means["loss"].clone()  # a recorded graph writes into the same memory in its next run

    def gradient_norms(self, views: tuple[Tensor, ...]) -> dict[str, float]:
        """Of each parameter's gradient, with 1 for the weights of all BatchNorm2d layers; no update.

        Nothing in a residual branch has a gradient behind a weight of 0, which the recipe begins with.
        """
        weights = [m.weight for m in self.method.modules() if isinstance(m, nn.BatchNorm2d)]
        fresh = [weight.detach().clone() for weight in weights]
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
            for weight, value in zip(weights, fresh, strict=True):
                weight.copy_(value)
        return norms

    def seconds_of_parts(self, views: tuple[Tensor, ...]) -> dict[str, float]:
        """One step that waits for the device behind every part; `benchmarks.roofline.PARTS`."""
        at = [time.perf_counter()]

        def passed(_: str) -> None:
            wait_for(self._device)
            at.append(time.perf_counter())

        self(views, passed)
        return {part: end - start for part, start, end in zip(PARTS, at, at[1:], strict=False)}
