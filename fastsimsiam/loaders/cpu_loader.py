"""The pip-only fast path: class folders, decoded as they are asked for.

The JPEG decoder releases the GIL, so threads decode in parallel without copies between processes.
"""

import torch

from fastsimsiam.loaders.bad_images import BadImagePolicy
from fastsimsiam.loaders.decode import Pixels, read_rgb
from fastsimsiam.loaders.host_loader import HostLoader
from fastsimsiam.storage.base import Storage


def folder_loader(
    storage: Storage,
    *,
    device: torch.device,
    workers: int | None = None,
    on_bad_image: str = "error",
    prefetch: int | None = None,
) -> HostLoader:
    """A loader that reads and decodes every image once per epoch.

    Args:
        storage: where the images lie.
        device: where batches go.
        workers: threads; None: one per core.
        on_bad_image: `error` or `skip`.
        prefetch: see `HostLoader`.

    Raises:
        UserError: files without a readable header, unless they are to be skipped.
    """
    policy = BadImagePolicy(on_bad_image)
    policy.require_readable(storage)

    def frame(index: int) -> Pixels:
        return read_rgb(storage, index)

    return HostLoader(
        frame,
        storage.name,
        policy,
        device=device,
        will_need=storage.will_need,
        workers=workers,
        prefetch=prefetch,
    )
