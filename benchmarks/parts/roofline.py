"""Roofline of a training step: its arithmetic and the least bytes it moves.

Bytes are counted on the backbone's graph, tensor by tensor, for three levels of fusion:

- `separate`: BatchNorm, ReLU and residual addition are separate kernels;
- `fused`: BatchNorm and the following ReLU and addition are one kernel, forward and backward;
- `epilogue`: a convolution computes the statistics of the following BatchNorm while it writes its
  output, and the next convolution applies the normalization (and ReLU) while it reads. Only the results
  of residual additions are written in addition.

A tensor counts once for each kernel that reads or writes it. Caching between kernels is not modeled,
nor are the heads, which have small activations. BatchNorm in training mode reads its input twice in the
forward pass (statistics, normalization), input and gradient twice in the backward pass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.utils.flop_counter import FlopCounterMode

from fastsimsiam.models.fused_batch_norm.graph import node_kind

Fusion = Literal["separate", "fused", "epilogue"]
FUSIONS: tuple[Fusion, ...] = ("separate", "fused", "epilogue")
_BATCH = 2
PARTS = ("forward", "backward", "update")


@dataclass(frozen=True, kw_only=True)
class PartCost:
    """The cost of a part of a step.

    Attributes:
        flops: floating-point operations per view; a multiply-add is two.
        bytes: level of fusion -> bytes of activations read and written per view.
        parameter_bytes: bytes of weights, gradients and momentum read and written per step.
    """

    flops: float
    bytes: dict[Fusion, float]
    parameter_bytes: float


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """The cost of a training step per view (a source image has two or more), part by part."""

    parts: dict[str, PartCost]

    @property
    def flops(self) -> float:
        """Floating-point operations per view, of all parts."""
        return sum(part.flops for part in self.parts.values())

    @property
    def bytes(self) -> dict[Fusion, float]:
        """Level of fusion -> bytes of activations per view, of all parts."""
        return {
            fusion: sum(part.bytes[fusion] for part in self.parts.values()) for fusion in FUSIONS
        }

    @property
    def parameter_bytes(self) -> float:
        """Bytes of weights, gradients and momentum per step, of all parts."""
        return sum(part.parameter_bytes for part in self.parts.values())

    def seconds(
        self, views: int, fusion: Fusion, flops_per_second: float, bytes_per_second: float
    ) -> float:
        """The least time of a step in which arithmetic and memory traffic do not overlap.

        They overlap little: convolutions are bound by arithmetic, BatchNorm by memory.

        Args:
            views: views of the step, of all images together.
            fusion: level of fusion.
            flops_per_second: peak arithmetic in the dtype, measured.
            bytes_per_second: bandwidth of a copy, read and written together, measured.
        """
        return sum(
            self.part_seconds(part, views, fusion, flops_per_second, bytes_per_second)
            for part in PARTS
        )

    def part_seconds(
        self,
        name: str,
        views: int,
        fusion: Fusion,
        flops_per_second: float,
        bytes_per_second: float,
    ) -> float:
        """The least time of one part: `forward`, `backward` or `update`."""
        part = self.parts[name]
        moved = views * part.bytes[fusion] + part.parameter_bytes
        return views * part.flops / flops_per_second + moved / bytes_per_second


def step_cost(
    make_method: Callable[[], nn.Module], image_size: int, num_views: int, dtype: torch.dtype
) -> StepCost:
    """Counts a method's training step.

    Args:
        make_method: builds a `Method` with a `backbone`; called on the meta device, where nothing is
            computed.
        image_size: side of the views in pixels.
        num_views: views per image.
        dtype: dtype of the activations; parameters and momentum are float32.

    Raises:
        ValueError: torch.fx cannot trace the backbone.
    """
    with torch.device("meta"):
        method = make_method()
        views = tuple(torch.empty(_BATCH, 3, image_size, image_size) for _ in range(num_views))
        labels = torch.zeros(_BATCH, dtype=torch.int64)
        forward, backward = FlopCounterMode(display=False), FlopCounterMode(display=False)
        with forward:
            loss, _ = method(views, labels)
        with backward:
            loss.backward()
    backbone = method.get_submodule("backbone")
    elements = {fusion: _elements(backbone, views[0], fusion) for fusion in FUSIONS}
    parameters = sum(p.numel() for p in method.parameters() if p.requires_grad)
    read = parameters * num_views * dtype.itemsize

    def part(direction: int, counter: FlopCounterMode, parameter_bytes: int) -> PartCost:
        return PartCost(
            flops=counter.get_total_flops() / (_BATCH * num_views),
            bytes={f: count[direction] * dtype.itemsize / _BATCH for f, count in elements.items()},
            parameter_bytes=parameter_bytes,
        )

    return StepCost(
        parts={
            "forward": part(0, forward, read),
            # The weights are read again, the float32 gradient is written.
            "backward": part(1, backward, read + 4 * parameters),
            # Gradient, momentum and weight are read, momentum and weight are written.
            "update": PartCost(
                flops=0, bytes=dict.fromkeys(FUSIONS, 0.0), parameter_bytes=5 * 4 * parameters
            ),
        }
    )


def _elements(backbone: nn.Module, view: Tensor, fusion: Fusion) -> tuple[int, int]:
    """Elements that the kernels of the forward and the backward pass read and write."""
    try:
        traced = fx.symbolic_trace(backbone)
    except Exception as error:  # torch.fx raises whatever the traced code raises
        raise ValueError(f"torch.fx cannot trace this backbone ({error})") from error
    ShapeProp(traced).propagate(view)  # type: ignore[no-untyped-call]
    costs = [_cost(node, traced, fusion) for node in traced.graph.nodes]
    return sum(cost[0] for cost in costs), sum(cost[1] for cost in costs)


def _size(node: fx.Node) -> int:
    meta = node.meta.get("tensor_meta")
    return int(meta.shape.numel()) if hasattr(meta, "shape") else 0


def _cost(node: fx.Node, traced: fx.GraphModule, fusion: Fusion) -> tuple[int, int]:
    """Elements that a node reads and writes, forward and backward."""
    kind = node_kind(node, traced)
    if kind is None:
        return 0, 0
    out = _size(node)
    inputs = [_size(source) for source in node.all_input_nodes]
    # The gradients of a tensor's users are summed: each after the first costs two inputs and an output,
    # or one more input of a fused kernel.
    forks = max(0, len(node.users) - 1) * (3 if fusion == "separate" else 1) * out
    forward, backward = _kernel_cost(node, kind, traced, fusion, inputs, out)
    return forward, backward + forks


def _kernel_cost(
    node: fx.Node, kind: str, traced: fx.GraphModule, fusion: Fusion, inputs: list[int], out: int
) -> tuple[int, int]:
    first = any(source.op == "placeholder" for source in node.all_input_nodes)
    if kind == "product":
        # Forward: input, output. Backward: the gradient twice, the input once, and the gradient of the
        # input, which images do not need.
        backward = out + inputs[0] + (0 if first else out + inputs[0])
        return inputs[0] + out, backward + _prologue(node, traced, fusion, out)
    if kind == "norm":
        # Forward: the input twice, the output. Backward: input and gradient twice, then the gradient
        # of the input.
        return (0, 0) if fusion == "epilogue" else (3 * out, 5 * out)
    if kind == "relu":
        return (2 * out, 3 * out) if fusion == "separate" else (0, 0)
    if kind == "add":
        # One operand is the output of a BatchNorm. Fused with it, the addition costs one more input,
        # and the gradient of the skip connection one more output.
        if fusion == "separate":
            return 3 * out, 0
        # In `epilogue`, the BatchNorm's reads and writes count here: the sum has to be in memory.
        return (out, out) if fusion == "fused" else (3 * out, out)
    return inputs[0] + out, inputs[0] + out  # pooling


def _prologue(node: fx.Node, traced: fx.GraphModule, fusion: Fusion, out: int) -> int:
    """Elements that a fused BatchNorm's backward pass adds to its convolution.

    The reductions read the convolution's output while the gradient is written; applying them reads it
    again before each of the two products of the backward pass.
    """
    normed = any(node_kind(user, traced) == "norm" for user in node.users)
    return 3 * out if fusion == "epilogue" and normed else 0
