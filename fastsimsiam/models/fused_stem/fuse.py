"""The stem of a ResNet for large images: convolution, BatchNorm, ReLU and max-pooling, fused.

The map between convolution and pooling is written once, by the convolution, and so is its gradient:
normalized values and their gradients are computed in the pooling's kernels. BatchNorm's gradients are
sums over the pooled map alone, of the gradients and the values that the pooling chose.
"""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torchvision.models.resnet import ResNet

from fastsimsiam.models.fused_batch_norm.fuse import FusedBatchNorm2d, is_plain
from fastsimsiam.models.fused_batch_norm.sums import (
    channel_gradient_sums,
    channel_moments,
    merged,
    num_pixels,
)
from fastsimsiam.models.fused_stem.convolution import SpaceToDepthConv2d, fits
from fastsimsiam.models.fused_stem.pool import max_pool, norm_relu_pool, norm_relu_pool_gradient


class _NormReluPool(torch.autograd.Function):
    """max_pool(relu(batch_norm(x))) and its gradients."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, twice: bool
    ) -> tuple[Tensor, ...]:
        """See `fused_norm_pool`."""
        mean, variance = merged(x, *channel_moments(x))
        deviation = torch.rsqrt(variance + eps)
        scale = weight * deviation
        shift = bias - mean * scale
        pooled, position, largest = norm_relu_pool(x, scale, shift)
        ctx.save_for_backward(x, position, largest, mean, deviation, scale, shift)
        ctx.twice = twice
        ctx.mark_non_differentiable(mean, variance)
        # A second output has its own gradient; the compiler removes the copy.
        users = (pooled, pooled.clone()) if twice else (pooled,)
        return *users, mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight and bias."""
        x, position, largest, mean, deviation, scale, shift = ctx.saved_tensors
        first, second = gradients[0], gradients[1] if ctx.twice else None
        behind, g_sums, product_sums = channel_gradient_sums(
            first, second, largest, mean, scale, shift, None, True
        )
        if second is None:
            behind = first  # the positions have the ReLU's mask
        g_sum, product_sum = g_sums.sum(0), product_sums.sum(0)
        count = num_pixels(x)
        slope = -scale * product_sum * deviation.square() / count
        level = -scale * g_sum / count - mean * slope
        dx = norm_relu_pool_gradient(behind, position, x, scale, slope, level)
        return dx, product_sum * deviation, g_sum, None, None


# Traced by AOTAutograd, not by Dynamo: torch 2.11's Dynamo loses gradients of such functions.
@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]
def fused_norm_pool(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, twice: bool
) -> tuple[Tensor, ...]:
    """max_pool(relu(batch_norm(x))), 3x3 with stride 2 and padding 1.

    Args:
        x: (N, C, H, W), channels_last.
        weight, bias, eps: the BatchNorm's.
        twice: whether the output has two users.

    Returns:
        The output (N, C, P, Q) once per user, then mean and variance (C,) of x, without gradients.
    """
    outputs: tuple[Tensor, ...] = _NormReluPool.apply(x, weight, bias, eps, twice)
    return outputs


class PooledBatchNorm2d(FusedBatchNorm2d):
    """A FusedBatchNorm2d that can also pool its ReLU's output."""

    def forward(  # type: ignore[override]  # `fuse_stem` passes the rest
        self,
        input: Tensor,
        residual: Tensor | None = None,
        *,
        relu: bool = False,
        twice: bool = False,
        pool: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """As FusedBatchNorm2d; with `pool`, relu is done, and (N, C, H, W) becomes (N, C, P, Q)."""
        if not pool:
            return super().forward(input, residual, relu=relu, twice=twice)
        if not self.training:
            normed = super().forward(input, relu=True)
            assert isinstance(normed, Tensor)
            output = F.max_pool2d(normed, 3, 2, 1)
            return (output, output) if twice else output
        *outputs, mean, variance = fused_norm_pool(input, self.weight, self.bias, self.eps, twice)
        self.track(input, mean, variance)
        return tuple(outputs) if twice else outputs[0]


class GatheredMaxPool2d(nn.MaxPool2d):
    """Max-pooling, whose gradient is gathered instead of scattered."""

    def forward(self, input: Tensor) -> Tensor:
        """Maps (N, C, H, W) to (N, C, P, Q)."""
        if not self.training:
            output: Tensor = super().forward(input)
            return output
        pooled: Tensor = max_pool(input)[0]
        return pooled


class _WholeStem(PooledBatchNorm2d):
    """A PooledBatchNorm2d in a network that calls it with its input alone."""

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        output = super().forward(input, pool=True)
        assert isinstance(output, Tensor)
        return output


def fuse_stem(backbone: nn.Module) -> nn.Module:
    """Fuses convolution, BatchNorm, ReLU and max-pooling at the start of a ResNet of torchvision.

    With `fuse_norms`, it comes second: `fuse_stem(fuse_norms(network))`; with `fuse_bottlenecks`, first
    or second.

    Args:
        backbone: a ResNet, whose layers are changed; or the traced network of `fuse_norms`, whose graph
            is changed. All weights keep their names.

    Returns:
        The backbone; it stays what it was if it is neither, or has another stem, as for small images.
    """
    if isinstance(backbone, fx.GraphModule):
        for node in list(backbone.graph.nodes):
            layer = _layer(node, backbone)
            if fits(layer) and node.all_input_nodes[0].op == "placeholder":
                _use(SpaceToDepthConv2d, layer)
            elif _is_pool(layer):
                _fuse_pool(node, backbone)
        backbone.graph.eliminate_dead_code()
        backbone.recompile()
    elif isinstance(backbone, ResNet):
        _fuse_layers(backbone)
    return backbone


def _fuse_layers(network: Any) -> None:  # torchvision has no types
    if fits(network.conv1):
        _use(SpaceToDepthConv2d, network.conv1)
    if not _is_pool(network.maxpool):
        return
    norm, relu = network.bn1, network.relu
    # `fuse_bottlenecks` leaves a BatchNorm with its ReLU, and an identity.
    with_relu = isinstance(norm, FusedBatchNorm2d) and type(relu) is nn.Identity
    if with_relu or (is_plain(norm) and type(relu) is nn.ReLU):
        _use(_WholeStem, norm)
        network.relu = network.maxpool = nn.Identity()
    else:
        _use(GatheredMaxPool2d, network.maxpool)


def _fuse_pool(pool: fx.Node, traced: fx.GraphModule) -> None:
    norm = _norm_before(pool.all_input_nodes[0], traced)
    if norm is None:
        _use(GatheredMaxPool2d, _layer(pool, traced))
        return
    _use(PooledBatchNorm2d, _layer(norm, traced))
    norm.args = norm.args[:1]
    norm.kwargs = {"pool": True}
    users = list(pool.users)
    pool.replace_all_uses_with(norm)
    if len(users) == 2:
        norm.kwargs = {"pool": True, "twice": True}
        for number, user in enumerate(users):
            with traced.graph.inserting_after(norm):
                one = traced.graph.call_function(operator.getitem, (norm, number))
            user.replace_input_with(norm, one)


def _norm_before(before: fx.Node, traced: fx.GraphModule) -> fx.Node | None:
    """The BatchNorm whose output after its ReLU has a pooling as its only user."""
    alone = len(before.users) == 1 and len(before.all_input_nodes) == 1
    fused = type(_layer(before, traced)) is FusedBatchNorm2d
    return before if alone and fused and before.kwargs == {"relu": True} else None


def _use(kind: type[nn.Module], layer: nn.Module | None) -> None:
    assert layer is not None
    layer.__class__ = kind


def _layer(node: fx.Node, traced: fx.GraphModule) -> nn.Module | None:
    return traced.get_submodule(str(node.target)) if node.op == "call_module" else None


def _is_pool(layer: nn.Module | None) -> bool:
    # Sides are numbers or pairs.
    sizes = (3, 2, 1, 1)
    return (
        type(layer) is nn.MaxPool2d
        and not (layer.ceil_mode or layer.return_indices)
        and all(
            given in (size, (size, size))
            for given, size in zip(
                (layer.kernel_size, layer.stride, layer.padding, layer.dilation), sizes, strict=True
            )
        )
    )
