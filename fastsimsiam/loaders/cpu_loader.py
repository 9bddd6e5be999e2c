"""Loader `cpu`: images are decoded on CPU threads in every epoch; needs no optional library.

The JPEG decoder releases the GIL, so that threads decode in parallel without copies between processes.
"""

from typing import Literal

from fastsimsiam.errors import UserError
from fastsimsiam.loaders.bad_images import BadImagePolicy
from fastsimsiam.loaders.base import Loader, LoaderOptions
from fastsimsiam.loaders.decode import Pixels
from fastsimsiam.loaders.frame_loader import FrameLoader, FrameSource
from fastsimsiam.loaders.frame_processes import FrameProcesses
from fastsimsiam.loaders.frame_threads import FrameThreads
from fastsimsiam.loaders.host_loader import HostLoader
from fastsimsiam.loaders.process_loader import ProcessLoader
from fastsimsiam.storage.base import Storage
from fastsimsiam.system.resources import num_workers

_THREADS_OF_A_PROCESS = 4


def cpu_loader(
    storage: Storage,
    options: LoaderOptions,
    *,
    crops: Literal["host", "device"] = "host",
    processes: int | None = None,
    prefetch: int | None = None,
) -> Loader:
    """A loader that reads and decodes every image once per epoch.

    Args:
        storage: the images.
        options: device, threads, broken images.
        crops: where crops are cut; `device`: whole frames are copied to the GPU.
        processes: see `CpuConfig`.
        prefetch: see `HostLoader`; for crops on the host in this process.

    Raises:
        UserError: a file has no readable header and is not to be skipped, or there is no GPU to cut
            the crops on.
    """
    if crops == "device" and options.device.type != "cuda":
        raise UserError("--cpu.crops device needs a GPU: pass --cpu.crops host")
    if processes is None:
        processes = _processes(options)
    if crops == "device":
        return frame_loader(storage, options, processes)
    if processes:
        return ProcessLoader(storage, options, processes)
    policy = BadImagePolicy(options.on_bad_image, options.gray16_max)
    policy.require_readable(storage)

    def frame(index: int) -> Pixels:
        return policy.read_rgb(storage, index)

    return HostLoader(
        frame, storage.name, policy, options, will_need=storage.will_need, prefetch=prefetch
    )


def frame_loader(storage: Storage, options: LoaderOptions, processes: int) -> FrameLoader:
    """A loader that decodes whole frames on the CPU and cuts the crops on the device.

    Args:
        storage: the images.
        options: device, threads, broken images.
        processes: processes that decode; 0: threads of this process do.

    Raises:
        UserError: a file has no readable header and is not to be skipped.
    """
    source: FrameSource
    if processes:
        source = FrameProcesses(storage, options, processes)
    else:
        source = FrameThreads(storage, options, decode_on_device=False)
    return FrameLoader(source, options.device)


def _processes(options: LoaderOptions) -> int:
    """Processes where the user has not said how many."""
    if options.device.type != "cuda":
        return 0
    return -(-num_workers(options.workers) // _THREADS_OF_A_PROCESS)
