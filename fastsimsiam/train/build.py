"""Builds a trainer from a config."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fastsimsiam.augment.photometric import Photometric
from fastsimsiam.config.run import CompileName, Config
from fastsimsiam.errors import UserError
from fastsimsiam.loaders.base import Loader
from fastsimsiam.methods.base import Method
from fastsimsiam.methods.registry import build_method
from fastsimsiam.models.fused import fused
from fastsimsiam.models.small_convolutions import keep_gradient_strides, use_matmul_for_small_maps
from fastsimsiam.optim.build import build_optimizer
from fastsimsiam.optim.schedule import schedule_steps
from fastsimsiam.plan.batches import TrainPlan
from fastsimsiam.plan.order import BlockOrder
from fastsimsiam.runs.checkpoint import CheckpointStore
from fastsimsiam.runs.recorder import Recorder
from fastsimsiam.storage.base import Storage, fingerprint
from fastsimsiam.system.barriers import share_cores
from fastsimsiam.system.compiler import runs_triton
from fastsimsiam.system.malloc import keep_freed_memory
from fastsimsiam.system.text import printable
from fastsimsiam.train.distributed import World
from fastsimsiam.train.evaluator import Evaluator
from fastsimsiam.train.step import TrainStep
from fastsimsiam.train.trainer import Trainer

# Running statistics belong to each rank, or SyncBatchNorm keeps them equal. Versions of torch differ in
# the name; the newer one also copies the buffers at the start, when they are equal anyway.
_names = inspect.signature(DistributedDataParallel).parameters
_WITHOUT_BUFFERS: dict[str, Any] = {
    "forward_sync_buffers" if "forward_sync_buffers" in _names else "broadcast_buffers": False
}


def build_trainer(
    config: Config,
    storage: Storage,
    loader: Loader,
    *,
    evaluators: Sequence[Evaluator],
    store: CheckpointStore,
    recorder: Recorder,
    device: torch.device,
    dtype: torch.dtype,
    compiled: CompileName,
    world: World,
) -> Trainer:
    """A trainer with fresh weights at step 0.

    Args:
        config: the run's configuration.
        storage: the training split.
        loader: the loader of the training split.
        evaluators: called between epochs.
        store: where checkpoints are written.
        recorder: receives metrics and messages.
        device: where to train.
        dtype: dtype of the network's arithmetic.
        compiled: what is compiled, see `Config.compile`.
        world: this process among the others.

    Raises:
        UserError: the data set has fewer images than a batch, or the method refuses the config.
    """
    parts = world.size * config.accumulate
    assert config.batch_size % parts == 0
    plan = TrainPlan(
        label=storage.label,
        sizes=storage.sizes,
        seed=config.seed,
        specs=config.views,
        image_size=config.image_size,
        batch_size=config.batch_size // parts,
        rank=world.rank,
        world_size=world.size,
        round_to=config.accumulate,
        blocks=_blocks(config, storage),
    )
    method = build_method(config)
    if world.size > 1 and device.type == "cuda" and method.sync_batch_norm:
        # Untyped in torch; returns the same module with its BatchNorm layers replaced.
        convert: Callable[[nn.Module], nn.Module] = nn.SyncBatchNorm.convert_sync_batchnorm
        method = cast(Method, convert(method))
    # Shapes never change, so cuDNN may time its convolutions once and keep the best.
    torch.backends.cudnn.benchmark = True
    method = method.to(device).to(memory_format=torch.channels_last)
    if device.type == "cpu":
        keep_freed_memory()
        share_cores()
        use_matmul_for_small_maps(method)
    if compiled == "step" and world.size == 1 and dtype == torch.bfloat16 and runs_triton(device):
        capability = torch.cuda.get_device_capability(device)
        method.backbone = fused(method.backbone, config.fuse, capability)
    photometric = Photometric(
        config.views, plan.view_sizes, dtype, normalize=config.normalize, fused=runs_triton(device)
    )
    compute: nn.Module = TrainStep(photometric, method, device, dtype)
    if compiled == "step":
        compute.compile(fullgraph=True, dynamic=False)
    elif compiled == "color":
        photometric.compile_alone()
    if world.size > 1:
        keep_gradient_strides(method)
        compute = DistributedDataParallel(
            compute,
            device_ids=[device.index] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            **_WITHOUT_BUFFERS,
        )
    return Trainer(
        config=config,
        method=method,
        compute=compute,
        optimizer=build_optimizer(method.parameter_groups(), config.optimizer, device),
        schedule_steps=schedule_steps(config, plan.num_batches // config.accumulate),
        plan=plan,
        loader=loader,
        evaluators=evaluators,
        store=store,
        data=fingerprint(storage),
        recorder=recorder,
        device=device,
        world=world,
    )


def _blocks(config: Config, storage: Storage) -> BlockOrder | None:
    """The order by blocks that a config asks for; None for a full shuffle."""
    if config.shuffle == "full":
        return None
    blocks = storage.blocks
    if blocks is None:
        where = printable(storage.root)
        if storage.is_packed:
            raise UserError(f"--shuffle blocks: {where} is in memory: pass --shuffle full")
        raise UserError(
            f"--shuffle blocks: the images of {where} are files of their own, in no order on the disk: "
            "pack them (fastsimsiam pack), or pass --shuffle full"
        )
    return BlockOrder(blocks, config.shuffle_blocks, config.seed)
