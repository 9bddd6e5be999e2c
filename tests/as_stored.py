"""The images of class folders, in the same order, as other people store them."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from scipy import io as scipy_io


def files_of(root: Path) -> list[Path]:
    """The images of a folder of class folders, in the order of its storage."""
    return sorted(path for path in root.rglob("*") if path.is_file())


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Adds a file to a tar."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def imagenet_tars(data: Path, target: Path) -> Path:
    """ImageNet's tars and devkit, with the classes of `data` as wnids."""
    target.mkdir(parents=True)
    wnids = sorted(path.name for path in (data / "train").iterdir())
    with tarfile.open(target / "ILSVRC2012_img_train.tar", "w") as outer:
        for wnid in wnids:
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as tar:
                # The official tars are not sorted.
                for file in reversed(files_of(data / "train" / wnid)):
                    add(tar, file.name, file.read_bytes())
            add(outer, f"{wnid}.tar", inner.getvalue())
    numbers = {wnid: number for number, wnid in enumerate(reversed(wnids), start=1)}
    truth = []
    with tarfile.open(target / "ILSVRC2012_img_val.tar", "w") as tar:
        for number, file in enumerate(files_of(data / "val"), start=1):
            add(tar, f"ILSVRC2012_val_{number:08d}.JPEG", file.read_bytes())
            truth.append(numbers[file.parent.name])
    kind = [("ILSVRC2012_ID", float), ("WNID", object), ("num_children", float)]
    synsets = np.array(
        [(number, wnid, 0) for wnid, number in numbers.items()] + [(99, "n99", 2)], kind
    )
    meta = io.BytesIO()
    scipy_io.savemat(meta, {"synsets": synsets})
    with tarfile.open(target / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        folder = "ILSVRC2012_devkit_t12/data"
        add(tar, f"{folder}/meta.mat", meta.getvalue())
        text = "".join(f"{number}\n" for number in truth)
        add(tar, f"{folder}/ILSVRC2012_validation_ground_truth.txt", text.encode())
    return target


def shards(data: Path, target: Path, *, label: str = "cls", of_split: int = 3) -> Path:
    """WebDataset's shards: `target/train/*.tar`, with labels as .cls, as .json or not at all."""
    for split in ("train", "val"):
        (target / split).mkdir(parents=True)
        files = files_of(data / split)
        classes = sorted({file.parent.name for file in files})
        for shard, part in enumerate(np.array_split(np.arange(len(files)), of_split)):
            with tarfile.open(target / split / f"{shard:04d}.tar", "w") as tar:
                for number in part.tolist():
                    file = files[number]
                    stem = f"{number:06d}"
                    add(tar, f"{stem}{file.suffix.lower()}", file.read_bytes())
                    if label == "cls":
                        add(tar, f"{stem}.cls", str(classes.index(file.parent.name)).encode())
                    elif label == "json":
                        content = {"label": file.parent.name, "width": 3}
                        add(tar, f"{stem}.json", json.dumps(content).encode())
    return target


def tar_of_class_folders(data: Path, target: Path) -> Path:
    """A tar of each split."""
    target.mkdir(parents=True)
    for split in ("train", "val"):
        with tarfile.open(target / f"{split}.tar", "w") as tar:
            for file in files_of(data / split):
                add(tar, file.relative_to(data / split).as_posix(), file.read_bytes())
    return target
