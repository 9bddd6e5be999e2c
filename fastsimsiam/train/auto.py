"""What `auto` means on this machine; every choice comes with its reason, for the log."""

from dataclasses import dataclass

import torch

from fastsimsiam.config.run import CompileName, Config, DeviceName, PrecisionName
from fastsimsiam.errors import UserError
from fastsimsiam.loaders.registry import choose_loader
from fastsimsiam.storage.base import Storage
from fastsimsiam.system.hardware import mend_for_compiling

# On a CPU, compiling colour takes half a minute and saves 0.4 ms an image at 64 pixels.
_IMAGES_WORTH_COMPILING = 100_000


def choose_device(asked: DeviceName, local_rank: int = 0) -> tuple[torch.device, str]:
    """The training device and why.

    Args:
        asked: `auto`, or what the user wants.
        local_rank: number of the GPU.

    Raises:
        UserError: a GPU is asked for, and there is none.
    """
    available = torch.cuda.is_available()
    if asked == "cuda" and not available:
        raise UserError("--device cuda: torch finds no CUDA device: pass --device cpu")
    if asked == "cuda" or (asked == "auto" and available):
        return torch.device("cuda", local_rank), "asked for" if asked == "cuda" else "found"
    return torch.device("cpu"), "asked for" if asked == "cpu" else "no CUDA device"


def choose_dtype(asked: PrecisionName, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype of the network's arithmetic and why.

    Args:
        asked: `auto`, or what the user wants.
        device: of the network.
    """
    if asked != "auto":
        return {"bf16": torch.bfloat16, "fp32": torch.float32}[asked], "asked for"
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = bool(torch.backends.cpu.get_cpu_capability() and _cpu_computes_in_bf16())
    if native:
        return torch.bfloat16, f"the {device.type} computes in it"
    return torch.float32, f"the {device.type} has no bfloat16 arithmetic"


def _cpu_computes_in_bf16() -> bool:
    # Emulated bfloat16 is slower than float32, and torch has no public question for this before
    # `torch.cpu.get_capabilities`.
    if hasattr(torch.cpu, "get_capabilities"):
        found = torch.cpu.get_capabilities()
        return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    return bool(torch.cpu._is_avx512_bf16_supported())


def choose_compile(
    config: Config, images: int, device: torch.device, num_processes: int = 1
) -> tuple[CompileName, str]:
    """What to compile (`step`, `colour` or `off`), and why.

    Args:
        config: the run's.
        images: in the training split.
        device: the training device.
        num_processes: that train together.
    """
    # torch's SyncBatchNorm picks rows by a mask, a shape that no whole graph can hold.
    several_gpus = device.type == "cuda" and num_processes > 1
    mend = mend_for_compiling(device.type)
    if config.compile != "auto":
        if config.compile == "step" and several_gpus:
            raise UserError(
                "--compile step does not work with several GPUs yet: pass --compile colour"
            )
        if config.compile != "off" and mend:
            raise UserError(
                f"--compile {config.compile} cannot work here: {mend}, or pass --compile off"
            )
        return config.compile, "asked for"
    if mend:
        return "off", f"to compile, {mend}"
    if several_gpus:
        return "colour", "SyncBatchNorm of several GPUs breaks the graph of the step"
    if device.type == "cuda":
        return "step", "it pays on a GPU"
    planned = config.epochs * images
    if config.max_steps is not None:
        planned = min(planned, config.max_steps * config.batch_size)
    if planned < _IMAGES_WORTH_COMPILING:
        return "off", "a short run on a CPU"
    return "colour", "a CPU gains nothing from compiling the network"


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What `auto` has made of a config, and why, in a line for the log."""

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
