"""What only a GPU can show. Run where there is one: `pytest -m gpu`."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import CPU, require

from fastsimsiam.build import build_loader, build_trainer
from fastsimsiam.checkpoint import CheckpointStore, load
from fastsimsiam.config import CompileName, Config, FolderConfig
from fastsimsiam.distributed import World
from fastsimsiam.plan.batches import TrainPlan
from fastsimsiam.pretraining import pretrain
from fastsimsiam.recorder import Recorder
from fastsimsiam.storage.class_folder import open_split

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture
def gpu_config(tiny_config: Config) -> Config:
    """The tiny run on a GPU."""
    return replace(tiny_config, device="cuda", precision="bf16", log_every=100)


@pytest.mark.parametrize(
    ("name", "folder"),
    [("folder", FolderConfig()), ("folder", FolderConfig(crops="device")),
     ("folder", FolderConfig(decoder="nvjpeg")), ("resident", FolderConfig()),
     ("dali", FolderConfig())],
)  # fmt: skip
def test_crops_are_those_of_a_cpu(
    name: str, folder: FolderConfig, photos: Path, gpu_config: Config
) -> None:
    if name == "dali":
        require("dali")
    storage = open_split(photos, "train")
    plan = TrainPlan(
        label=storage.label, sizes=storage.sizes, seed=0, specs=gpu_config.views, image_size=224,
        batch_size=32,
    )  # fmt: skip
    cpu = build_loader("folder", storage, device=CPU, workers=2, on_bad_image="error")
    gpu = build_loader(
        name,
        storage,
        device=torch.device("cuda", 0),
        workers=2,
        on_bad_image="error",
        folder=folder,
    )
    with closing(cpu), closing(gpu):
        for ours, wanted in zip(gpu.iterate(plan), cpu.iterate(plan), strict=True):
            assert ours.index.tolist() == wanted.index.tolist()
            difference = (ours.crops[0].cpu().short() - wanted.crops[0].short()).abs().float()
            assert difference.mean() < 2.0  # decoders differ in chroma
            assert torch.equal(ours.photometric["hue"].cpu(), wanted.photometric["hue"])


@pytest.mark.parametrize("loader", ["folder", "resident"])
@pytest.mark.parametrize("compiled", ["off", "colour", "step"])
def test_no_sync_and_no_recompile_between_log_steps(
    gpu_config: Config, loader: str, compiled: CompileName
) -> None:
    device = torch.device("cuda", 0)
    storage = open_split(gpu_config.data, "train")
    source = build_loader(loader, storage, device=device, workers=2, on_bad_image="error")
    recorder = Recorder(gpu_config.out)
    torch._dynamo.reset()
    made = build_trainer(
        gpu_config, storage, source, evaluators=[], store=CheckpointStore(gpu_config.out, 1),
        recorder=recorder, device=device, dtype=torch.bfloat16, compiled=compiled, world=World(),
    )  # fmt: skip
    from fastsimsiam.trainer import _Window

    made._first_bad_step = torch.full((), -1, dtype=torch.int64, device=device)
    window = _Window(device=device)
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


def test_gpu_and_cpu_agree(gpu_config: Config, tmp_path: Path) -> None:
    cpu = pretrain(
        replace(gpu_config, device="cpu", precision="fp32", out=tmp_path / "cpu", log_every=1)
    )
    gpu = pretrain(replace(gpu_config, precision="fp32", out=tmp_path / "gpu", log_every=1))
    assert gpu.first["loss"] == pytest.approx(cpu.first["loss"], abs=2e-3)
    assert gpu.last["loss"] == pytest.approx(cpu.last["loss"], abs=5e-2)
