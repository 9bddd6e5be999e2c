"""What only a GPU can show, in a minute: `pytest tests/test_gpu.py`. test_gpu_slow.py has the rest."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_backbone  # noqa: F401 (registers tiny_resnet)
import torch
import torchvision
from conftest import CPU, progress
from gpu_steps import NEEDS_GPU, assert_no_sync_and_no_recompile, assert_same_crops, norm_operands

from fastsimsiam.config.optimizer import OptimizerConfig, OptimizerName
from fastsimsiam.config.run import CompileName, Config, CpuConfig
from fastsimsiam.config.views import ViewSpec
from fastsimsiam.loaders import slots
from fastsimsiam.loaders.base import LoaderOptions
from fastsimsiam.loaders.registry import build_loader
from fastsimsiam.methods.base import ParameterGroup
from fastsimsiam.models.fused_batch_norm import sums
from fastsimsiam.optim.build import build_optimizer
from fastsimsiam.plan.batches import TrainPlan
from fastsimsiam.storage.class_folder import open_split
from fastsimsiam.system import pinned as pinning
from fastsimsiam.train.pretrain import pretrain

pytestmark = NEEDS_GPU


@pytest.mark.parametrize("compiled", ["off", "step"])
def test_no_sync_and_no_recompile_between_log_steps(
    gpu_config: Config, compiled: CompileName
) -> None:
    assert_no_sync_and_no_recompile(gpu_config, "cpu", compiled)


@pytest.mark.parametrize(
    ("name", "cpu"),
    [("cpu", CpuConfig()), ("cpu", CpuConfig(crops="device")), ("resident", CpuConfig())],
)
def test_crops_are_those_of_a_cpu(
    name: str, cpu: CpuConfig, pictures: Path, gpu_config: Config
) -> None:
    # The same decoder: only the resampling is of the device.
    assert_same_crops(gpu_config, pictures, name, cpu, within=0.5)


@pytest.mark.parametrize("crops", ["host", "device"])
def test_slots_are_pinned_and_serve_the_processes_of_all_epochs(
    crops: str, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forked after the pinning, too; nothing is overwritten before the GPU has it."""
    pinned: list[bool] = []
    monkeypatch.setattr(pinning, "PIN", True)
    pin = pinning.pin
    monkeypatch.setattr(slots, "pin", lambda *told: pinned.append(pin(*told)) or pinned[-1])
    storage = open_split(pictures, "train")
    plan = TrainPlan(
        label=storage.label,
        sizes=storage.sizes,
        seed=0,
        specs=(ViewSpec(), ViewSpec()),
        image_size=224,
        batch_size=4,
    )
    gpu = LoaderOptions(device=torch.device("cuda", 0), workers=2)
    told = CpuConfig(crops=crops, processes=2)
    threads = replace(told, processes=0)
    with (
        closing(build_loader("cpu", storage, gpu, cpu=told)) as ours,
        closing(build_loader("cpu", storage, gpu, cpu=threads)) as wanted,
    ):
        for epoch in range(3):
            for a, b in zip(ours.iterate(plan, epoch), wanted.iterate(plan, epoch), strict=True):
                assert torch.equal(a.index, b.index)
                assert torch.equal(a.crops[0], b.crops[0])
            next(ours.iterate(plan, epoch))  # left early
    assert pinned == [True] * 4  # once for each slot of both processes


@pytest.mark.parametrize("name", ["sgd", "lars", "larc", "adamw"])
def test_optimizers_read_nothing_and_agree_with_those_of_a_cpu(name: OptimizerName) -> None:
    config = OptimizerConfig(name=name, exclude_bias_and_norm=name == "lars")
    results = []
    for device in (CPU, torch.device("cuda", 0)):
        torch.manual_seed(0)
        network = torchvision.models.get_model("tiny_resnet")
        network = network.to(device).to(memory_format=torch.channels_last)
        weights = list(network.parameters())
        # In the layout of the weights, as autograd makes them.
        gradients = [torch.empty_like(w).copy_(torch.randn(w.shape)) for w in weights]
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


def test_gpu_and_cpu_agree(
    gpu_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # By default convolutions of float32 round their operands to 10 bits on a GPU.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
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
    x, operands = norm_operands(shape, two=two, added=added)
    found, wanted = (sums.merged(x, *take(x)) for take in (sums.channel_moments, sums.moments))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    found, wanted = sums.channel_gradient_sums(*operands), sums.gradient_sums(*operands)
    # Where x * scale + shift rounds to another side of zero, the ReLU may let through or not.
    assert found[0].numel() == (x.numel() if two or added else 0)
    assert (found[0] != wanted[0]).float().sum() <= 1e-5 * x.numel()
    atol = 1e-4 * x.numel() ** 0.5
    for ours, theirs in zip(found[1:], wanted[1:], strict=True):
        torch.testing.assert_close(ours.sum(0), theirs.sum(0), rtol=1e-3, atol=atol)
