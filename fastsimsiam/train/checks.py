"""What can be said of a run before its first step."""

import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from fastsimsiam.config.optimizer import OptimizerName
from fastsimsiam.config.run import Config
from fastsimsiam.config.views import view_sizes
from fastsimsiam.errors import UserError
from fastsimsiam.methods.registry import check_method, find_method
from fastsimsiam.models.image_size import require_image_size
from fastsimsiam.optim.build import STATE
from fastsimsiam.runs.checkpoint import Checkpoint
from fastsimsiam.storage.base import Storage
from fastsimsiam.system.text import printable


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


def accepts_batch(config: Config, images: int) -> bool:
    """Whether the method can use this many images in a forward pass on one device.

    Args:
        config: of a run; its batch size is left aside.
        images: per forward pass.
    """
    config = replace(config, batch_size=images, accumulate=1)
    try:
        find_method(config.method).check_batch(config, images)
    except UserError:
        return False
    return True


def require_labels(config: Config, storage: Storage) -> None:
    """Refuses a data set without classes for a method that compares them.

    Args:
        config: the run's configuration.
        storage: the training split.

    Raises:
        UserError: all images are of one class.
    """
    if not find_method(config.method).needs_labels or len(set(storage.label.tolist())) > 1:
        return
    raise UserError(
        f"{printable(storage.root)}: all {len(storage)} images are of the class "
        f"{storage.classes[int(storage.label[0])]}, but {config.method.name} compares the classes of "
        "images: give images of two classes or more, or a recipe whose method takes no labels"
    )


def fix_for_memory(config: Config) -> str:
    """What to do if a batch is too large for the memory."""
    start = "start again with another --out, and a lower --batch-size"
    if find_method(config.method).whole_batch:
        return start  # it refuses to accumulate
    return f"{start} or a higher --accumulate"


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
    find_method(config.method).check_batch(config, config.batch_size // parts)


def require_writable(out: Path) -> None:
    """Refuses a run that could not save its checkpoints, before the work.

    Raises:
        UserError: the folder of checkpoints cannot be written.
    """
    folder = out / "checkpoints"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Without a name where the file system can: a process that dies here leaves nothing.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"cannot write checkpoints to {folder} ({error.strerror}): pass another --out"
        ) from error


def little_room(method: nn.Module, optimizer: OptimizerName, out: Path) -> str | None:
    """A sentence if a disk has no room for two checkpoints: one is kept while the next is written.

    Args:
        method: what is saved: parameters, those of a target network too, and buffers, such as a queue.
        optimizer: its state is saved too, of the trained parameters.
        out: the run's folder.
    """
    per_weight = len(STATE[optimizer] - {"step"})  # "step" is one number
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    checkpoint = _size(method.state_dict().values()) + per_weight * _size(trained)
    need, free = 2 * checkpoint, shutil.disk_usage(out).free
    if free >= need:
        return None
    return (
        f"{out} has {free / 1e9:.2f} GB of free space, and two checkpoints take about "
        f"{need / 1e9:.2f} GB: make room"
    )


def _size(tensors: Iterable[torch.Tensor]) -> int:
    """Number of bytes."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def inexact_resume(
    config: Config, checkpoint: Checkpoint, device: torch.device, num_processes: int
) -> str | None:
    """A sentence if a run goes on with another number of processes; it says what is not the same."""
    before = checkpoint.ranks
    if before in (None, num_processes):
        return None
    resumed = f"the checkpoint is of {before} process(es), and {num_processes} go on with it"
    method = find_method(config.method)
    if device.type == "cuda" and method.sync_batch_norm:
        return f"{resumed}: their sums are rounded otherwise, so the run is not exact to the bit"
    was, now = (
        method.batch_norm_images(config, config.batch_size // (n * config.accumulate))
        for n in (before, num_processes)
    )
    if was == now:
        return (
            f"{resumed}: the batches are the same, but BatchNorm's groups of {now} hold other images, "
            f"so the run is not that of {before} process(es)"
        )
    return (
        f"{resumed}: the batches are the same, but BatchNorm takes its statistics of {now} images "
        f"instead of {was}, so the run is not that of {before} process(es)"
    )
