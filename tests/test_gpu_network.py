"""The kernels of the network, on a GPU: what torch computes, and no worse gradients."""

from collections.abc import Callable

import pytest
import tiny_backbone  # noqa: F401 (registers tiny_resnet)
import torch
import torchvision
from gpu_steps import NEEDS_GPU
from test_fused_bottleneck import SmallResNet

from fastsimsiam.models.fused_batch_norm.fuse import fuse_norms
from fastsimsiam.models.fused_bottleneck import operators
from fastsimsiam.models.fused_bottleneck.fuse import fuse_bottlenecks
from fastsimsiam.models.fused_stem.convolution import space_to_depth
from fastsimsiam.models.fused_stem.fuse import fuse_stem
from fastsimsiam.models.fused_stem.pool import max_pool, norm_relu_pool, norm_relu_pool_gradient

pytestmark = NEEDS_GPU


@pytest.mark.parametrize("opaque", [True, False])
def test_fused_norms_have_the_gradients_of_float32(opaque: bool) -> None:
    """Compiled, under autocast; their rounding is no worse than that of torch's kernels."""
    torch.manual_seed(0)
    network = torchvision.models.get_model("tiny_resnet").cuda()
    assert_gradients_of_float32(network, lambda: fuse_norms(network, opaque=opaque))


def test_fused_bottlenecks_have_the_gradients_of_float32() -> None:
    """Compiled, under autocast, as above."""
    torch.manual_seed(0)
    network = SmallResNet().cuda()
    assert_gradients_of_float32(network, lambda: fuse_bottlenecks(network))


@pytest.mark.parametrize("norms", [True, False])
def test_a_fused_stem_has_the_gradients_of_float32(norms: bool) -> None:
    """Compiled, under autocast, as above."""
    torch.manual_seed(0)
    network = torchvision.models.get_model("tiny_resnet").cuda()
    assert_gradients_of_float32(
        network, lambda: fuse_stem(fuse_norms(network) if norms else network)
    )


def assert_gradients_of_float32(
    network: torch.nn.Module, fuse: Callable[[], torch.nn.Module]
) -> None:
    network.to(memory_format=torch.channels_last)
    x = torch.randn(64, 3, 64, 64, device="cuda").to(memory_format=torch.channels_last)

    def gradients(module: torch.nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        network.zero_grad()
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            output = module(x)
        output.float().square().mean().backward()
        return {name: p.grad.clone() for name, p in network.named_parameters()}

    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        exact = gradients(network, torch.float32)
    usual = gradients(network, torch.bfloat16)
    fused = torch.compile(fuse(), fullgraph=True, dynamic=False)
    for name, gradient in gradients(fused, torch.bfloat16).items():
        error = (gradient - exact[name]).norm()
        # Both errors are chance, of few values in a bias; a gradient that is lost is far outside.
        assert error <= 3 * (usual[name] - exact[name]).norm() + 1e-3 * exact[name].norm(), name


@pytest.mark.parametrize("channels", [16, 128])  # each compiles nine kernels
def test_fused_convolutions_compute_what_torch_does(channels: int) -> None:
    """Each operator on a GPU beside its torch operations on a CPU, in bfloat16."""
    wide = 4 * channels
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    def a_map(channels: int) -> torch.Tensor:
        made = random(3, channels, 13, 13, dtype=torch.bfloat16)  # 507 pixels: no tile fits
        return made.to(memory_format=torch.channels_last)

    narrow_map, gradient, residual, mask = (a_map(n) for n in (channels, wide, wide, channels))
    weight = random(wide, channels, dtype=torch.bfloat16)
    matrix = random(channels, channels, dtype=torch.bfloat16)
    norm, behind = (random(channels), random(channels)), (random(wide), random(wide))
    center = random(channels)
    calls = (
        (operators.conv_moments, (residual, weight.t().contiguous())),
        (operators.conv_join, (narrow_map, *norm, weight, *behind, residual, None, None)),
        (operators.conv_join, (narrow_map, *norm, weight, *behind, None, narrow_map, weight)),
        (operators.conv_join_gradient, (gradient, weight, None, narrow_map, mask)),
        (operators.conv_join_gradient, (gradient, weight, center, None, None)),
        (
            operators.conv_masked_gradient,
            (gradient, weight, narrow_map, *norm, center, matrix, center),
        ),
        (operators.channel_products, (narrow_map, narrow_map, *norm, True, True)),
        (operators.channel_products, (gradient, narrow_map, *norm, False, True)),
        (operators.channel_products, (narrow_map, gradient, None, None, False, False)),
    )
    for operator, operands in calls:
        wanted = operator(*operands)
        found = operator(*(t.cuda() if isinstance(t, torch.Tensor) else t for t in operands))
        found, wanted = ((t,) if isinstance(t, torch.Tensor) else t for t in (found, wanted))
        for at, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
            if operator is operators.conv_moments and at:
                continue  # moments of parts are not sums; the gradients above depend on them
            if ours.dim() != 4:
                ours, theirs = ours.sum(0), theirs.sum(0)
            error = (ours.cpu().float() - theirs.float()).norm()
            assert error <= 1e-2 * theirs.float().norm(), (operator, at)


@pytest.mark.parametrize("shape", [(64, 64, 112, 112), (3, 70, 5, 7)])
def test_stem_kernels_are_torchs(shape: tuple[int, ...]) -> None:
    """Poolings and their gradients; values of a pixel may differ by their rounding."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).bfloat16().to(memory_format=torch.channels_last)
    pooled, position = max_pool(x.cuda())
    assert torch.equal(pooled.cpu(), max_pool(x)[0])
    assert torch.equal(position.cpu(), max_pool(x)[1])
    gradient = torch.randn(pooled.shape, generator=generator).bfloat16()
    scale, slope, level = torch.randn(3, shape[1], generator=generator).unbind()
    found = norm_relu_pool(x.cuda(), scale.cuda(), slope.cuda())
    wanted = norm_relu_pool(x, scale, slope)
    # Where the normalized maximum rounds to another side of zero, the ReLU may let through or not.
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.stride() == theirs.stride()
        far = (ours.cpu().float() - theirs.float()).abs() > 0.02 * (1 + theirs.float().abs())
        assert far.float().sum() <= 1e-5 * x.numel()
    operands = (gradient, wanted[1], x, scale, slope, level)
    found = norm_relu_pool_gradient(*(operand.cuda() for operand in operands))
    torch.testing.assert_close(
        found.cpu(), norm_relu_pool_gradient(*operands), rtol=0.02, atol=0.02
    )
    view = x[:, :3].contiguous(memory_format=torch.channels_last)
    assert torch.equal(space_to_depth(view.cuda()).cpu(), space_to_depth(view))
