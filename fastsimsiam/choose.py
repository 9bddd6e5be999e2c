"""What `auto` means on this machine; every choice comes with its reason, for the log."""

from dataclasses import dataclass

import torch

from fastsimsiam.config import CompileName, Config
from fastsimsiam.cores import host_memory, num_cores
from fastsimsiam.errors import UserError
from fastsimsiam.loaders.resident_loader import decoded_bytes
from fastsimsiam.machine import mend_for_compiling
from fastsimsiam.optional import has_dali
from fastsimsiam.storage.base import Storage
from fastsimsiam.storage.beton import Beton

# Shares of the memory that a decoded data set may take: the rest is for training and the system.
_DEVICE_SHARE = 0.25
_HOST_SHARE = 0.10
# A core decodes and crops about 500 photographs a second, and a fast GPU trains on 4,000.
_CORES_PER_GPU = 8
# On a CPU, compiling colour takes half a minute and saves 0.4 ms an image at 64 pixels.
_IMAGES_WORTH_COMPILING = 100_000


def choose_device(config: Config, local_rank: int = 0) -> tuple[torch.device, str]:
    """The training device and why."""
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise UserError("--device cuda: torch finds no CUDA device: pass --device cpu")
    if config.device == "cuda" or (config.device == "auto" and available):
        return torch.device("cuda", local_rank), "asked for" if config.device == "cuda" else "found"
    return torch.device("cpu"), "asked for" if config.device == "cpu" else "no CUDA device"


def choose_dtype(config: Config, device: torch.device) -> tuple[torch.dtype, str]:
    """The dtype of the network's arithmetic and why."""
    if config.precision != "auto":
        return {"bf16": torch.bfloat16, "fp32": torch.float32}[config.precision], "asked for"
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


def choose_loader(
    config: Config, storage: Storage, device: torch.device, num_processes: int = 1
) -> tuple[str, str]:
    """The loader's name and why."""
    if config.loader != "auto":
        return config.loader, "asked for"
    share = _DEVICE_SHARE if device.type == "cuda" else _HOST_SHARE
    if device.type == "cuda":
        room = torch.cuda.mem_get_info(device)[0] * share
        where = "free GPU memory"
    else:
        room = host_memory() * share
        where = "memory"
    need = decoded_bytes(storage)
    size = f"{need / 1e9:.2f} GB decoded"
    # On its way to a GPU everything passes through memory, once for each process.
    if device.type == "cuda" and need * num_processes > host_memory() / 2:
        why = f"{size} for {num_processes} processes is more than half of the memory"
    elif need <= room:
        return "resident", f"{size} is within {share:.0%} of the {where}"
    else:
        why = f"{size} is more than {share:.0%} of the {where}"
    if isinstance(storage, Beton):
        packed = int(storage.length.sum())
        if packed > host_memory() / 2:
            return (
                "ffcv",
                f"{why}; a packed file, larger than half of the memory: read ahead of use",
            )
        return "ffcv", f"{why}; a packed file, which stays in the page cache"
    cores = num_cores() / num_processes
    if device.type == "cuda" and cores < _CORES_PER_GPU and has_dali():
        return "dali", f"{why}; {cores:.0f} CPU cores per GPU are few, so the GPU decodes"
    return "folder", why


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
    device, why_device = choose_device(config, local_rank)
    dtype, why_dtype = choose_dtype(config, device)
    loader, why_loader = choose_loader(config, storage, device, num_processes)
    compiled, why_compiled = choose_compile(config, len(storage), device, num_processes)
    why = (
        f"loader {loader} ({why_loader}); device {device} ({why_device}); precision "
        f"{str(dtype).removeprefix('torch.')} ({why_dtype}); compile {compiled} ({why_compiled})"
    )
    return Chosen(device=device, dtype=dtype, loader=loader, compiled=compiled, why=why)
