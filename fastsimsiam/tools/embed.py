"""`fastsimsiam embed`: writes the features of a data set to a file, batch by batch."""

import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastsimsiam.config.evaluation import EvalOptions, Split
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.context import EvalContext, open_eval_context
from fastsimsiam.evaluate.trained_method import method_with_certainty
from fastsimsiam.methods.base import Method
from fastsimsiam.system.files import require_writable, written_whole
from fastsimsiam.system.optional import require
from fastsimsiam.system.progress import ImageProgress
from fastsimsiam.system.text import printable

_SUFFIXES = (".npz", ".parquet")
_COPY_BYTES = 1 << 20


def embed(
    checkpoint: Path | str,
    data: Path | str,
    out: Path | str,
    *,
    split: Split = "train",
    options: EvalOptions | None = None,
) -> int:
    """Writes the features of every image of a split.

    A .parquet file has a row per image: `features` (D float32, not normalized), `label`, `class`
    and `path`. An .npz file has the arrays `features`, `label`, `classes` (names by label) and
    `path`. For methods that learn how certain they are (VI-SimSiam), both have `kappa` (float32, the
    larger the more certain) too. Memory holds the features of one batch at a time.

    Args:
        checkpoint: a file or the folder of a run; `load_backbone` lists the formats.
        data: the data set.
        out: file to write, .npz or .parquet.
        split: split of the data set.
        options: how to evaluate.

    Returns:
        Number of images in the file; broken ones are left out.

    Raises:
        UserError: an argument, the file or the data is wrong; the message says what to change.
    """
    out = Path(out)
    if out.suffix not in _SUFFIXES:
        raise UserError(f"--out {out}: name it .npz or .parquet")
    if out.suffix == ".parquet":
        require("pyarrow", f"--out {out}", "pip install 'fastsimsiam[embed]'")
    require_writable(out, "--out")
    with open_eval_context(
        checkpoint, data, options or EvalOptions(), need_val=split == "val"
    ) as context:
        write = _write_npz if out.suffix == ".npz" else _write_parquet
        with written_whole(out, "--out") as file:
            count = write(file, context, split)
        if context.bad_images:
            context.warn(f"{len(context.bad_images)} broken images were left out")
    return count


@dataclass(frozen=True, kw_only=True)
class _Chunk:
    """A batch without its broken images.

    Attributes:
        features: (B, D).
        index: (B,) numbers of the images in their storage.
        kappa: (B,) the method's certainty; None without.
    """

    features: npt.NDArray[np.float32]
    index: npt.NDArray[np.int64]
    kappa: npt.NDArray[np.float32] | None


def _chunks(context: EvalContext, split: Split, method: Method | None) -> Iterator[_Chunk]:
    """Yields the batches of a split; `method` says how certain it is of them."""
    with ImageProgress("features", unit="batches") as progress, torch.no_grad():
        for h, batch in context.features(split, progress):
            kappa = None if method is None else method.certainty(h)
            yield _Chunk(
                features=_to_numpy(h),
                index=batch.index.cpu().numpy(),
                kappa=None if kappa is None else _to_numpy(kappa),
            )


def _to_numpy(h: Tensor) -> npt.NDArray[np.float32]:
    return h.to(device="cpu", dtype=torch.float32).numpy()


def _columns(
    context: EvalContext, split: Split
) -> tuple[list[str], npt.NDArray[np.int64], list[str]]:
    """Paths and labels by sample, and names of the classes."""
    storage = context.splits[split]
    # Parquet refuses names that are not UTF-8.
    paths, classes = (list(map(printable, names)) for names in (storage.paths, storage.classes))
    return paths, storage.label, classes


def _write_npz(file: Path, context: EvalContext, split: Split) -> int:
    method = method_with_certainty(context.pretrained, context.device)
    paths, label, classes = _columns(context, split)
    # An array's header holds the number of its rows, which is known once the broken images are: the
    # features wait in a file without a name, which ends with the process. Ordinary writes, because a
    # mapped file on a full disk ends the process by SIGBUS.
    with tempfile.TemporaryFile(dir=file.parent) as raw:
        written: list[npt.NDArray[np.int64]] = []
        kappa: list[npt.NDArray[np.float32]] = []
        for chunk in _chunks(context, split, method):
            raw.write(np.ascontiguousarray(chunk.features).data)
            written.append(chunk.index)
            if chunk.kappa is not None:
                kappa.append(chunk.kappa)
        rows = np.concatenate(written)
        raw.seek(0)
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            with archive.open("features.npy", "w", force_zip64=True) as entry:
                shape = (len(rows), context.pretrained.feature_dim)
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(entry, header)
                shutil.copyfileobj(raw, entry, _COPY_BYTES)
            for name, array in (
                ("label", label[rows]),
                ("classes", np.array(classes)),
                ("path", np.array(paths)[rows]),
                *([("kappa", np.concatenate(kappa))] if kappa else []),
            ):
                with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                    np.lib.format.write_array(entry, array, allow_pickle=False)
    return len(rows)


def _write_parquet(file: Path, context: EvalContext, split: Split) -> int:
    import pyarrow as pa
    from pyarrow import parquet

    method = method_with_certainty(context.pretrained, context.device)
    paths, label, classes = _columns(context, split)
    dim = context.pretrained.feature_dim
    schema = pa.schema(
        [
            ("path", pa.string()),
            ("label", pa.int64()),
            ("class", pa.string()),
            ("features", pa.list_(pa.float32(), dim)),
            *([] if method is None else [("kappa", pa.float32())]),
        ]
    )
    count = 0
    with parquet.ParquetWriter(file, schema) as writer:
        for chunk in _chunks(context, split, method):
            flat = pa.array(chunk.features.ravel())
            columns = {
                "path": [paths[number] for number in chunk.index],
                "label": label[chunk.index],
                "class": [classes[number] for number in label[chunk.index]],
                "features": pa.FixedSizeListArray.from_arrays(flat, dim),
            }
            if chunk.kappa is not None:
                columns["kappa"] = chunk.kappa
            writer.write_table(pa.table(columns, schema=schema))
            count += len(chunk.index)
    return count
