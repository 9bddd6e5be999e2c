"""From a config to objects; the only module that knows which class belongs to which name."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fastsimsiam.augment.photometric import Photometric
from fastsimsiam.backbones import feature_extractor
from fastsimsiam.checkpoint import CheckpointStore
from fastsimsiam.config import CompileName, Config, DaliConfig, FolderConfig, KnnConfig
from fastsimsiam.distributed import World
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.evaluators import KnnEvaluator
from fastsimsiam.freed_memory import keep_freed_memory
from fastsimsiam.loaders.batch import Loader
from fastsimsiam.loaders.dali_loader import DaliLoader
from fastsimsiam.loaders.ffcv_loader import FfcvLoader
from fastsimsiam.loaders.folder_loader import folder_loader
from fastsimsiam.loaders.frame_loader import FrameLoader
from fastsimsiam.loaders.reference_loader import ReferenceLoader
from fastsimsiam.loaders.resident_loader import resident_loader
from fastsimsiam.methods.base import Method
from fastsimsiam.methods.simsiam import SimSiam
from fastsimsiam.optim import ScheduledSGD
from fastsimsiam.plan.batches import CenterPlan, TrainPlan
from fastsimsiam.recorder import Recorder
from fastsimsiam.schedule import durations
from fastsimsiam.small_maps import use_products
from fastsimsiam.storage.base import Report, Storage
from fastsimsiam.train_step import TrainStep
from fastsimsiam.trainer import Trainer

_EVALUATION_BATCH = 256


def fingerprint(storage: Storage) -> str:
    """A short text that changes when the images of a data set change (by path or size)."""
    digest = hashlib.sha256("\n".join(storage.paths).encode())
    digest.update(np.ascontiguousarray(storage.sizes).tobytes())
    return f"{len(storage)} images, {digest.hexdigest()[:12]}"


def build_method(config: Config) -> Method:
    """The method with fresh weights; the same seed gives the same weights."""
    torch.manual_seed(config.seed)
    backbone, feature_dim = feature_extractor(config.arch, config.stem)
    return SimSiam(backbone, feature_dim, config.method)


def build_loader(
    name: str,
    storage: Storage,
    *,
    device: torch.device,
    workers: int | None,
    on_bad_image: str,
    folder: FolderConfig | None = None,
    dali: DaliConfig | None = None,
    report: Report | None = None,
) -> Loader:
    """The loader of a name, see the modules in loaders/."""
    options: dict[str, Any] = {
        "device": device, "workers": workers, "on_bad_image": on_bad_image,
    }  # fmt: skip
    if name == "folder":
        folder = folder or FolderConfig()
        for key, value, default in (
            ("decoder", folder.decoder, "cpu"), ("crops", folder.crops, "host"),
        ):  # fmt: skip
            if value != default and device.type != "cuda":
                raise UserError(
                    f"--folder.{key} {value} needs a GPU: pass --folder.{key} {default}"
                )
        if folder != FolderConfig():
            return FrameLoader(storage, **options, decode_on_device=folder.decoder == "nvjpeg")
        return folder_loader(storage, **options)
    if name == "ffcv":
        return FfcvLoader(storage, **options)
    if name == "dali":
        return DaliLoader(storage, **options, **asdict(dali or DaliConfig()))
    if name == "resident":
        return resident_loader(storage, **options, report=report)
    assert name == "reference"
    return ReferenceLoader(storage, **options)


def center_plan(storage: Storage, image_size: int, fraction: float) -> CenterPlan:
    """Every image of a split, centred, for evaluation."""
    return CenterPlan(
        label=storage.label,
        sizes=storage.sizes,
        image_size=image_size,
        batch_size=_EVALUATION_BATCH,
        fraction=fraction,
    )


def usable_k(k: Sequence[int], bank_size: int) -> list[int]:
    """The numbers of neighbours that a bank has; all of it where none fits."""
    return [count for count in k if count <= bank_size] or [bank_size]


def build_knn(
    train: tuple[Loader, Storage],
    val: tuple[Loader, Storage],
    *,
    knn: KnnConfig,
    image_size: int,
    device: torch.device,
    dtype: torch.dtype,
    report: Report | None = None,
) -> KnnEvaluator:
    """KNN of a validation split against a training split, each given as its loader and storage."""
    return KnnEvaluator(
        bank=(train[0], center_plan(train[1], image_size, knn.crop_fraction)),
        queries=(val[0], center_plan(val[1], image_size, knn.crop_fraction)),
        k=usable_k(knn.k, len(train[1])),
        temperature=knn.temperature,
        num_classes=len(train[1].classes),
        device=device,
        dtype=dtype,
        report=report,
    )


def build_trainer(
    config: Config,
    storage: Storage,
    loader: Loader,
    *,
    evaluators: Sequence[KnnEvaluator],
    store: CheckpointStore,
    recorder: Recorder,
    device: torch.device,
    dtype: torch.dtype,
    compiled: CompileName,
    world: World,
) -> Trainer:
    """A trainer with fresh weights at step 0."""
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
    )
    method = build_method(config)
    if world.size > 1 and device.type == "cuda":
        # Untyped in torch; it returns what it is given, with other BatchNorm layers inside.
        convert: Callable[[nn.Module], nn.Module] = nn.SyncBatchNorm.convert_sync_batchnorm
        method = cast(Method, convert(method))
    # Shapes never change, so cuDNN may time its convolutions once and keep the best.
    torch.backends.cudnn.benchmark = True
    method = method.to(device).to(memory_format=torch.channels_last)
    if device.type == "cpu":
        keep_freed_memory()
        use_products(method)
    photometric = Photometric(config.views, plan.view_sizes, dtype)
    compute: nn.Module = TrainStep(photometric, method, device, dtype)
    if compiled == "step":
        compute.compile(fullgraph=True, dynamic=False)
    elif compiled == "colour":
        photometric.compile_alone()
    if world.size > 1:
        compute = DistributedDataParallel(
            compute,
            device_ids=[device.index] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            # Every rank has its own running statistics, or SyncBatchNorm has made them equal.
            broadcast_buffers=False,
        )
    return Trainer(
        config=config,
        method=method,
        compute=compute,
        optimizer=ScheduledSGD(method.parameter_groups(), config.optimizer, device),
        lengths=durations(config, plan.num_batches // config.accumulate),
        plan=plan,
        loader=loader,
        evaluators=evaluators,
        store=store,
        data=fingerprint(storage),
        recorder=recorder,
        device=device,
        world=world,
    )
