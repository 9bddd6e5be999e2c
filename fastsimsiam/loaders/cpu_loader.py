"""The pip-only fast path: images decoded on CPU threads as they are asked for.

The JPEG decoder releases the GIL, so threads decode in parallel without copies between processes.
"""

from fastsimsiam.loaders.bad_images import BadImagePolicy
from fastsimsiam.loaders.base import LoaderOptions
from fastsimsiam.loaders.decode import Pixels, read_rgb
from fastsimsiam.loaders.host_loader import HostLoader
from fastsimsiam.storage.base import Storage


def cpu_loader(
    storage: Storage, options: LoaderOptions, *, prefetch: int | None = None
) -> HostLoader:
    """A loader that reads and decodes every image once per epoch.

    Args:
        storage: where the images lie.
        options: device, threads, broken images.
        prefetch: see `HostLoader`.

    Raises:
        UserError: files without a readable header, unless they are to be skipped.
    """
    policy = BadImagePolicy(options.on_bad_image)
    policy.require_readable(storage)

    def frame(index: int) -> Pixels:
        return read_rgb(storage, index)

    return HostLoader(
        frame, storage.name, policy, options, will_need=storage.will_need, prefetch=prefetch
    )
