"""BatchNorm by ATen's kernels within a compiled graph, instead of Inductor's.

Inductor fuses its own BatchNorm with the following ReLU and addition, but its reductions over channels
are not always faster than ATen's. A custom operator is opaque to Inductor.
"""

import torch
from torch import Tensor, nn


@torch.library.custom_op("fastsimsiam::aten_batch_norm", mutates_args=())
def _batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    # An operator with a gradient must not mutate its arguments: `forward` updates running statistics.
    return torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)


@_batch_norm.register_fake
def _(x, weight, bias, eps):  # type: ignore[no-untyped-def]
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)


@torch.library.custom_op("fastsimsiam::aten_batch_norm_backward", mutates_args=())
def _batch_norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, saved_mean: Tensor, saved_deviation: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    # With a gradient in another layout, the kernels would copy all operands.
    layout = torch.channels_last if x.dim() == 4 else torch.contiguous_format
    grad = grad.contiguous(memory_format=layout)
    dx, dweight, dbias = torch.ops.aten.native_batch_norm_backward(
        grad, x, weight, None, None, saved_mean, saved_deviation, True, eps, [True, True, True]
    )
    return dx, dweight, dbias


@_batch_norm_backward.register_fake
def _(grad, x, weight, saved_mean, saved_deviation, eps):  # type: ignore[no-untyped-def]
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, weight, _, ctx.eps = inputs
    ctx.save_for_backward(x, weight, *output[1:])


def _backward(ctx, grad, *_):  # type: ignore[no-untyped-def]
    return *_batch_norm_backward(grad, *ctx.saved_tensors, ctx.eps), None


_batch_norm.register_autograd(_backward, setup_context=_setup_context)


class AtenBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d that is opaque to the compiler in training mode."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalizes (N, C, H, W)."""
        if not self.training:
            return super().forward(input)
        out, mean, deviation = _batch_norm(input, self.weight, self.bias, self.eps)
        with torch.no_grad():
            count = input.numel() // input.shape[1]
            variance = (deviation.pow(-2) - self.eps) * (count / (count - 1))
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance, self.momentum)
            self.num_batches_tracked.add_(1)
        return out


def use_aten(module: nn.Module) -> None:
    """Turns all BatchNorm2d layers of a module into AtenBatchNorm2d, in place."""
    for layer in module.modules():
        if type(layer) is nn.BatchNorm2d:
            layer.__class__ = AtenBatchNorm2d
