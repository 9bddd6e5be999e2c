"""What can be said of a run before its data is opened."""

import torch

from fastsimsiam.config.run import Config
from fastsimsiam.config.views import view_sizes
from fastsimsiam.errors import UserError
from fastsimsiam.methods.registry import check_method, find_method
from fastsimsiam.models.image_size import require_image_size


def require_possible(config: Config, device: torch.device, num_processes: int = 1) -> None:
    """Refuses a run whose network or batches cannot work, whatever the images are.

    Args:
        config: the run's configuration.
        device: where to train.
        num_processes: number of processes that train together.

    Raises:
        UserError: names the options to change.
    """
    check_method(config)
    _require_parts(config, device, num_processes)
    for view, size in enumerate(view_sizes(config.views, config.image_size)):
        option = "--image-size" if config.views[view].size is None else f"--views.{view}.size"
        if size not in view_sizes(config.views[:view], config.image_size):  # each size once
            require_image_size(config.arch, size, stem=config.stem, option=option)


def _require_parts(config: Config, device: torch.device, num_processes: int) -> None:
    """Each process gets a part of equal size, with enough images for BatchNorm."""
    parts = num_processes * config.accumulate
    if config.batch_size % parts:
        raise UserError(
            f"--batch-size {config.batch_size} cannot be shared by {num_processes} processes with "
            f"--accumulate {config.accumulate}: give a multiple of {parts}"
        )
    together = device.type == "cuda" and find_method(config.method).sync_batch_norm
    images = config.batch_size // parts * (num_processes if together else 1)
    if images < 2:
        cut = f" in {parts} parts" if parts > 1 else ""
        raise UserError(
            f"--batch-size {config.batch_size}{cut} is one image at a time, and BatchNorm needs two or "
            f"more: give --batch-size {2 * parts} or more"
        )
