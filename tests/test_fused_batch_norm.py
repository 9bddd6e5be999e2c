"""BatchNorm with ReLU and addition in one is exact, and its kernels are."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import tiny_backbone  # noqa: F401 (registers tiny_resnet)
import torch
import torchvision
from torch import Tensor, fx, nn

from fastsimsiam.models.backbones import feature_extractor
from fastsimsiam.models.fused_batch_norm.fuse import FusedBatchNorm2d, fuse_norms
from fastsimsiam.models.fused_batch_norm.split import TILE, num_groups, num_parts, rows_per_part
from fastsimsiam.models.fused_batch_norm.sums import channel_gradient_sums, channel_moments, merged


def a_map(*shape: int, seed: int = 0) -> Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return made.to(memory_format=torch.channels_last)


class Block(nn.Module):
    """A BatchNorm, what is added, and a ReLU, with one user or two."""

    def __init__(self, *, added: bool, relu: bool, users: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(5)
        nn.init.uniform_(self.bn.weight)
        nn.init.normal_(self.bn.bias)
        self.added, self.relu, self.users = added, relu, users

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        made = self.bn(x)
        if self.added:
            made = residual + made
        if self.relu:
            made = made.relu()
        return made * 3 if self.users == 1 else made * made.sigmoid()


@pytest.mark.parametrize("opaque", [True, False])
@pytest.mark.parametrize("users", [1, 2])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("added", [True, False])
def test_a_fused_block_is_the_block(added: bool, relu: bool, users: int, opaque: bool) -> None:
    torch.manual_seed(0)
    block = Block(added=added, relu=relu, users=users)
    state = {key: value.clone() for key, value in block.state_dict().items()}

    def run(module: nn.Module) -> list[Tensor]:
        block.load_state_dict(state)
        x, residual = (a_map(4, 5, 6, 7, seed=seed).requires_grad_() for seed in (1, 2))
        output = module(x * 2 + 1, residual)
        output.backward(a_map(4, 5, 6, 7, seed=3))
        zero = torch.zeros_like(residual)
        gradients = [x.grad, zero if residual.grad is None else residual.grad]
        gradients += [parameter.grad for parameter in block.parameters()]
        block.zero_grad()
        return [output, *gradients, *(buffer.clone() for buffer in block.buffers())]

    wanted = run(block)
    fused = fuse_norms(block, opaque=opaque)
    assert isinstance(block.bn, FusedBatchNorm2d)
    for ours, theirs in zip(run(fused), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)
    fused.eval(), block.bn.eval()
    x, residual = (a_map(4, 5, 6, 7, seed=seed) for seed in (1, 2))
    normed = nn.functional.batch_norm(
        x, block.bn.running_mean, block.bn.running_var, block.bn.weight, block.bn.bias
    )
    normed = normed + residual if added else normed
    normed = normed.relu() if relu else normed
    wanted_output = normed * 3 if users == 1 else normed * normed.sigmoid()
    torch.testing.assert_close(fused(x, residual), wanted_output)


@pytest.mark.parametrize(
    ("arch", "left_over"),
    [("resnet18", 0), ("resnet50", 0), ("tiny_resnet", 0), ("vgg11_bn", 0), ("mobilenet_v2", 35)],
)
def test_every_relu_and_addition_behind_a_norm_is_taken_in(arch: str, left_over: int) -> None:
    with torch.device("meta"):
        backbone, _ = feature_extractor(arch)
    names = set(backbone.state_dict())
    fused = fuse_norms(backbone)
    assert set(fused.state_dict()) == names
    assert any(isinstance(layer, FusedBatchNorm2d) for layer in fused.modules())
    relus = (nn.ReLU, nn.ReLU6)
    left = [
        node
        for node in fused.graph.nodes
        if node.op == "call_module" and isinstance(fused.get_submodule(node.target), relus)
    ]
    # VGG has one behind each linear layer, MobileNet ReLU6s, which are not taken in.
    behind_norm = [n for n in left if node_is(n.all_input_nodes[0], fused, nn.BatchNorm2d)]
    assert len(behind_norm) == left_over
    additions = [node for node in fused.graph.nodes if "add" in node.name and node.op != "output"]
    assert len(additions) == (10 if arch == "mobilenet_v2" else 0)


def test_a_norm_of_another_momentum_stays() -> None:
    network = nn.Sequential(nn.BatchNorm2d(5, momentum=None), nn.ReLU())
    x = a_map(4, 5, 6, 7)
    fused = fuse_norms(network)
    assert not any(isinstance(layer, FusedBatchNorm2d) for layer in fused.modules())
    torch.testing.assert_close(fused(x), network(x))


def node_is(node: fx.Node, traced: fx.GraphModule, kind: type[nn.Module]) -> bool:
    return node.op == "call_module" and isinstance(traced.get_submodule(str(node.target)), kind)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("opaque", [True, False])
def test_a_network_compiles_whole_and_stays_the_same(opaque: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = torchvision.models.get_model("tiny_resnet")
    x = a_map(8, 3, 32, 32)

    def gradients(module: Callable[[Tensor], Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        network.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            output = module(x)
        output.float().square().mean().backward()
        return {name: p.grad.clone() for name, p in network.named_parameters()}

    exact, usual = gradients(network, torch.float32), gradients(network, dtype)
    fused = fuse_norms(network, opaque=opaque)
    compiled = torch.compile(fused, fullgraph=True, dynamic=False, backend="aot_eager")
    for name, gradient in gradients(compiled, dtype).items():
        if dtype == torch.float32:
            torch.testing.assert_close(gradient, exact[name], atol=1e-5, rtol=1e-3, msg=name)
        else:  # its rounding is no worse than that of torch's kernels
            error = (gradient - exact[name]).norm()
            assert error <= 3 * (usual[name] - exact[name]).norm() + 1e-3 * exact[name].norm()


def test_operators_are_well_formed() -> None:
    x, gradient, other = (a_map(2, 3, 4, 5, seed=seed) for seed in range(3))
    channel = torch.ones(3)
    torch.library.opcheck(channel_moments, (x,))
    for second, output in ((None, None), (other, None), (None, x), (other, x)):
        operands = (gradient, second, x, channel, channel, channel, output, True)
        torch.library.opcheck(channel_gradient_sums, operands)


@pytest.mark.parametrize("pixels", [1, 31, 33, 12_544, 65_537, 3_211_264])
@pytest.mark.parametrize("channels", [3, 64, 2048])
def test_every_pixel_and_channel_is_summed_once(pixels: int, channels: int) -> None:
    parts, size = num_parts(pixels, channels, TILE), rows_per_part(pixels, channels, TILE)
    assert (parts - 1) * size < pixels <= parts * size
    assert size % TILE.rows == 0
    programs = parts * num_groups(channels, TILE)
    # Enough programs for a GPU, where there is enough to do, and few sums to be added up.
    assert programs <= TILE.programs
    assert programs > TILE.programs / 2 or size == TILE.rows


def test_parts_merge_to_the_whole() -> None:
    """With a mean that is large beside the deviation: squares alone would cancel."""
    x = a_map(7, 2, 100, 100) + 1000
    pixels = x.permute(0, 2, 3, 1).reshape(-1, 2)
    parts = pixels.split(rows_per_part(len(pixels), 2, TILE))
    assert len(parts) == num_parts(len(pixels), 2, TILE) > 1
    assert len(parts[-1]) < len(parts[0])
    means = torch.stack([part.mean(0) for part in parts])
    squares = torch.stack([(part - part.mean(0)).square().sum(0) for part in parts])
    whole = torch.compile(merged, fullgraph=True, backend="eager")
    mean, variance = whole(x, means, squares)
    torch.testing.assert_close(mean, pixels.double().mean(0).float())
    exact = pixels.double().var(0, correction=0).float()
    torch.testing.assert_close(variance, exact, rtol=1e-4, atol=0)


_INTERPRETED = """
import torch
from torch import nn
from fastsimsiam.models.fused_batch_norm import kernels, sums
from fastsimsiam.models.fused_batch_norm.fuse import FusedBatchNorm2d
from fastsimsiam.models.fused_batch_norm.split import Tile, num_parts, rows_per_part

torch.manual_seed(0)
def a_map(dtype, shape):
    return torch.randn(shape).to(dtype).to(memory_format=torch.channels_last)

def coarse(dtype, shape):
    # Sums of two are exact in bfloat16, to which the interpreter does not round but cuts off.
    return (4 * a_map(torch.float32, shape)).round().div(4).to(dtype)

def use(tile):
    # What a GPU runs, on a CPU.
    sums.TILE = tile
    sums.moments = lambda x: kernels.moments(x, tile)
    sums.gradient_sums = lambda *operands: kernels.gradient_sums(
        *operands, sums.is_written(operands[1], operands[6]), tile
    )

close = torch.testing.assert_close
by_torch = sums.gradient_sums
for tile in (Tile(programs=3), Tile(rows=16, programs=5, stages=3)):
    use(tile)
    for dtype in (torch.float32, torch.bfloat16):
        # The largest once for each tile: the interpreter is slow.
        for shape in ((3, 64, 5, 7), (2, 70, 4, 4), *[(9, 128, 9, 9)] * (dtype == torch.float32)):
            pixels = shape[0] * shape[2] * shape[3]
            x, output = (a_map(dtype, shape) for _ in range(2))
            gradient, other = (coarse(dtype, shape) for _ in range(2))
            x = x * 2 + 300 if dtype == torch.float32 else x
            parts = sums.moments(x)
            assert len(parts[0]) == num_parts(pixels, shape[1], tile)
            mean, variance = sums.merged(x, *parts)
            exact = x.double().permute(1, 0, 2, 3).flatten(1)
            close(mean.double(), exact.mean(1), rtol=1e-6, atol=1e-6)
            close(variance.double(), exact.var(1, correction=0), rtol=1e-4, atol=0)
            scale, shift = torch.randn(shape[1]), torch.randn(shape[1])
            for second in (None, other):
                for made in (None, output):
                    for relu in (True, False) if made is None else (True,):
                        operands = gradient, second, x, mean, scale, shift, made, relu
                        found, wanted = sums.gradient_sums(*operands), by_torch(*operands)
                        assert torch.equal(found[0], wanted[0]), "the gradient behind the ReLU"
                        for ours, theirs in zip(found[1:], wanted[1:]):
                            close(ours.sum(0), theirs.sum(0), rtol=1e-4, atol=2e-3)
    # And as a layer, forward and backward.
    assert rows_per_part(9 * 9 * 9, 128, tile) > tile.rows or tile == Tile()
    layer, plain = FusedBatchNorm2d(128), nn.BatchNorm2d(128)
    x, residual = (a_map(torch.float32, (9, 128, 9, 9)).requires_grad_() for _ in range(2))
    gradient = a_map(torch.float32, (9, 128, 9, 9))
    for added in (True, False):
        maps = [x, residual] if added else [x]
        normed = plain(x)
        wanted = (normed + residual if added else normed).relu()
        output = layer(*maps, relu=True)
        close(output, wanted, rtol=1e-4, atol=1e-5)
        ours, theirs = (
            torch.autograd.grad(made, [*maps, *norm.parameters()], gradient)
            for made, norm in ((output, layer), (wanted, plain))
        )
        for one, another in zip(ours, theirs, strict=True):
            close(one, another, rtol=1e-3, atol=1e-4)
    close(layer.running_var, plain.running_var)
print("same")
"""


def test_kernels_compute_the_sums() -> None:
    """By Triton's interpreter, which needs no GPU."""
    pytest.importorskip("triton")
    words = [sys.executable, "-c", _INTERPRETED]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.strip() == "same", done.stderr[-2000:]


@pytest.mark.parametrize("two", [True, False])
@pytest.mark.parametrize(("relu", "told"), [(True, True), (True, False), (False, False)])
def test_gradient_sums_compile_for_a_gpu(relu: bool, told: bool, two: bool) -> None:
    pytest.importorskip("triton")
    from fastsimsiam.models.fused_batch_norm.kernels import gradient_sums_kernel

    maps = ["gradient", "x", "kept", *["other"] * two, *["output"] * told]
    constants = {"TWO": two, "RELU": relu, "FROM_OUTPUT": told, "KEEP": two or told}
    constants |= {name: None for name in ("other", "output") if name not in maps}
    rows = ["mean", "scale", "shift", "sums", "products"]
    vectors = 6 if relu and not told else 2  # a thread's eight values in float32 are two loads
    assert_loads_are_wide(gradient_sums_kernel, maps, rows, constants, vectors)


def test_moments_compile_for_a_gpu() -> None:
    pytest.importorskip("triton")
    from fastsimsiam.models.fused_batch_norm.kernels import moments_kernel

    assert_loads_are_wide(moments_kernel, ["x"], ["means", "squares"], {}, vectors=1)


def assert_loads_are_wide(
    kernel: Any, maps: list[str], rows: list[str], constants: dict[str, Any], vectors: int
) -> None:
    """Compiles for Hopper, without one, since Triton brings its assembler; 16 bytes a thread.

    Two loads for each thread's part of a tile, and as many as are given for values by channel.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    sizes = {"ROWS": TILE.rows, "CHANNELS": TILE.channels, "STAGES": TILE.stages}
    constants = constants | {"channels": 256} | sizes
    types = dict.fromkeys(maps, "*bf16") | dict.fromkeys(rows, "*fp32")
    types |= dict.fromkeys(constants, "constexpr")
    names = kernel.arg_names
    # As at a launch: pointers and sizes are multiples of 16.
    attributes = {
        (at,): [["tt.divisibility", 16]] for at, n in enumerate(names) if n not in constants
    }
    signature = {name: types.get(name, "i32") for name in names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": TILE.warps, "enable_fp_fusion": True}
    built = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    ptx = built.asm["ptx"]
    written = "kept" in maps and constants.get("KEEP", False)
    assert ptx.count("ld.global.v4.b32") >= 2 * len(set(maps) - {"kept"}) + vectors
    assert ptx.count("st.global.v4.b32") >= 2 * written
