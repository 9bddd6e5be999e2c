"""The fused stem of a ResNet is the stem, and its kernels are pooling and rearrangement."""

import copy
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_backbone  # noqa: F401 (registers tiny_resnet)
import torch
import torch.nn.functional as F
from test_fused_bottleneck import SmallResNet
from torch import Tensor, nn
from torchvision.models.resnet import ResNet

from fastsimsiam.models.backbones import feature_extractor
from fastsimsiam.models.fused_batch_norm.fuse import fuse_norms
from fastsimsiam.models.fused_bottleneck.fuse import fuse_bottlenecks
from fastsimsiam.models.fused_stem.convolution import SpaceToDepthConv2d, fits, space_to_depth
from fastsimsiam.models.fused_stem.fuse import GatheredMaxPool2d, PooledBatchNorm2d, fuse_stem
from fastsimsiam.models.fused_stem.pool import (
    max_pool,
    max_pool_gradient,
    norm_relu_pool,
    norm_relu_pool_gradient,
)
from fastsimsiam.models.fused_stem.tiles import POOL_TILE, REARRANGE_TILE

SHAPES = [(2, 8, 7, 6), (1, 64, 4, 5), (3, 70, 5, 3), (2, 8, 1, 1)]


def a_map(*shape: int, seed: int = 0, steps: int = 0) -> Tensor:
    """A random map, of few different values if steps of 1 / `steps` are given."""
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    made = (made * steps).round() / steps if steps else made
    return made.to(memory_format=torch.channels_last)


class Stem(ResNet):
    """The first layers of a ResNet and what follows them, with one user of the pooling or two."""

    def __init__(self, *, users: int) -> None:
        nn.Module.__init__(self)
        self.conv1 = nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        nn.init.normal_(self.bn1.weight)  # negative ones, too
        nn.init.normal_(self.bn1.bias)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        self.users = users

    def forward(self, x: Tensor) -> Tensor:
        made = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return made * 3 if self.users == 1 else made * 3 + made.sigmoid()


def results(module: nn.Module, owner: nn.Module, view: Tensor) -> dict[str, Tensor]:
    """Output, gradients and buffers after a step."""
    output = module(view)
    owner.zero_grad()
    (output * output.detach().cos()).sum().backward()
    made = {name: p.grad.clone() for name, p in owner.named_parameters()}
    return made | {"output": output} | {name: b.clone() for name, b in owner.named_buffers()}


def assert_near(ours: Tensor, theirs: Tensor, name: str) -> None:
    """Sums over all pixels, in another order."""
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-5 * (1 + theirs.abs().max()), name


@pytest.mark.parametrize("norms", ["none", "opaque", "compiled"])
@pytest.mark.parametrize("users", [1, 2])
@pytest.mark.parametrize("size", [(32, 32), (37, 50)])
def test_the_fused_stem_is_the_stem(size: tuple[int, int], users: int, norms: str) -> None:
    torch.manual_seed(0)
    plain = Stem(users=users)
    stem = copy.deepcopy(plain)
    fused = stem if norms == "none" else fuse_norms(stem, opaque=norms == "opaque")
    fused = fuse_stem(fused)
    assert type(stem.conv1) is SpaceToDepthConv2d
    assert isinstance(stem.bn1, PooledBatchNorm2d)
    assert fused.state_dict().keys() == plain.state_dict().keys()
    view = a_map(4, 3, *size)
    wanted, found = results(plain, plain, view), results(fused, stem, view)
    for name, value in wanted.items():
        assert_near(found[name], value, name)
    plain.eval(), fused.eval()
    torch.testing.assert_close(fused(view), plain(view))


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "tiny_resnet", "resnext50_32x4d"])
def test_a_resnets_stem_is_taken_in(arch: str) -> None:
    with torch.device("meta"):
        backbone, _ = feature_extractor(arch)
    names = set(backbone.state_dict())
    fused = fuse_stem(fuse_norms(backbone))
    assert set(fused.state_dict()) == names
    called = [node.target for node in fused.graph.nodes if node.op == "call_module"]
    assert called[:2] == ["conv1", "bn1"]
    assert not {"relu", "maxpool"} & set(called)
    (norm,) = (node for node in fused.graph.nodes if node.target == "bn1")
    assert norm.kwargs == {"pool": True, "twice": True}


@pytest.mark.parametrize("first", ["stem", "bottlenecks"])
def test_a_stem_goes_with_fused_bottlenecks(first: str) -> None:
    torch.manual_seed(0)
    plain = SmallResNet()
    network = copy.deepcopy(plain)
    fusions = (fuse_stem, fuse_bottlenecks) if first == "stem" else (fuse_bottlenecks, fuse_stem)
    for fuse in fusions:
        assert fuse(network) is network
    assert isinstance(network.bn1, PooledBatchNorm2d)
    assert type(network.maxpool) is nn.Identity
    view = a_map(8, 3, 64, 64)
    wanted, found = results(plain, plain, view), results(network, network, view)
    for name, value in wanted.items():
        # Where a ReLU's input is near 0, rounding decides: that is most of the difference.
        assert (found[name].float() - value).norm() <= 5e-2 * value.float().norm() + 1e-5, name
    plain.eval(), network.eval()
    torch.testing.assert_close(network(view), plain(view), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("arch", "stem"),
    [("resnet18", "cifar"), ("vgg11_bn", "imagenet"), ("mobilenet_v2", "imagenet")],
)
def test_other_networks_stay(arch: str, stem: str) -> None:
    with torch.device("meta"):
        backbone, _ = feature_extractor(arch, stem)
    kinds = [type(layer) for layer in backbone.modules()]
    assert fuse_stem(backbone) is backbone
    assert [type(layer) for layer in backbone.modules()] == kinds


@pytest.mark.parametrize("norms", [True, False])
def test_a_pooling_behind_another_norm_is_gathered_alone(norms: bool) -> None:
    torch.manual_seed(0)
    plain = Stem(users=1)
    plain.bn1.momentum = None
    stem = copy.deepcopy(plain)
    fused = fuse_stem(fuse_norms(stem) if norms else stem)
    assert type(stem.maxpool) is GatheredMaxPool2d
    view = a_map(4, 3, 33, 32)
    wanted, found = results(plain, plain, view), results(fused, stem, view)
    for name, value in wanted.items():
        assert_near(found[name], value, name)


def test_a_view_that_needs_a_gradient_has_one() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, 7, stride=2, padding=3)
    assert fits(conv)
    view = a_map(2, 3, 16, 16).requires_grad_()
    (wanted,) = torch.autograd.grad(conv(view).square().sum(), view)
    conv.__class__ = SpaceToDepthConv2d
    (found,) = torch.autograd.grad(conv(view).square().sum(), view)
    assert torch.equal(found, wanted)
    torch.testing.assert_close(conv(view.detach()), conv(view))


@pytest.mark.parametrize("shape", SHAPES)
def test_pooling_is_torchs(shape: tuple[int, ...]) -> None:
    """With ties, negative maps, -inf and NaN."""
    x = a_map(*shape, steps=2)
    x[0, 0], x[-1, -1], x[0, 1, 0, 0] = -3, float("-inf"), float("nan")
    x.requires_grad_()
    wanted = F.max_pool2d(x, 3, 2, 1)
    gradient = a_map(*wanted.shape, seed=1, steps=4)
    found = max_pool(x)[0]
    assert torch.equal(found.nan_to_num(9), wanted.nan_to_num(9))
    ours, theirs = (torch.autograd.grad(made, x, gradient)[0] for made in (found, wanted))
    assert torch.equal(ours, theirs)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # opcheck's own, of its copies
def test_operators_are_well_formed() -> None:
    x, channel = a_map(2, 3, 5, 6), torch.ones(3)
    torch.library.opcheck(max_pool, (x,))
    torch.library.opcheck(max_pool, (x.clone().requires_grad_(),))
    torch.library.opcheck(norm_relu_pool, (x, channel, -channel))
    torch.library.opcheck(space_to_depth, (x,))
    pooled, position, _ = norm_relu_pool(x, channel, channel)
    torch.library.opcheck(max_pool_gradient, (pooled, position, 5, 6))
    operands = (pooled, position, x, channel, channel, channel)
    torch.library.opcheck(norm_relu_pool_gradient, operands)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("norms", "backend"), [(True, "inductor"), (False, "aot_eager")])
def test_a_stem_compiles_whole_and_stays_the_same(
    norms: bool, backend: str, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    plain = Stem(users=2)
    stem = copy.deepcopy(plain)
    view = a_map(8, 3, 32, 32)

    def gradients(
        module: Callable[[Tensor], Tensor], owner: nn.Module, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        owner.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            output = module(view)
        output.float().square().mean().backward()
        return {name: p.grad.clone() for name, p in owner.named_parameters()}

    exact, usual = gradients(plain, plain, torch.float32), gradients(plain, plain, dtype)
    fused = fuse_stem(fuse_norms(stem) if norms else stem)
    compiled = torch.compile(fused, fullgraph=True, dynamic=False, backend=backend)
    for name, gradient in gradients(compiled, stem, dtype).items():
        if dtype == torch.float32:
            torch.testing.assert_close(gradient, exact[name], atol=1e-5, rtol=1e-3, msg=name)
        else:  # its rounding is no worse than that of torch's kernels
            error = (gradient - exact[name]).norm()
            limit = 3 * (usual[name] - exact[name]).norm() + 1e-3 * exact[name].norm()
            assert error <= limit, name


_INTERPRETED = """
import torch
import torch.nn.functional as F
from test_fused_stem import SHAPES, a_map
from fastsimsiam.models.fused_stem import convolution, kernels, pool
from fastsimsiam.models.fused_stem.tiles import PoolTile, RearrangeTile

def outputs(x):
    return pool._pooled(x), pool._pooled(x, torch.int8), pool._pooled(x)

for dtype in (torch.float32, torch.bfloat16):
    close = dict(rtol=1e-2, atol=1e-2) if dtype == torch.bfloat16 else dict(rtol=1e-5, atol=1e-5)
    for shape, tile in zip(SHAPES, (PoolTile(), PoolTile(pixels=8), PoolTile(), PoolTile())):
        x = a_map(*shape, steps=2).to(dtype)
        x[0, 0], x[-1, -1], x[0, 1, 0, 0] = -3, float("-inf"), float("nan")
        x.requires_grad_()
        wanted = F.max_pool2d(x, 3, 2, 1)
        gradient = a_map(*wanted.shape, seed=1, steps=4).to(dtype)  # whose sums are exact
        pooled, position, _ = outputs(x)
        kernels.pool(x.detach(), None, None, (pooled, position, None), tile)
        assert torch.equal(pooled.nan_to_num(9), wanted.nan_to_num(9)), "maxima"
        assert torch.equal(position, pool._pool(x.detach())[1].to(torch.int8)), "positions"
        result = torch.full_like(x, 7).detach()
        kernels.pool_gradient(gradient, position, None, (None,) * 3, result, tile)
        assert torch.equal(result, torch.autograd.grad(wanted, x, gradient)[0]), "gradient"

        # Behind BatchNorm and ReLU; a mean that is NaN makes a whole channel NaN.
        x = a_map(*shape, steps=2).to(dtype)
        scale, shift = torch.randn(2, shape[1]).unbind()
        scale[1] = float("nan")
        pooled, position, largest = outputs(x)
        kernels.pool(x, scale, shift, (pooled, position, largest), tile)
        by_torch = pool.norm_relu_pool(x, scale, shift)
        torch.testing.assert_close(pooled, by_torch[0], equal_nan=True, **close)
        assert pooled[:, 1].isnan().all()
        assert torch.equal(position, by_torch[1]) and torch.equal(largest, by_torch[2])
        assert (position == 9).any() and (position < 9).any()
        scale, slope, level = torch.randn(3, shape[1]).unbind()
        kernels.pool_gradient(gradient, position, x, (scale, slope, level), result, tile)
        by_torch = pool.norm_relu_pool_gradient(gradient, position, x, scale, slope, level)
        torch.testing.assert_close(result, by_torch, **close)
    for size in ((8, 6), (9, 7)):
        view = a_map(2, 3, *size).to(dtype)
        result = convolution._rearranged(view).fill_(7)
        kernels.space_to_depth(view, result, convolution.BEFORE, RearrangeTile(pixels=32))
        assert torch.equal(result, convolution.space_to_depth(view)), "rearrangement"
print("same")
"""


def test_kernels_pool_and_rearrange() -> None:
    """By Triton's interpreter, which needs no GPU."""
    pytest.importorskip("triton")
    words = [sys.executable, "-W", "ignore:invalid value", "-c", _INTERPRETED]
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.strip() == "same", done.stderr[-2000:]


@pytest.mark.parametrize("norm", [True, False])
def test_pooling_compiles_for_a_gpu(norm: bool) -> None:
    pytest.importorskip("triton")
    from fastsimsiam.models.fused_stem.kernels import pool_kernel

    rows, maps = ["scale", "shift"], ["x", "pooled", "largest"]
    ptx = compiled(pool_kernel, maps, rows, [*rows, "largest"], norm)
    assert ptx.count("ld.global.v4.b32") == 9 + 4 * norm
    assert ptx.count("st.global.v4.b32") == 1 + norm
    assert ptx.count("st.global.v2.b32") == 1


@pytest.mark.parametrize("norm", [True, False])
def test_the_gradient_of_pooling_compiles_for_a_gpu(norm: bool) -> None:
    pytest.importorskip("triton")
    from fastsimsiam.models.fused_stem.kernels import pool_gradient_kernel

    rows, maps = ["scale", "slopes", "levels"], ["x", "gradient", "result"]
    ptx = compiled(pool_gradient_kernel, maps, rows, [*rows, "x"], norm)
    assert ptx.count("ld.global.v4.b32") == 4 + 10 * norm
    assert ptx.count("ld.global.v2.b32") == 4
    assert ptx.count("st.global.v4.b32") == 4


def test_the_rearrangement_compiles_for_a_gpu() -> None:
    pytest.importorskip("triton")
    from fastsimsiam.models.fused_stem.kernels import space_to_depth_kernel

    constants = {"HEIGHT": 224, "WIDTH": 224, "ROWS": 115, "COLUMNS": 115, "BEFORE": 4}
    constants["PIXELS"] = REARRANGE_TILE.pixels
    types = {"view": "*bf16", "result": "*bf16"}
    ptx = built(space_to_depth_kernel, types, constants, REARRANGE_TILE.warps)
    assert ptx.count("st.global.v4.b32") == 2


def compiled(kernel: Any, maps: list[str], rows: list[str], extra: list[str], norm: bool) -> str:
    """A kernel of the pooling for a ResNet's maps; `extra` are the arguments that need NORM."""
    constants: dict[str, Any] = {"channels": 64, "HEIGHT": 112, "WIDTH": 112, "NORM": norm}
    constants |= {"PIXELS": POOL_TILE.pixels, "CHANNELS": POOL_TILE.channels}
    constants |= {} if norm else dict.fromkeys(extra)
    types = dict.fromkeys(maps, "*bf16") | dict.fromkeys(rows, "*fp32") | {"position": "*i8"}
    return built(kernel, types, constants, POOL_TILE.warps)


def built(kernel: Any, types: dict[str, str], constants: dict[str, Any], warps: int) -> str:
    """PTX for Hopper; nothing is spilled, and no shared memory exchanges what is stored."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = kernel.arg_names
    types = types | dict.fromkeys(constants, "constexpr")
    # As at a launch: pointers and sizes are multiples of 16.
    attributes = {
        (at,): [["tt.divisibility", 16]] for at, n in enumerate(names) if n not in constants
    }
    signature = {name: types.get(name, "i32") for name in names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": warps, "enable_fp_fusion": True}
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    # Versions of Triton differ in how they gather the pixels of a view.
    assert made.metadata.shared == 0 or kernel.__name__ == "space_to_depth_kernel"
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    if tool.exists():
        words = [str(tool), "-res-usage", "/dev/stdin"]
        usage = subprocess.run(words, input=made.asm["cubin"], capture_output=True, check=False)
        figures = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", usage.stdout.decode()))
        if figures:
            assert int(figures["REG"]) <= 96
            assert figures["STACK"] == figures["LOCAL"] == "0"
    return str(made.asm["ptx"])
