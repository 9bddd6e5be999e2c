"""BatchNorm fused with the ReLU and the residual addition that follow it, for a compiled graph.

Compared with torch.compile's own BatchNorm, the backward pass takes the ReLU's mask from the input
instead of reading the output, and reads the gradients of a residual sum's two users once instead of
twice.
"""

import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from fastsimsiam.models.fused_batch_norm.graph import node_kind
from fastsimsiam.models.fused_batch_norm.sums import (
    channel_gradient_sums,
    channel_moments,
    gradient_sums,
    is_written,
    merged,
    moments,
    normalized,
    num_pixels,
    per_channel,
)


class _FusedNorm(torch.autograd.Function):
    """relu(batch_norm(x) + residual) and its gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        residual: Tensor | None,
        eps: float,
        relu: bool,
        twice: bool,
        opaque: bool,
    ) -> tuple[Tensor, ...]:
        """See `fused_norm`."""
        # The sums index all maps as they index x.
        assert residual is None or residual.shape == x.shape
        mean, variance = merged(x, *(channel_moments if opaque else moments)(x))
        deviation = torch.rsqrt(variance + eps)
        scale = weight * deviation
        shift = bias - mean * scale
        output = normalized(x, scale, shift)
        if residual is not None:
            output = output + residual
        if relu:
            output = output.relu()
        output = output.to(x.dtype)
        relu_output = output if relu and residual is not None else None
        ctx.save_for_backward(x, mean, deviation, scale, shift, relu_output)
        ctx.relu, ctx.twice, ctx.opaque, ctx.added = relu, twice, opaque, residual is not None
        ctx.mark_non_differentiable(mean, variance)
        # A second output has its own gradient; the compiler removes the copy.
        users = (output, output.clone()) if twice else (output,)
        return *users, mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight, bias and residual."""
        x, mean, deviation, scale, shift, relu_output = ctx.saved_tensors
        first, second = gradients[0], gradients[1] if ctx.twice else None
        sums = channel_gradient_sums if ctx.opaque else gradient_sums
        behind, g_sums, product_sums = sums(
            first, second, x, mean, scale, shift, relu_output, ctx.relu
        )
        if not is_written(second, relu_output):
            behind = first
            if ctx.relu:
                behind = torch.where(normalized(x, scale, shift) > 0, first, 0)
        g_sum, product_sum = g_sums.sum(0), product_sums.sum(0)
        slope = product_sum * deviation.square() / num_pixels(x)
        centered = x.float() - per_channel(mean)
        level = per_channel(g_sum / num_pixels(x)) + centered * per_channel(slope)
        dx = per_channel(scale) * (behind.float() - level)
        residual = behind if ctx.added else None
        return dx.to(x.dtype), product_sum * deviation, g_sum, residual, None, None, None, None


# Traced by AOTAutograd, not by Dynamo: torch 2.11's Dynamo loses gradients of this function.
@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]
def fused_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    eps: float,
    relu: bool,
    twice: bool,
    opaque: bool,
) -> tuple[Tensor, ...]:
    """relu(batch_norm(x) + residual).

    Args:
        x: (N, C, H, W), channels_last.
        weight, bias, eps: the BatchNorm's.
        residual: (N, C, H, W), or None.
        relu: whether there is a ReLU.
        twice: whether the output has two users.
        opaque: whether sums are custom operators instead of the compiler's reductions.

    Returns:
        The output once per user, then mean and variance (C,) of x, without gradients.
    """
    outputs: tuple[Tensor, ...] = _FusedNorm.apply(
        x, weight, bias, residual, eps, relu, twice, opaque
    )
    return outputs


class FusedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d fused with the ReLU and the addition that follow it.

    Attributes:
        opaque: sums are custom operators instead of the compiler's reductions.
    """

    opaque = True

    def forward(  # type: ignore[override]  # `fuse_norms` passes the rest
        self,
        input: Tensor,
        residual: Tensor | None = None,
        *,
        relu: bool = False,
        twice: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Maps (N, C, H, W) to (N, C, H, W), returned twice where the output has two users."""
        if not self.training:
            output = super().forward(input)
            output = output if residual is None else output + residual
            output = output.relu() if relu else output
            return (output, output) if twice else output
        *outputs, mean, variance = fused_norm(
            input, self.weight, self.bias, residual, self.eps, relu, twice, self.opaque
        )
        self.track(input, mean, variance)
        return tuple(outputs) if twice else outputs[0]

    def track(self, input: Tensor, mean: Tensor, variance: Tensor) -> None:
        """Updates the running statistics by mean and variance (C,) of the input (N, C, H, W)."""
        with torch.no_grad():
            count = num_pixels(input)
            # `is_plain` has checked these.
            assert self.running_mean is not None and self.running_var is not None  # noqa: PT018
            assert self.momentum is not None and self.num_batches_tracked is not None  # noqa: PT018
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
            self.num_batches_tracked.add_(1)


def fuse_norms(backbone: nn.Module, *, opaque: bool = True) -> fx.GraphModule:
    """Fuses the BatchNorm2d layers of a network with the ReLU and the addition that follow them.

    Args:
        backbone: the network; the result shares its layers and their names.
        opaque: see `FusedBatchNorm2d`.

    Raises:
        Exception: torch.fx cannot trace the backbone.
        AssertionError: in training, an addition broadcasts maps of different shapes.
    """
    traced = fx.symbolic_trace(backbone)
    for node in list(traced.graph.nodes):
        if node.op == "call_module" and is_plain(traced.get_submodule(node.target)):
            _fuse(node, traced, opaque)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    return traced


def is_plain(layer: nn.Module | None) -> bool:
    """Whether a layer is a BatchNorm2d with the usual weights and running statistics."""
    if type(layer) is not nn.BatchNorm2d or not layer.affine or not layer.track_running_stats:
        return False
    return layer.momentum is not None


def _fuse(norm: fx.Node, traced: fx.GraphModule, opaque: bool) -> None:
    layer = traced.get_submodule(str(norm.target))
    layer.__class__ = FusedBatchNorm2d
    assert isinstance(layer, FusedBatchNorm2d)
    layer.opaque = opaque
    last, residual = norm, None
    addition = _only_user(last, "add", traced)
    # Fused into the later of the two operands, when the other exists.
    if addition and not addition.kwargs and _comes_last(norm, addition):
        (residual,) = (n for n in addition.all_input_nodes if n is not norm)
        last = addition
    relu = _only_user(last, "relu", traced)
    if relu:
        last = relu
    elif residual is not None:  # an addition without a ReLU
        last, residual = norm, None
    if last is norm:
        return
    norm.args = (norm.args[0], residual)
    norm.kwargs = {"relu": True}
    users = list(last.users)
    last.replace_all_uses_with(norm)
    if residual is not None and len(users) == 2:
        norm.kwargs = {"relu": True, "twice": True}
        for number, user in enumerate(users):
            with traced.graph.inserting_after(norm):
                one = traced.graph.call_function(operator.getitem, (norm, number))
            user.replace_input_with(norm, one)


def _only_user(node: fx.Node, kind: str, traced: fx.GraphModule) -> fx.Node | None:
    """The node's only user if it is of this kind; of the kinds of ReLU, plain nn.ReLU alone."""
    users = list(node.users)
    if len(users) != 1 or node_kind(users[0], traced) != kind:
        return None
    is_module = kind == "relu" and users[0].op == "call_module"
    if is_module and type(traced.get_submodule(str(users[0].target))) is not nn.ReLU:
        return None
    return users[0]


def _comes_last(norm: fx.Node, addition: fx.Node) -> bool:
    """Whether the addition has two operands, and the other one exists before the BatchNorm."""
    order = list(norm.graph.nodes)
    operands = addition.all_input_nodes
    return len(operands) == 2 and all(order.index(n) <= order.index(norm) for n in operands)
