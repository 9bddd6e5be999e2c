"""What only a GPU can show, and what takes minutes: `pytest tests/test_gpu_slow.py`."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import tiny_backbone  # noqa: F401 (registers tiny_resnet)
import torch
from conftest import require
from gpu_steps import NEEDS_GPU, assert_no_sync_and_no_recompile, assert_same_crops, norm_operands
from test_every_method import RUNS, config_of

from fastsimsiam.config.evaluation import EvalOptions
from fastsimsiam.config.optimizer import OptimizerConfig
from fastsimsiam.config.run import CompileName, Config, CpuConfig, DeviceName
from fastsimsiam.config.supervised import DistillConfig, FinetuneConfig
from fastsimsiam.evaluate.distill import distill
from fastsimsiam.evaluate.finetune import finetune
from fastsimsiam.loaders.device_decode import decode_jpegs
from fastsimsiam.models.fused_batch_norm import sums
from fastsimsiam.runs.checkpoint import CheckpointStore, load
from fastsimsiam.train.pretrain import pretrain

pytestmark = NEEDS_GPU


@pytest.mark.parametrize("name", ["nvjpeg", "dali"])
def test_crops_of_decoders_on_the_device_are_like_those_of_a_cpu(
    name: str, pictures: Path, gpu_config: Config
) -> None:
    require({"nvjpeg": "torchcodec"}.get(name, name))
    assert_same_crops(gpu_config, pictures, name, CpuConfig(), within=2.0)  # they differ in chroma


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


@pytest.mark.parametrize(
    ("loader", "compiled"),
    [("cpu", "color"), ("resident", "off"), ("resident", "color"), ("resident", "step")],
)
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


@pytest.mark.parametrize("shape", [(64, 64, 112, 112), (3, 70, 5, 7)])
@pytest.mark.parametrize("two", [True, False])
@pytest.mark.parametrize("added", [True, False])
def test_norm_kernels_are_proper_operators(shape: tuple[int, ...], two: bool, added: bool) -> None:
    """For the compiler: their schemas, and shapes without data."""
    x, operands = norm_operands(shape, two=two, added=added)
    torch.library.opcheck(sums.channel_moments, (x,))
    torch.library.opcheck(sums.channel_gradient_sums, operands)
