"""What `auto` means on this machine; every choice comes with its reason, for the log."""

from dataclasses import dataclass

import torch

from fastsimsiam.config.run import CompileName, Config
from fastsimsiam.errors import UserError
from fastsimsiam.loaders.registry import choose_loader
from fastsimsiam.methods.registry import find_method
from fastsimsiam.storage.base import Storage
from fastsimsiam.system.compiler import why_compile_fails
from fastsimsiam.system.device import choose_device, choose_dtype

# On a CPU, compiling color takes half a minute and saves 0.4 ms an image at 64 pixels.
_IMAGES_WORTH_COMPILING = 100_000


def choose_compile(
    config: Config, images: int, device: torch.device, num_processes: int = 1
) -> tuple[CompileName, str]:
    """What to compile (`step`, `color` or `off`), and why.

    Args:
        config: the run's configuration.
        images: number of images in the training split.
        device: where to train.
        num_processes: number of processes that train together.

    Raises:
        UserError: what is asked for cannot work here.
    """
    # torch's SyncBatchNorm picks rows by a mask, a shape that no whole graph can hold. For methods
    # without it, compiling a step inside DistributedDataParallel is not measured yet.
    several_gpus = device.type == "cuda" and num_processes > 1
    problem = why_compile_fails(device.type)
    if config.compile != "auto":
        if config.compile == "step" and several_gpus:
            raise UserError(
                "--compile step does not work with several GPUs yet: pass --compile color"
            )
        if config.compile != "off" and problem:
            # Not refused: what is looked for may lie where only the compiler finds it.
            doubt = f"asked for; WARNING: if it fails, {problem}, or pass --compile off"
            return config.compile, doubt
        return config.compile, "asked for"
    if problem:
        return "off", f"to compile, {problem}"
    if several_gpus:
        if find_method(config.method).sync_batch_norm:
            return "color", "SyncBatchNorm of several GPUs breaks the graph of the step"
        return "color", "compiling the step is not measured yet with several GPUs"
    if device.type == "cuda":
        return "step", "it pays on a GPU"
    planned = config.epochs * images
    if config.max_steps is not None:
        planned = min(planned, config.max_steps * config.batch_size)
    if planned < _IMAGES_WORTH_COMPILING:
        return "off", "a short run on a CPU"
    return "color", "a CPU gains nothing from compiling the network"


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What `auto` stands for in a run.

    Attributes:
        device: where to train.
        dtype: of the network's arithmetic.
        loader: a name that `build_loader` takes.
        compiled: what is compiled: `step`, `color` or `off`.
        why: all of it with reasons, in a line for the log.
    """

    device: torch.device
    dtype: torch.dtype
    loader: str
    compiled: CompileName
    why: str


def choose_all(
    config: Config, storage: Storage, local_rank: int = 0, num_processes: int = 1
) -> Chosen:
    """Device, precision, loader and compilation for a run on a training split."""
    device, why_device = choose_device(config.device, local_rank)
    dtype, why_dtype = choose_dtype(config.precision, device)
    loader, why_loader = choose_loader(config.loader, storage, device, num_processes)
    compiled, why_compiled = choose_compile(config, len(storage), device, num_processes)
    why = (
        f"loader {loader} ({why_loader}); device {device} ({why_device}); precision "
        f"{str(dtype).removeprefix('torch.')} ({why_dtype}); compile {compiled} ({why_compiled})"
    )
    return Chosen(device=device, dtype=dtype, loader=loader, compiled=compiled, why=why)
