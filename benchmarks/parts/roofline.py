"""How fast a training step could be: its arithmetic, and the fewest bytes that it moves.

Bytes are counted from the backbone's graph, tensor by tensor, for three levels of fusion:

- `separate`: BatchNorm, ReLU and residual addition are kernels of their own;
- `fused`: BatchNorm, ReLU and addition behind it are one kernel, forward and backward;
- `epilogue`: BatchNorm's statistics are taken while a convolution writes its output, and its
  normalization (with ReLU) is applied while the next convolution reads it. Only what a residual
  addition makes is written down once more.

A tensor counts once for each kernel that reads or writes it; what stays in a cache between kernels is
not modelled, nor are the heads, whose activations are small. BatchNorm in training mode reads its
input twice forward (statistics, normalization), and input and gradient twice backward.
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
    """What a part of a step costs.

    Attributes:
        flops: floating-point operations for each view; a multiply-add is two.
        bytes: level of fusion -> bytes of activations that are read and written for each view.
        parameter_bytes: read and written for weights, gradients and momentum, once a step.
    """

    flops: float
    bytes: dict[Fusion, float]
    parameter_bytes: float


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """What a training step costs for each view (a source image has two or more), part by part."""

    parts: dict[str, PartCost]

    @property
    def flops(self) -> float:
        """Of all parts."""
        return sum(part.flops for part in self.parts.values())

    @property
    def bytes(self) -> dict[Fusion, float]:
        """Of all parts."""
        return {
            fusion: sum(part.bytes[fusion] for part in self.parts.values()) for fusion in FUSIONS
        }

    @property
    def parameter_bytes(self) -> float:
        """Of all parts."""
        return sum(part.parameter_bytes for part in self.parts.values())

    def seconds(
        self, views: int, fusion: Fusion, flops_per_second: float, bytes_per_second: float
    ) -> float:
        """The least time of a step in which arithmetic and memory do not overlap.

        Convolutions are bound by one, BatchNorm by the other, so most of a step is either.

        Args:
            views: in the step, all images and views together.
            fusion: level of fusion.
            flops_per_second: of a matrix product of the dtype, measured.
            bytes_per_second: of a copy, read and written together, measured.
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
        """The same of a part: `forward`, `backward` or `update`."""
        part = self.parts[name]
        moved = views * part.bytes[fusion] + part.parameter_bytes
        return views * part.flops / flops_per_second + moved / bytes_per_second


def step_cost(
    make_method: Callable[[], nn.Module], image_size: int, num_views: int, dtype: torch.dtype
) -> StepCost:
    """Counts a method's training step.

    Args:
        make_method: builds a `Method` with a `backbone`; called on the meta device, so that nothing
            is computed.
        image_size: side of the views in pixels.
        num_views: views of an image.
        dtype: of activations; parameters and momentum are float32.

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
    parameters = sum(p.numel() for p in method.parameters())
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
            # The gradient is written once.
            "backward": part(1, backward, read + 4 * parameters),
            # Gradient, momentum and weight are read, momentum and weight written.
            "update": PartCost(
                flops=0, bytes=dict.fromkeys(FUSIONS, 0.0), parameter_bytes=5 * 4 * parameters
            ),
        }
    )


def _elements(backbone: nn.Module, view: Tensor, fusion: Fusion) -> tuple[int, int]:
    """Elements that the kernels of the forward and of the backward pass read and write."""
    try:
        traced = fx.symbolic_trace(backbone)
    except Exception as error:  # torch.fx raises what the traced code happens to raise
        raise ValueError(f"torch.fx cannot trace this backbone ({error})") from error
    ShapeProp(traced).propagate(view)  # type: ignore[no-untyped-call]
    costs = [_cost(node, traced, fusion) for node in traced.graph.nodes]
    return sum(cost[0] for cost in costs), sum(cost[1] for cost in costs)


def _size(node: fx.Node) -> int:
    found = node.meta.get("tensor_meta")
    return int(found.shape.numel()) if hasattr(found, "shape") else 0


def _cost(node: fx.Node, traced: fx.GraphModule, fusion: Fusion) -> tuple[int, int]:
    """Elements, forward and backward."""
    kind = node_kind(node, traced)
    if kind is None:
        return 0, 0
    out = _size(node)
    inputs = [_size(source) for source in node.all_input_nodes]
    # Gradients of all users of a tensor but the first are added to that of the first: two inputs and
    # an output, or one more input of a fused kernel.
    forks = max(0, len(node.users) - 1) * (3 if fusion == "separate" else 1) * out
    forward, backward = _own_cost(node, kind, traced, fusion, inputs, out)
    return forward, backward + forks


def _own_cost(
    node: fx.Node, kind: str, traced: fx.GraphModule, fusion: Fusion, inputs: list[int], out: int
) -> tuple[int, int]:
    first = any(source.op == "placeholder" for source in node.all_input_nodes)
    if kind == "product":
        # Forward: input, output. Backward: the gradient twice and the input once, and the input's
        # gradient, which the images do not need.
        backward = out + inputs[0] + (0 if first else out + inputs[0])
        return inputs[0] + out, backward + _prologue(node, traced, fusion, out)
    if kind == "norm":
        # Forward: the input twice, the output. Backward: input and gradient twice, its gradient.
        return (0, 0) if fusion == "epilogue" else (3 * out, 5 * out)
    if kind == "relu":
        return (2 * out, 3 * out) if fusion == "separate" else (0, 0)
    if kind == "add":
        # One of the operands comes out of a BatchNorm. Fused with it, addition is one more input, and
        # the gradient for the skipping branch one more output.
        if fusion == "separate":
            return 3 * out, 0
        # In `epilogue`, what the BatchNorm reads and writes is counted here: the sum has to exist.
        return (out, out) if fusion == "fused" else (3 * out, out)
    return inputs[0] + out, inputs[0] + out  # pooling


def _prologue(node: fx.Node, traced: fx.GraphModule, fusion: Fusion, out: int) -> int:
    """What BatchNorm's backward pass adds to a convolution that has taken it in.

    Its reductions read the convolution's output while the gradient is written; its application reads
    it again before each of the two products of the backward pass.
    """
    normed = any(node_kind(user, traced) == "norm" for user in node.users)
    return 3 * out if fusion == "epilogue" and normed else 0
