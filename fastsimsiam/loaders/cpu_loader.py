"""Loader `cpu`: images are decoded on CPU threads in every epoch; needs no optional library.

The JPEG decoder releases the GIL, so that threads decode in parallel without copies between processes.
"""

from typing import Literal

from fastsimsiam.errors import UserError
from fastsimsiam.loaders.bad_images import BadImagePolicy
from fastsimsiam.loaders.base import Loader, LoaderOptions
from fastsimsiam.loaders.decode import Pixels
from fastsimsiam.loaders.frame_loader import FrameLoader
from fastsimsiam.loaders.host_loader import HostLoader
from fastsimsiam.storage.base import Storage


def cpu_loader(
    storage: Storage,
    options: LoaderOptions,
    *,
    crops: Literal["host", "device"] = "host",
    prefetch: int | None = None,
) -> Loader:
    """A loader that reads and decodes every image once per epoch.

    Args:
        storage: the images.
        options: device, threads, broken images.
        crops: where crops are cut; `device`: whole frames are copied to the GPU.
        prefetch: see `HostLoader`; for crops on the host.

    Raises:
        UserError: a file has no readable header and is not to be skipped, or there is no GPU to cut
            the crops on.
    """
    if crops == "device":
        if options.device.type != "cuda":
            raise UserError("--cpu.crops device needs a GPU: pass --cpu.crops host")
        return FrameLoader(storage, options, decode_on_device=False)
    policy = BadImagePolicy(options.on_bad_image, options.gray16_max)
    policy.require_readable(storage)

    def frame(index: int) -> Pixels:
        return policy.read_rgb(storage, index)

    return HostLoader(
        frame, storage.name, policy, options, will_need=storage.will_need, prefetch=prefetch
    )
