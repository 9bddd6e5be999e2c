"""Scores of a checkpoint, beside those of the network before training."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fastsimsiam.build import build_knn, build_loader, build_method
from fastsimsiam.checkpoint import Checkpoint, CheckpointStore, load
from fastsimsiam.choose import choose_device, choose_dtype, choose_loader
from fastsimsiam.config import DeviceName, KnnConfig, LoaderName, OnBadImage
from fastsimsiam.errors import UserError
from fastsimsiam.loaders.batch import Loader
from fastsimsiam.storage.base import Storage
from fastsimsiam.storage.data_set import open_split


def find_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint file, or the newest one of a run's folder.

    Raises:
        UserError: there is none, or it is damaged.
    """
    if not path.is_dir():
        return load(path)
    paths = CheckpointStore(path, keep=1).paths()
    if not paths:
        raise UserError(f"there is no checkpoint in {path}: expected {path}/checkpoints/step-*.pt")
    return load(paths[-1])


def knn_table(
    checkpoint_path: Path,
    data: Path,
    *,
    k: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.1,
    image_size: int | None = None,
    loader: LoaderName = "auto",
    on_bad_image: OnBadImage = "error",
    device: DeviceName = "auto",
    workers: int | None = None,
) -> dict[str, Any]:
    """KNN top-1 on a validation split, training split as the bank.

    Args:
        checkpoint_path: a checkpoint or the folder of a run.
        data: folder with train/ and val/.
        k: numbers of neighbours.
        temperature: of the weights.
        image_size: side of the crops in pixels; None: as in training.
        loader, on_bad_image, device, workers: as in `Config`.

    Returns:
        `trained` and `untrained`, each k -> percent, and what they were measured on.

    Raises:
        UserError: something in the arguments or the data has to be mended.
    """
    checkpoint = find_checkpoint(checkpoint_path)
    knn = KnnConfig(
        k=tuple(k), temperature=temperature, crop_fraction=checkpoint.config.knn.crop_fraction
    )
    config = replace(
        checkpoint.config,
        data=data,
        knn=knn,
        image_size=image_size or checkpoint.config.image_size,
        loader=loader,
        on_bad_image=on_bad_image,
        device=device,
        workers=workers,
    )
    where, _ = choose_device(config)
    dtype, _ = choose_dtype(config, where)
    train = open_split(data, "train")
    val = open_split(data, "val", classes=train.classes)
    if max(k) > len(train):
        raise UserError(f"--k {max(k)} is more than the {len(train)} training images: lower it")
    name, _ = choose_loader(config, train, where)
    scores: dict[str, Any] = {}

    def open_loader(storage: Storage) -> Loader:
        return build_loader(name, storage, device=where, workers=workers, on_bad_image=on_bad_image)

    with (
        closing(open_loader(train)) as train_loader,
        closing(open_loader(val)) as val_loader,
    ):
        evaluate = build_knn(
            (train_loader, train), (val_loader, val),
            knn=knn, image_size=config.image_size, device=where, dtype=dtype,
        )  # fmt: skip
        for state in ("untrained", "trained"):
            method = build_method(config)
            if state == "trained":
                method.load_state_dict(checkpoint.method)
            method = method.to(where).to(memory_format=torch.channels_last)
            scores[state] = {
                int(figure.removeprefix("knn_top1_k")): value for figure, value in evaluate(method)
            }
    skipped = train_loader.bad_images | val_loader.bad_images
    return scores | {
        "bad_images": skipped,
        "checkpoint": str(checkpoint_path),
        "step": checkpoint.step,
        "data": str(data),
        "temperature": temperature,
        "bank": len(train),
        "queries": len(val),
    }
