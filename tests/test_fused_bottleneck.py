"""Fused bottleneck blocks compute what torchvision's do, and their kernels what torch does."""

import copy
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from fastsimsiam.models.fused_bottleneck import operators
from fastsimsiam.models.fused_bottleneck.fuse import FusedBottleneck, fuse_bottlenecks
from fastsimsiam.models.fused_bottleneck.tiles import (
    CANDIDATES,
    MEASURED,
    Operation,
    Tile,
    fitted,
    num_parts,
    rows_per_part,
    tile_of,
)


class SmallResNet(ResNet):
    """As ResNet-50, with a fourth of the channels and seven blocks."""

    def __init__(self, block: type[nn.Module] = Bottleneck) -> None:
        super().__init__(block, [2, 2, 1, 2], num_classes=10)
        self.fc = nn.Linear(128 * block.expansion, 10)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)

    def _make_layer(self, block: type[nn.Module], planes: int, *args: object, **kw: object):
        return super()._make_layer(block, planes // 4, *args, **kw)


def a_map(*shape: int, seed: int = 0) -> Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return made.to(memory_format=torch.channels_last)


def pair() -> tuple[SmallResNet, nn.Module]:
    """A network, and a fused one of the same weights."""
    torch.manual_seed(0)
    network = SmallResNet()
    return network, fuse_bottlenecks(copy.deepcopy(network))


def gradients(
    network: nn.Module, run: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Parameter -> gradient; `dtype` is of the weights if float64, otherwise autocast's."""
    network.zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
        output = run(a_map(8, 3, 64, 64).to(network.fc.weight.dtype))
    (output.square().mean() + 0.1 * output.sum()).backward()
    return {name: parameter.grad.clone() for name, parameter in network.named_parameters()}


def assert_as_exact(
    found: dict[str, Tensor], network: nn.Module, dtype: torch.dtype = torch.float32
) -> None:
    """Gradients are no further from those of float64 than torch's kernels are."""
    usual = gradients(network, network, dtype)
    double = copy.deepcopy(network).double()
    for name, exact in gradients(double, double).items():
        error, limit = (found[name] - exact).norm(), 3 * (usual[name] - exact).norm()
        # A ReLU whose input rounds to the other side of zero is worth a few thousandths.
        assert error <= limit + 1e-2 * exact.norm() + 1e-6, name


def test_a_fused_network_is_the_network() -> None:
    network, fused = pair()
    blocks = [module for module in fused.modules() if isinstance(module, FusedBottleneck)]
    assert len(blocks) == 7
    # The second blocks of layers mask the gradient for the first ones.
    assert [block.is_masked for block in blocks] == [True, False, True, False, False, True, False]
    assert [block.masks_input for block in blocks] == [False, True, False, True, False, False, True]
    assert list(fused.state_dict()) == list(network.state_dict())
    assert_as_exact(gradients(fused, fused), network)
    for (name, ours), theirs in zip(fused.named_buffers(), network.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4, msg=name)
    x = a_map(8, 3, 64, 64, seed=1)
    torch.testing.assert_close(fused(x), network(x), atol=1e-4, rtol=1e-4)
    network.eval(), fused.eval()
    torch.testing.assert_close(fused(x), network(x), atol=1e-4, rtol=1e-4)


def test_only_some_stages_are_fused() -> None:
    network, _ = pair()
    fused = fuse_bottlenecks(copy.deepcopy(network), layers=(1, 2))
    assert sum(isinstance(module, FusedBottleneck) for module in fused.modules()) == 4
    assert not any(type(module) is nn.BatchNorm2d for module in fused.layer3.modules())
    assert list(fused.state_dict()) == list(network.state_dict())
    assert_as_exact(gradients(fused, fused), network)


def test_a_measured_tile_is_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = Tile(rows=256)
    monkeypatch.setitem(MEASURED, ("join", 256, 64), measured)
    assert tile_of("join", 256, 64) == measured
    assert tile_of("join", 512, 128) == CANDIDATES["join"][0][0]
    assert tile_of("join", 1024, 256) == CANDIDATES["join"][1][0]


def test_the_gradient_of_the_input_is_that_of_the_block() -> None:
    """Whole, though the next block returns it masked."""
    network, fused = pair()
    found = []
    for one in (network, fused):
        x = a_map(4, 64, 9, 9).relu().requires_grad_()
        one.layer1(x).square().mean().backward()
        found.append(x.grad)
    torch.testing.assert_close(found[1], found[0], atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("frozen", [0, 1])
def test_blocks_whose_norms_are_frozen_are_the_blocks(frozen: int) -> None:
    """In evaluation mode a block is not fused, and its neighbor in training mode is."""
    network, fused = pair()
    network.layer1[frozen].eval(), fused.layer1[frozen].eval()
    assert_as_exact(gradients(fused, fused), network)


def test_a_branch_that_begins_at_zero() -> None:
    """With the recipe's weight of 0 in the last BatchNorm, the branch has a gradient only there."""
    network, fused = pair()
    for one in (network, fused):
        for module in one.modules():
            if isinstance(module, Bottleneck):
                nn.init.zeros_(module.bn3.weight)
    found = gradients(fused, fused)
    assert not found["layer1.1.conv3.weight"].any()
    assert_as_exact(found, network)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_network_compiles_whole_and_stays_the_same(dtype: torch.dtype) -> None:
    network, fused = pair()
    compiled = torch.compile(fused, fullgraph=True, dynamic=False, backend="aot_eager")
    assert_as_exact(gradients(fused, compiled, dtype), network, dtype)


def test_a_mean_that_is_large_beside_the_deviation() -> None:
    """The variance of conv3's result follows from sums of its input; squared means must not cancel."""
    block = Bottleneck(64, 16)
    nn.init.constant_(block.bn2.bias, 20)
    nn.init.uniform_(block.conv3.weight, 0.9, 1.1)
    network = SmallResNet()
    network.layer1 = nn.Sequential(block)
    fused = fuse_bottlenecks(copy.deepcopy(network))
    x = a_map(4, 64, 9, 9).relu()
    torch.testing.assert_close(fused.layer1(x), network.layer1(x), atol=2e-3, rtol=1e-3)
    ours, theirs = fused.layer1[0].bn3, network.layer1[0].bn3
    torch.testing.assert_close(ours.running_var, theirs.running_var, rtol=1e-4, atol=0)


def test_what_cannot_be_fused_is_refused() -> None:
    with pytest.raises(ValueError, match="not a ResNet"):
        fuse_bottlenecks(nn.Sequential())
    with pytest.raises(ValueError, match="no bottleneck"):
        fuse_bottlenecks(SmallResNet(BasicBlock))


def test_a_block_with_another_norm_stays() -> None:
    network = SmallResNet()
    network.layer1[1].bn2 = nn.BatchNorm2d(16, momentum=None)
    fused = fuse_bottlenecks(network)
    assert type(fused.layer1[1]) is Bottleneck
    assert not fused.layer1[0].is_masked


def test_operators_are_well_formed() -> None:
    x, gradient, residual = a_map(2, 16, 3, 5), a_map(2, 32, 3, 5), a_map(2, 32, 3, 5, seed=1)
    weight, narrow, wide = torch.randn(32, 16), torch.ones(16), torch.ones(32)
    check = torch.library.opcheck
    check(operators.conv_moments, (x, weight))
    for rest in ((residual, None, None), (None, x, weight)):
        check(operators.conv_join, (x, narrow, narrow, weight, wide, wide, *rest))
    for rest in ((None, None, None), (None, x, x), (narrow, x, None)):
        check(operators.conv_join_gradient, (gradient, weight, *rest))
    operands = gradient, weight, x, narrow, narrow, narrow, torch.randn(16, 16), narrow
    check(operators.conv_masked_gradient, operands)
    check(operators.channel_products, (gradient, x, narrow, narrow, False, True))
    check(operators.channel_products, (gradient, x, None, None, False, False))


@pytest.mark.parametrize("pixels", [1, 63, 65, 25_088, 1_605_632])
@pytest.mark.parametrize("groups", [1, 3, 64, 1000])
def test_every_pixel_is_summed_once(pixels: int, groups: int) -> None:
    tile = Tile()
    parts, size = num_parts(pixels, groups, tile), rows_per_part(pixels, groups, tile)
    assert (parts - 1) * size < pixels <= parts * size
    assert size % tile.depth == 0
    assert parts * groups <= max(tile.programs, groups)


_INTERPRETED = """
import torch
from fastsimsiam.models.fused_batch_norm.sums import merged
from fastsimsiam.models.fused_bottleneck import launch, operators
from fastsimsiam.models.fused_bottleneck.tiles import Tile

torch.manual_seed(0)
def a_map(*shape):
    return torch.randn(shape).to(dtype).to(memory_format=torch.channels_last)

def same(ours, theirs):
    for one, another in zip(ours, theirs, strict=True):
        if one.dtype == torch.float32 and one.dim() < 4:  # parts
            one, another = one.sum(0), another.sum(0)
        limit = 1e-5 if dtype == torch.float32 else 1e-3
        assert (one.float() - another.float()).norm() <= limit * another.float().norm() + limit

tiles = (
    Tile(rows=32, columns=32, depth=16, programs=3),
    Tile(rows=16, columns=64, depth=32, early=True, programs=100),
)
shapes = ((3, 5, 7, 16, 64), (2, 4, 4, 32, 16), (1, 9, 9, 64, 32))
for tile, dtype, shape in [
    *((tile, torch.float32, shape) for tile in tiles for shape in shapes),
    (tiles[0], torch.float16, shapes[0]),  # the interpreter cannot multiply bfloat16
]:
    images, height, width, narrow, wide = shape
    x, weight = a_map(images, narrow, height, width) + 3, torch.randn(wide, narrow).to(dtype)
    gradient, residual = (a_map(images, wide, height, width) for _ in range(2))
    y, *parts = launch.moments(x, weight, tile)
    same([y], operators.conv_moments(x, weight)[:1])
    mean, variance = merged(y, *parts, tile.rows)
    exact = y.double().permute(1, 0, 2, 3).flatten(1)
    torch.testing.assert_close(mean.double(), exact.mean(1), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(variance.double(), exact.var(1, correction=0), rtol=1e-4, atol=0)
    norm, behind = torch.randn(2, narrow), torch.randn(2, wide)
    second = a_map(images, 16, height, width), torch.randn(wide, 16).to(dtype)
    for rest in ((residual, None, None), (None, *second)):
        operands = x, *norm, weight, *behind, *rest
        same([launch.join(*operands, tile)], [operators.conv_join(*operands)])
    summand, mask = (a_map(images, narrow, height, width) for _ in range(2))
    for rest in ((None, None, None), (None, summand, mask), (norm[0], summand, None)):
        operands = gradient, weight, *rest
        ours = launch.join_gradient(*operands, tile)
        same([ours], [operators.conv_join_gradient(*operands)])
    matrix = torch.randn(narrow, narrow).to(dtype)
    operands = gradient, weight, x, *norm, torch.randn(narrow), matrix, torch.randn(narrow)
    ours = launch.masked_gradient(*operands, tile)
    same(ours, operators.conv_masked_gradient(*operands))
    for operands in (
        (gradient, x, *norm, False, True),
        (x, x, *norm, True, True),
        (gradient, x, None, None, False, False),
    ):
        same(launch.products(*operands, tile), operators.channel_products(*operands))
print("same")
"""


def test_kernels_compute_what_torch_does() -> None:
    """By Triton's interpreter, which needs no GPU."""
    pytest.importorskip("triton")
    words = [sys.executable, "-c", _INTERPRETED]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.strip() == "same", done.stderr[-2000:]


# Left and right channels as multiples of the narrow map's, and what is normalized and summed.
_PRODUCTS = {
    "covariance": (1, 1, True, True, True),
    "conv3": (4, 1, False, True, True),
    "conv1": (1, 4, False, False, False),
}


def compiled_kernel(operation: Operation, channels: int, tile: Tile, kind: str = "") -> Any:
    """A kernel as compiled for Hopper, without one, since Triton brings its assembler."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fastsimsiam.models.fused_bottleneck import kernels

    narrow, wide = channels, 4 * channels
    constants: dict[str, Any] = {"PRECISION": "tf32"}
    if operation == "products":
        left, right, first, second, summed = _PRODUCTS[kind]
        kernel = kernels.products_kernel
        constants |= {"left_channels": left * narrow, "right_channels": right * narrow}
        constants |= {"NORM_LEFT": first, "NORM_RIGHT": second, "SUM": summed}
        constants |= {"LEFT": fitted(tile.rows, left * narrow), "DEPTH": tile.depth}
        constants |= {"RIGHT": fitted(tile.columns, right * narrow)}
        if not second:
            constants |= {"scale": None, "shift": None}
    else:
        is_join, turned = operation.startswith("join"), operation == "join-gradient"
        inputs, columns = (narrow, wide) if is_join else (wide, narrow)
        constants |= {"channels": inputs, "columns": columns, "ROWS": tile.rows}
        constants |= {"COLUMNS": fitted(tile.columns, columns), "DEPTH": fitted(tile.depth, inputs)}
        kernel = kernels.join_kernel
        if operation == "moments":
            kernel = kernels.conv_moments_kernel
        elif operation == "masked-gradient":
            kernel = kernels.masked_gradient_kernel
            constants["INNER"] = fitted(tile.depth, columns)
        else:
            strides = (columns, 1) if turned else (1, inputs)
            constants |= dict(zip(("along_channel", "along_column"), strides, strict=True))
            second = kind == "downsampled"
            constants |= {"FORWARD": not turned, "SHIFT": not turned, "SECOND": second}
            constants |= {
                "EARLY": tile.early,
                "ADD": not second,
                "MASK": turned,
                "second_channels": wide // 2,
            }
            constants["SECOND_DEPTH"] = fitted(tile.depth, wide // 2)
            absent = ["scale", "shift", "out_scale", "out_shift"] if turned else ["mask"]
            absent += ["summand"] if second else ["second", "second_weight"]
            constants |= dict.fromkeys(absent)
    maps = {"x", "y", "weight", "gradient", "matrix", "summand", "mask", "left", "right"}
    maps |= {"second", "second_weight"}
    numbers = {"rows", "rows_per_part"}
    names = kernel.arg_names
    types = {name: "*bf16" if name in maps else "*fp32" for name in names}
    types |= dict.fromkeys(numbers, "i32") | dict.fromkeys(constants, "constexpr")
    signature = {name: types[name] for name in names}
    # As at a launch: pointers and sizes are multiples of 16.
    attributes = {
        (at,): [["tt.divisibility", 16]] for at, n in enumerate(names) if n not in constants
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": tile.warps, "num_stages": tile.stages, "enable_fp_fusion": True}
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)


def resources(built: Any) -> tuple[int, int]:
    """Registers of a thread, and bytes that it spills to its stack."""
    import triton

    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not program.is_file():
        pytest.skip("Triton without cuobjdump")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        words = [program, "--dump-resource-usage", file.name]
        printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", printed)
    assert found is not None, printed
    return int(found[1]), int(found[2])


@pytest.mark.parametrize("channels", [64, 128, 256])
@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        *(("products", kind) for kind in _PRODUCTS),
        *((operation, "") for operation in CANDIDATES if operation != "products"),
        ("join", "downsampled"),
    ],
)
def test_kernels_compile_for_a_gpu(operation: Operation, kind: str, channels: int) -> None:
    """On tensor cores, with 16 bytes a load, without spilling registers."""
    pytest.importorskip("triton")
    tile = tile_of(operation, channels, 4 * channels)
    built = compiled_kernel(operation, channels, tile, kind)
    ptx = built.asm["ptx"]
    assert "wgmma.mma_async" in ptx
    assert "st.global.v4" in ptx
    # Asynchronous copies into shared memory, or loads where there is nothing to wait for.
    assert "cp.async.cg" in ptx or "ld.global.v4" in ptx
    assert built.metadata.shared <= 113 * 1024  # two programs on a processor
    assert resources(built)[1] == 0
