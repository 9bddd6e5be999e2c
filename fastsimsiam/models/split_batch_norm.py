"""BatchNorm that takes its statistics over groups of the batch, as over as many GPUs.

MoCo was trained on 8 GPUs of 32 images, each with its own statistics, and its keys were shuffled among
them. On one device the groups are parts of the batch. Shapes: N images, C channels, G groups.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _SplitBatchNorm(nn.modules.batchnorm._BatchNorm):
    """What both layers below do; keys and values of the state are those of BatchNorm.

    Attributes:
        group_size: consecutive images whose statistics are taken together, N / G.
    """

    group_size: int

    def forward(self, input: Tensor) -> Tensor:
        """Normalizes (N, C, ...); while training, N must be a multiple of the size of a group.

        The running statistics move once, by the mean over the groups of their means and of their
        unbiased variances.
        """
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        if not self.training:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        num_groups, rest = divmod(len(input), self.group_size)
        assert rest == 0
        if torch.compiler.is_compiling():
            output, mean, var = _normalized(input, self.weight, self.bias, num_groups, self.eps)
        else:
            output, mean, var = _Normalize.apply(
                input, self.weight, self.bias, num_groups, self.eps
            )
        with torch.no_grad():
            self._move_running_statistics(mean, var)
        return output

    def _move_running_statistics(self, mean: Tensor, var: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean.mean(0), self.momentum)
        self.running_var.lerp_(var.mean(0), self.momentum)
        self.num_batches_tracked.add_(1)

    def extra_repr(self) -> str:
        """Shows the size of the groups, too."""
        plain: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{plain}, group_size={self.group_size}"


class SplitBatchNorm1d(_SplitBatchNorm, nn.BatchNorm1d):
    """`nn.BatchNorm1d` with statistics of each group of the batch; see `split_batch_norm`."""


class SplitBatchNorm2d(_SplitBatchNorm, nn.BatchNorm2d):
    """`nn.BatchNorm2d` with statistics of each group of the batch; see `split_batch_norm`."""


_SPLIT: dict[type[nn.Module], type[_SplitBatchNorm]] = {
    nn.BatchNorm1d: SplitBatchNorm1d,
    nn.BatchNorm2d: SplitBatchNorm2d,
}


def split_batch_norm(module: nn.Module, group_size: int) -> None:
    """Gives every BatchNorm of a module statistics of groups of the batch, in place.

    The state dict stays that of BatchNorm, and so does evaluation.

    Args:
        module: the network.
        group_size: consecutive images whose statistics are taken together.
    """
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            # A layer of another kind would let query and key share statistics, unnoticed.
            assert type(layer) in _SPLIT, type(layer)
            assert layer.track_running_stats
            layer.__class__ = _SPLIT[type(layer)]
            layer.group_size = group_size  # type: ignore[assignment]


class _Normalize(torch.autograd.Function):
    """torch's kernels of BatchNorm, group by group, which write into parts of one tensor.

    On a CPU it is the fastest of four ways (benchmarks/LOG.md).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, num_groups: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The normalized x, and means and unbiased variances (G, C)."""
        output = torch.empty_like(x)
        shape, dtype = (2, num_groups, x.shape[1]), _dtype_of_statistics(x)
        # With momentum 1, "running" statistics are those of the group.
        means, variances = x.new_zeros(shape, dtype=dtype)
        centers, scales = x.new_empty(shape, dtype=dtype)
        parts = zip(x.chunk(num_groups), output.chunk(num_groups), strict=True)
        for group, (part, out) in enumerate(parts):
            torch.ops.aten.native_batch_norm.out(
                part,
                weight,
                bias,
                means[group],
                variances[group],
                True,
                1.0,
                eps,
                out=out,
                save_mean=centers[group],
                save_invstd=scales[group],
            )
        ctx.save_for_backward(x, weight, bias, centers, scales)
        ctx.eps = eps
        ctx.mark_non_differentiable(means, variances)
        return output, means, variances

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, weight and bias."""
        x, weight, bias, centers, scales = ctx.saved_tensors
        num_groups = len(centers)
        to_x = torch.empty_like(x)
        to_weight, to_bias = centers.new_empty((2, *centers.shape))
        parts = zip(
            x.chunk(num_groups), gradient.chunk(num_groups), to_x.chunk(num_groups), strict=True
        )
        for group, (part, incoming, out) in enumerate(parts):
            torch.ops.aten.native_batch_norm_backward.out(
                incoming,
                part,
                weight,
                None,
                None,
                centers[group],
                scales[group],
                True,
                ctx.eps,
                (True, True, True),
                out0=out,
                out1=to_weight[group],
                out2=to_bias[group],
            )
        return (
            to_x,
            None if weight is None else to_weight.sum(0),
            None if bias is None else to_bias.sum(0),
            None,
            None,
        )


def _normalized(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, num_groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """What `_Normalize` computes, in operations that a compiler fuses with their surroundings."""
    grouped = x.view(num_groups, -1, *x.shape[1:]).to(_dtype_of_statistics(x))
    summed = (1, *range(3, grouped.dim()))
    var, mean = torch.var_mean(grouped, summed, correction=0, keepdim=True)
    per_channel = (-1, *[1] * (x.dim() - 2))
    scale = torch.rsqrt(var + eps)
    if weight is not None:
        scale = scale * weight.view(per_channel)
    output = (grouped - mean) * scale
    if bias is not None:
        output = output + bias.view(per_channel)
    count = x.numel() // x.shape[1] // num_groups
    unbiased = var * (count / (count - 1))
    return output.to(x.dtype).flatten(0, 1), mean.flatten(1), unbiased.flatten(1)


def _dtype_of_statistics(x: Tensor) -> torch.dtype:
    return torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype
