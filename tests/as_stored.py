"""The images of class folders, in the same order, as other people store them."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet
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


def classes_in(files: list[Path]) -> list[str]:
    """Names of the classes of files in class folders."""
    return sorted({file.parent.name for file in files})


def as_table(files: list[Path], classes: list[str]) -> pa.Table:
    """Images and labels with the types and the metadata that the library `datasets` writes."""
    image = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    rows = [
        {"bytes": file.read_bytes(), "path": f"{file.parent.name}_{file.name}"} for file in files
    ]
    features = {"image": {"_type": "Image"}, "label": {"names": classes, "_type": "ClassLabel"}}
    about = {"info": {"features": features}, "fingerprint": "8a7ff0a5b6f5e1d2"}
    return pa.table(
        {
            "image": pa.array(rows, image),
            "label": pa.array([classes.index(file.parent.name) for file in files], pa.int64()),
        }
    ).replace_schema_metadata({"huggingface": json.dumps(about)})


def tables(data: Path, split: str, number: int = 3) -> list[pa.Table]:
    """A split in parts."""
    files = files_of(data / split)
    parts = np.array_split(np.arange(len(files)), number)
    return [as_table([files[i] for i in part.tolist()], classes_in(files)) for part in parts]


def write_arrow(
    table: pa.Table, path: Path, *, stream: bool = True, rows: int = 10, **options: object
) -> None:
    """An Arrow file, in batches of some rows."""
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    options_ = pa.ipc.IpcWriteOptions(**options)
    with open(path, "wb") as sink, new(sink, table.schema, options=options_) as writer:
        writer.write_table(table, max_chunksize=rows)


def saved_to_disk(data: Path, target: Path, *, stream: bool = True) -> Path:
    """A DatasetDict that save_to_disk has written: `target/train`, `target/validation`."""
    for split, name in (("train", "train"), ("val", "validation")):
        folder = target / name
        folder.mkdir(parents=True)
        names = [f"data-{number:05d}-of-00003.arrow" for number in range(3)]
        for table, file in zip(tables(data, split), names, strict=True):
            write_arrow(table, folder / file, stream=stream)
        state = {
            "_data_files": [{"filename": file} for file in names],
            "_fingerprint": "8a7ff0a5b6f5e1d2",
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": name,
        }
        (folder / "state.json").write_text(json.dumps(state, indent=2))
        (folder / "dataset_info.json").write_text("{}")
    (target / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation"]}))
    return target


def datasets_cache(data: Path, target: Path, *, stream: bool = True) -> Path:
    """The folder in which load_dataset keeps a data set."""
    target.mkdir(parents=True)
    for number, table in enumerate(tables(data, "train")):
        name = f"tiny-dev-images-train-{number:05d}-of-00003.arrow"
        write_arrow(table, target / name, stream=stream)
    (table,) = tables(data, "val", 1)
    write_arrow(table, target / "tiny-dev-images-validation.arrow", stream=stream)
    (target / "dataset_info.json").write_text("{}")
    return target


def hub_parquet(data: Path, target: Path, *, rows: int = 10) -> Path:
    """The folder of a data set of the Hub, with row groups of some images."""
    (target / "data").mkdir(parents=True)
    for split, name, number in (("train", "train", 3), ("val", "validation", 1)):
        for part, table in enumerate(tables(data, split, number)):
            file = target / "data" / f"{name}-{part:05d}-of-{number:05d}.parquet"
            parquet.write_table(table, file, row_group_size=rows)
    (target / "README.md").write_text("---\n---\n")
    return target
