"""What the tests on a GPU share: their mark, and checks that several of them make."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CPU

from fastsimsiam.config.run import CompileName, Config, CpuConfig
from fastsimsiam.loaders.base import LoaderOptions
from fastsimsiam.loaders.registry import build_loader
from fastsimsiam.models.fused_batch_norm import sums
from fastsimsiam.plan.batches import TrainPlan
from fastsimsiam.runs.checkpoint import CheckpointStore
from fastsimsiam.runs.recorder import Recorder
from fastsimsiam.storage.class_folder import open_split
from fastsimsiam.train.build import build_trainer
from fastsimsiam.train.distributed import World
from fastsimsiam.train.window import Window

NEEDS_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def assert_same_crops(
    config: Config, data: Path, name: str, cpu: CpuConfig, *, within: float
) -> None:
    """Compares a loader on the GPU with `cpu` on the host.

    Args:
        config: whose views are drawn.
        data: the images.
        name: of the loader.
        cpu: options of the loader `cpu`.
        within: mean difference of the pixels of a batch.
    """
    storage = open_split(data, "train")
    plan = TrainPlan(
        label=storage.label,
        sizes=storage.sizes,
        seed=0,
        specs=(config.views[0], replace(config.views[1], interpolation="bicubic")),
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
    batches = 0
    with closing(trusted), closing(gpu):
        for ours, wanted in zip(gpu.iterate(plan), trusted.iterate(plan), strict=True):
            assert ours.index.tolist() == wanted.index.tolist()
            difference = (ours.crops[0].cpu().short() - wanted.crops[0].short()).abs().float()
            assert difference.mean() < within
            assert torch.equal(ours.photometric["hue"].cpu(), wanted.photometric["hue"])
            batches += 1
    assert batches


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


def norm_operands(
    shape: tuple[int, ...], *, two: bool, added: bool
) -> tuple[torch.Tensor, tuple[Any, ...]]:
    """A random map, and the arguments of `channel_gradient_sums` for it.

    Args:
        shape: of the map.
        two: whether two gradients are added.
        added: whether the ReLU was of a sum, whose output is then an argument.
    """
    generator = torch.Generator("cuda").manual_seed(0)

    def a_map() -> torch.Tensor:
        made = torch.randn(shape, device="cuda", generator=generator, dtype=torch.bfloat16)
        return made.to(memory_format=torch.channels_last)

    x, gradient, other, output = (a_map() for _ in range(4))
    scale, shift = (torch.randn(shape[1], device="cuda", generator=generator) for _ in range(2))
    mean, _ = sums.merged(x, *sums.moments(x))
    second, last = other if two else None, output if added else None
    return x, (gradient, second, x, mean, scale, shift, last, True)
