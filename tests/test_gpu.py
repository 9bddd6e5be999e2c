"""What only a GPU can show. Run where there is one: `pytest -m gpu`."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import tiny_backbone  # noqa: F401 (registers tiny_resnet)
import torch
import torchvision
from conftest import CPU, progress, require
from test_every_method import RUNS, config_of
from test_fused_bottleneck import SmallResNet

from fastsimsiam.config.evaluation import EvalOptions
from fastsimsiam.config.optimizer import OptimizerConfig, OptimizerName
from fastsimsiam.config.run import CompileName, Config, CpuConfig, DeviceName
from fastsimsiam.config.supervised import DistillConfig, FinetuneConfig
from fastsimsiam.evaluate.distill import distill
from fastsimsiam.evaluate.finetune import finetune
from fastsimsiam.loaders.base import LoaderOptions
from fastsimsiam.loaders.device_decode import decode_jpegs
from fastsimsiam.loaders.registry import build_loader
from fastsimsiam.methods.base import ParameterGroup
from fastsimsiam.models.fused_batch_norm import sums
from fastsimsiam.models.fused_batch_norm.fuse import fuse_norms
from fastsimsiam.models.fused_bottleneck import operators
from fastsimsiam.models.fused_bottleneck.fuse import fuse_bottlenecks
from fastsimsiam.optim.build import build_optimizer
from fastsimsiam.plan.batches import TrainPlan
from fastsimsiam.runs.checkpoint import CheckpointStore, load
from fastsimsiam.runs.recorder import Recorder
from fastsimsiam.storage.class_folder import open_split
from fastsimsiam.train.build import build_trainer
from fastsimsiam.train.distributed import World
from fastsimsiam.train.pretrain import pretrain

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def gpu_config(tiny_config: Config) -> Config:
    """The tiny run on a GPU."""
    return replace(tiny_config, device="cuda", precision="bf16", log_every=100)


@pytest.mark.parametrize(
    ("name", "cpu"),
    [
        ("cpu", CpuConfig()),
        ("cpu", CpuConfig(crops="device")),
        ("nvjpeg", CpuConfig()),
        ("resident", CpuConfig()),
        ("dali", CpuConfig()),
    ],
)
def test_crops_are_those_of_a_cpu(
    name: str, cpu: CpuConfig, photos: Path, gpu_config: Config
) -> None:
    if name in ("dali", "nvjpeg"):
        require({"nvjpeg": "torchcodec"}.get(name, name))
    storage = open_split(photos, "train")
    plan = TrainPlan(
        label=storage.label,
        sizes=storage.sizes,
        seed=0,
        specs=(gpu_config.views[0], replace(gpu_config.views[1], interpolation="bicubic")),
        image_size=224,
        batch_size=32,
    )
    trusted = build_loader(
        "cpu", storage, LoaderOptions(device=CPU, workers=2, on_bad_image="error")
    )
    gpu = build_loader(
        name,
        storage,
        LoaderOptions(device=torch.device("cuda", 0), workers=2, on_bad_image="error"),
        cpu=cpu,
    )
    with closing(trusted), closing(gpu):
        for ours, wanted in zip(gpu.iterate(plan), trusted.iterate(plan), strict=True):
            assert ours.index.tolist() == wanted.index.tolist()
            difference = (ours.crops[0].cpu().short() - wanted.crops[0].short()).abs().float()
            assert difference.mean() < 2.0  # decoders differ in chroma
            assert torch.equal(ours.photometric["hue"].cpu(), wanted.photometric["hue"])


def test_decoding_waits_for_kernels_that_use_its_memory() -> None:
    """An H100's JPEG engine writes at once; the loader waits for the stream, as torchcodec does."""
    require("torchcodec")
    device = torch.device("cuda", 0)
    shape = (512, 512, 3)
    black = simplejpeg.encode_jpeg(np.zeros(shape, np.uint8), colorspace="RGB")
    files = [torch.frombuffer(bytearray(black), dtype=torch.uint8) for _ in range(16)]
    decode_jpegs(files, device)
    for _ in range(10):
        blocks = [torch.ones(shape, dtype=torch.uint8, device=device) for _ in files]
        addresses = {block.data_ptr() for block in blocks}
        torch.cuda._sleep(100_000_000)
        sums = torch.stack([block.sum() for block in blocks])  # runs after the sleep
        del blocks
        frames = decode_jpegs(files, device)
        assert addresses & {frame.data_ptr() for frame in frames}
        assert sums.unique().tolist() == [512 * 512 * 3]


@pytest.mark.parametrize("loader", ["cpu", "resident"])
@pytest.mark.parametrize("compiled", ["off", "color", "step"])
def test_no_sync_and_no_recompile_between_log_steps(
    gpu_config: Config, loader: str, compiled: CompileName
) -> None:
    assert_no_sync_and_no_recompile(gpu_config, loader, compiled)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("compiled", ["color", "step"])
def test_no_sync_and_no_recompile_of_any_method(
    gpu_config: Config, name: str, compiled: CompileName
) -> None:
    """Also of the hooks: targets move, keys enter the queue."""
    config = config_of(name, gpu_config.data, gpu_config.out)
    config = replace(config, device="cuda", precision="bf16", log_every=100)
    assert_no_sync_and_no_recompile(config, "cpu", compiled)


def assert_no_sync_and_no_recompile(config: Config, loader: str, compiled: CompileName) -> None:
    """Six steps, of which the first two compile."""
    device = torch.device("cuda", 0)
    storage = open_split(config.data, "train")
    source = build_loader(
        loader, storage, LoaderOptions(device=device, workers=2, on_bad_image="error")
    )
    recorder = Recorder(config)
    torch._dynamo.reset()
    made = build_trainer(
        config,
        storage,
        source,
        evaluators=[],
        store=CheckpointStore(config.out, 1),
        recorder=recorder,
        device=device,
        dtype=torch.bfloat16,
        compiled=compiled,
        world=World(),
    )
    from fastsimsiam.train.trainer import Window

    made._first_bad_step = torch.full((), -1, dtype=torch.int64, device=device)
    window = Window(device=device)
    batches = made.loader.iterate(made.plan)
    for _ in range(2):
        made._step(batches, window)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch._dynamo.config.patch(error_on_recompile=True):
            for _ in range(4):
                made._step(batches, window)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    recorder.close()
    source.close()


@pytest.mark.parametrize("name", ["sgd", "lars", "larc", "adamw"])
def test_optimizers_read_nothing_and_agree_with_those_of_a_cpu(name: OptimizerName) -> None:
    config = OptimizerConfig(name=name, exclude_bias_and_norm=name == "lars")
    results = []
    for device in (CPU, torch.device("cuda", 0)):
        torch.manual_seed(0)
        network = torchvision.models.get_model("tiny_resnet")
        network = network.to(device).to(memory_format=torch.channels_last)
        weights = list(network.parameters())
        gradients = [torch.randn(weight.shape).to(device) for weight in weights]
        groups = [
            ParameterGroup(parameters=weights[:9]),
            ParameterGroup(parameters=weights[9:], lr_factor=2.0),
        ]
        optimizer = build_optimizer(groups, config, device)
        for step in range(4):
            for weight, gradient in zip(weights, gradients, strict=True):
                weight.grad = gradient.clone()
            if device.type == "cuda" and step:
                torch.cuda.set_sync_debug_mode("error")
            try:
                optimizer.set_lr(0.1 / (1 + step), 0.1)
                optimizer.step(progress(step))
            finally:
                torch.cuda.set_sync_debug_mode("default")
        results.append([weight.detach().cpu() for weight in weights])
    for cpu, gpu in zip(*results, strict=True):
        torch.testing.assert_close(gpu, cpu, rtol=1e-4, atol=1e-6)


def test_memory_is_flat(gpu_config: Config) -> None:
    pretrain(replace(gpu_config, max_steps=6))
    torch.cuda.reset_peak_memory_stats()
    pretrain(replace(gpu_config, out=gpu_config.out / "a", epochs=1))
    one, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    pretrain(replace(gpu_config, out=gpu_config.out / "b", epochs=8))
    assert torch.cuda.max_memory_allocated() < 1.05 * one
    # Memory that was taken for a stream is kept for it: a stream for every epoch would add up.
    assert torch.cuda.max_memory_reserved() < 1.5 * reserved


def test_resume_continues_on_a_gpu(gpu_config: Config, tmp_path: Path) -> None:
    pretrain(replace(gpu_config, max_steps=5))
    pretrain(gpu_config, resume=True)
    assert load(CheckpointStore(gpu_config.out, 1).paths()[-1]).step == 12


def test_fine_tuning_and_distillation_agree_with_a_cpu(gpu_config: Config, tmp_path: Path) -> None:
    pretrain(replace(gpu_config, max_steps=2))
    sgd = OptimizerConfig(lr=0.05, weight_decay=0.0, schedule="step")
    tune = FinetuneConfig(labels="50%", epochs=2, batch_size=16, optimizer=sgd)
    teach = DistillConfig(epochs=2, batch_size=32, optimizer=sgd, label_weight=0.5)
    losses = []
    devices: tuple[DeviceName, ...] = ("cpu", "cuda")
    for device in devices:
        options = EvalOptions(device=device, precision="fp32")
        tuned = finetune(
            gpu_config.out, gpu_config.data, tmp_path / device, config=tune, options=options
        )
        student = distill(
            tmp_path / device,
            gpu_config.data,
            tmp_path / f"s-{device}",
            config=teach,
            options=options,
        )
        losses.append([*tuned.losses, *student.losses])
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


def test_gpu_and_cpu_agree(gpu_config: Config, tmp_path: Path) -> None:
    cpu = pretrain(
        replace(gpu_config, device="cpu", precision="fp32", out=tmp_path / "cpu", log_every=1)
    )
    gpu = pretrain(replace(gpu_config, precision="fp32", out=tmp_path / "gpu", log_every=1))
    assert gpu.first["loss"] == pytest.approx(cpu.first["loss"], abs=2e-3)
    assert gpu.last["loss"] == pytest.approx(cpu.last["loss"], abs=5e-2)


@pytest.mark.parametrize("shape", [(64, 64, 112, 112), (3, 70, 5, 7)])
@pytest.mark.parametrize("two", [True, False])
@pytest.mark.parametrize("added", [True, False])
def test_norm_kernels_are_torchs_sums(shape: tuple[int, ...], two: bool, added: bool) -> None:
    """With several tiles for each program, and with ragged ones."""
    generator = torch.Generator("cuda").manual_seed(0)

    def a_map() -> torch.Tensor:
        made = torch.randn(shape, device="cuda", generator=generator, dtype=torch.bfloat16)
        return made.to(memory_format=torch.channels_last)

    x, gradient, other, output = (a_map() for _ in range(4))
    scale, shift = (torch.randn(shape[1], device="cuda", generator=generator) for _ in range(2))
    torch.library.opcheck(sums.channel_moments, (x,))
    mean, variance = sums.merged(x, *sums.channel_moments(x))
    for ours, theirs in zip((mean, variance), sums.merged(x, *sums.moments(x)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    operands = (
        gradient,
        other if two else None,
        x,
        mean,
        scale,
        shift,
        output if added else None,
        True,
    )
    torch.library.opcheck(sums.channel_gradient_sums, operands)
    found, wanted = sums.channel_gradient_sums(*operands), sums.gradient_sums(*operands)
    # Where x * scale + shift rounds to another side of zero, the ReLU may let through or not.
    assert found[0].numel() == (x.numel() if two or added else 0)
    assert (found[0] != wanted[0]).float().sum() <= 1e-5 * x.numel()
    atol = 1e-4 * x.numel() ** 0.5
    for ours, theirs in zip(found[1:], wanted[1:], strict=True):
        torch.testing.assert_close(ours.sum(0), theirs.sum(0), rtol=1e-3, atol=atol)


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


@pytest.mark.parametrize("channels", [16, 64, 128, 256])
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
