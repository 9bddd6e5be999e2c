"""All loaders by name: which one `auto` means, and how each is built."""

from collections.abc import Callable
from dataclasses import asdict

import torch

from fastsimsiam.config import renamed
from fastsimsiam.config.run import CpuConfig, DaliConfig, LoaderName
from fastsimsiam.errors import UserError
from fastsimsiam.loaders.base import Loader, LoaderOptions
from fastsimsiam.loaders.cpu_loader import cpu_loader
from fastsimsiam.loaders.dali_loader import DaliLoader
from fastsimsiam.loaders.ffcv_loader import FfcvLoader
from fastsimsiam.loaders.frame_threads import nvjpeg_loader
from fastsimsiam.loaders.reference_loader import ReferenceLoader
from fastsimsiam.loaders.resident_loader import decoded_bytes, resident_loader
from fastsimsiam.storage.base import Report, Storage
from fastsimsiam.system.optional import has_dali
from fastsimsiam.system.resources import available_memory, host_memory, num_cores

# Shares of GPU memory and host memory that a decoded split may take: training needs the rest.
RESIDENT_DEVICE_SHARE = 0.25
RESIDENT_HOST_SHARE = 0.10
FREE_SHARE = 0.5
"""Share that it may take of the host memory that no program uses: others may come."""
# A core decodes and crops about 500 photographs a second, and a fast GPU trains on 4,000.
_CORES_PER_GPU = 8


def build_loader(
    name: str,
    storage: Storage,
    options: LoaderOptions,
    *,
    cpu: CpuConfig | None = None,
    dali: DaliConfig | None = None,
    report: Report | None = None,
) -> Loader:
    """The loader of a name, as returned by `choose_loader`.

    Args:
        name: one of `config.run.LoaderName` except `auto`.
        storage: the images.
        options: device, threads, broken images.
        cpu, dali: options of these loaders; None: their defaults.
        report: receives the progress of `resident`, which decodes everything first.

    Raises:
        UserError: the loader cannot read this storage or run on this device, or a library is missing.
    """
    cpu, dali = cpu or CpuConfig(), dali or DaliConfig()
    builders: dict[str, Callable[[], Loader]] = {
        "cpu": lambda: cpu_loader(storage, options, crops=cpu.crops, processes=cpu.processes),
        "nvjpeg": lambda: nvjpeg_loader(storage, options),
        "dali": lambda: DaliLoader(storage, options, **asdict(dali)),
        "ffcv": lambda: FfcvLoader(storage, options),
        "resident": lambda: resident_loader(storage, options, report=report),
        "reference": lambda: ReferenceLoader(storage, options),
    }
    return builders[name]()


def choose_loader(
    name: LoaderName, storage: Storage, device: torch.device, num_processes: int = 1
) -> tuple[str, str]:
    """The name of the loader to build, and the reason for it.

    `auto` is the first that applies: `resident` if the decoded split fits the memory, `dali` for a GPU
    with few CPU cores, else `cpu`. Packed files are no exception: `ffcv` needs a library that has to be
    compiled, and is faster than `cpu` by a tenth at most (docs/loaders.md).

    Args:
        name: `auto`, or the loader that the user asks for.
        storage: the training split.
        device: the training device.
        num_processes: training processes on this machine.

    Raises:
        UserError: `name` is a loader's name in an earlier version.
    """
    if name in renamed.LOADERS:
        raise UserError(f"the loader {name} is called {renamed.LOADERS[name]} now: pass that name")
    if name != "auto":
        return name, "asked for"
    fits, why = _fits_in_memory(storage, device, num_processes)
    if fits:
        return "resident", why
    cores = num_cores() / num_processes
    if device.type == "cuda" and cores < _CORES_PER_GPU and has_dali():
        return "dali", f"{why}; {cores:.0f} CPU cores per GPU are few, so the GPU decodes"
    return "cpu", why


def _fits_in_memory(storage: Storage, device: torch.device, num_processes: int) -> tuple[bool, str]:
    """Whether each process can keep the decoded split, and a sentence that says why."""
    need = decoded_bytes(storage)
    size = f"{need / 1e9:.2f} GB decoded"
    if device.type == "cuda":
        share, where = RESIDENT_DEVICE_SHARE, "free GPU memory"
        room = torch.cuda.mem_get_info(device)[0] * share
    else:
        share, where = RESIDENT_HOST_SHARE, "memory"
        room = host_memory() * share
    if need > room:
        return False, f"{size} is more than {share:.0%} of the {where}"
    # Frames for a GPU, too, are first decoded in host memory, by each process.
    free = available_memory()
    if need * num_processes > FREE_SHARE * free:
        processes = f" for {num_processes} processes" if num_processes > 1 else ""
        return False, (
            f"{size}{processes} is more than {FREE_SHARE:.0%} of the {free / 1e9:.2f} GB of memory "
            "that no program uses"
        )
    return True, f"{size} is within {share:.0%} of the {where}"
