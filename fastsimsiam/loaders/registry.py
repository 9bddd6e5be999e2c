"""The loaders by name: which one `auto` means, and how each is built."""

from dataclasses import asdict

import torch

from fastsimsiam.config import renamed
from fastsimsiam.config.run import CpuConfig, DaliConfig, LoaderName
from fastsimsiam.errors import UserError
from fastsimsiam.loaders.base import Loader, LoaderOptions
from fastsimsiam.loaders.cpu_loader import cpu_loader
from fastsimsiam.loaders.dali_loader import DaliLoader
from fastsimsiam.loaders.ffcv_loader import FfcvLoader
from fastsimsiam.loaders.frame_loader import FrameLoader
from fastsimsiam.loaders.reference_loader import ReferenceLoader
from fastsimsiam.loaders.resident_loader import decoded_bytes, resident_loader
from fastsimsiam.storage.base import Report, Storage
from fastsimsiam.storage.beton import as_beton
from fastsimsiam.system.optional import has_dali
from fastsimsiam.system.resources import host_memory, num_cores

# Shares of the memory that a decoded data set may take: the rest is for training and the system.
_DEVICE_SHARE = 0.25
_HOST_SHARE = 0.10
# A core decodes and crops about 500 photographs a second, and a fast GPU trains on 4,000.
_CORES_PER_GPU = 8


def choose_loader(
    asked: LoaderName, storage: Storage, device: torch.device, num_processes: int = 1
) -> tuple[str, str]:
    """The loader's name and why.

    Args:
        asked: `auto`, or what the user wants.
        storage: the training split.
        device: of the training.
        num_processes: that train together on this machine.

    Raises:
        UserError: a loader is asked for by a name of the past.
    """
    if asked in renamed.LOADERS:
        raise UserError(
            f"the loader {asked} is called {renamed.LOADERS[asked]} now: pass that name"
        )
    if asked != "auto":
        return asked, "asked for"
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
    if as_beton(storage):
        if storage.bytes_total > host_memory() / 2:
            return (
                "ffcv",
                f"{why}; a packed file, larger than half of the memory: read ahead of use",
            )
        return "ffcv", f"{why}; a packed file, which stays in the page cache"
    cores = num_cores() / num_processes
    if device.type == "cuda" and cores < _CORES_PER_GPU and has_dali():
        return "dali", f"{why}; {cores:.0f} CPU cores per GPU are few, so the GPU decodes"
    return "cpu", why


def build_loader(
    name: str,
    storage: Storage,
    options: LoaderOptions,
    *,
    cpu: CpuConfig | None = None,
    dali: DaliConfig | None = None,
    report: Report | None = None,
) -> Loader:
    """The loader of a name that `choose_loader` has returned.

    Args:
        name: see `config.run.LoaderName`.
        storage: where the images lie.
        options: device, threads, broken images.
        cpu, dali: options of these loaders; None: their defaults.
        report: told of the progress of decoding a data set that stays on the device.

    Raises:
        UserError: the loader cannot read this storage or run on this device, or a library is missing.
    """
    on_gpu = options.device.type == "cuda"
    crops = (cpu or CpuConfig()).crops
    if name == "nvjpeg" and not on_gpu:
        raise UserError("--loader nvjpeg needs a GPU: pass --loader cpu")
    if name == "cpu" and crops == "device" and not on_gpu:
        raise UserError("--cpu.crops device needs a GPU: pass --cpu.crops host")
    if name == "cpu" and crops == "host":
        return cpu_loader(storage, options)
    if name in ("cpu", "nvjpeg"):
        return FrameLoader(storage, options, decode_on_device=name == "nvjpeg")
    if name == "dali":
        return DaliLoader(storage, options, **asdict(dali or DaliConfig()))
    if name == "ffcv":
        return FfcvLoader(storage, options)
    if name == "resident":
        return resident_loader(storage, options, report=report)
    assert name == "reference"
    return ReferenceLoader(storage, options)
