"""Tables of images, as the library `datasets` writes them to Arrow and Parquet.

The images are a column of structs {bytes, path}, or of bytes. Which column that is, and the names of
the classes, is in the schema's metadata `huggingface`; without it, the types of the columns tell.
Objects of pyarrow are `Any` here: it is imported when a table is read, and not before.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastsimsiam.errors import UserError
from fastsimsiam.storage import passed_over as kinds
from fastsimsiam.storage.image_file import LFS_POINTER
from fastsimsiam.storage.labels import NO_LABEL, Labels, renumbered
from fastsimsiam.storage.names import Names
from fastsimsiam.storage.record_file import RecordFile
from fastsimsiam.storage.system_errors import why_not_read
from fastsimsiam.system.optional import require
from fastsimsiam.system.text import printable

NO_BYTES = "without bytes"
"""The reason for which an image cannot be used, which completes "NAME is"."""
_IMAGES = ("image", "img")
"""Names that tell the column of images from others, as that of masks."""
_LABELS = ("label", "labels", "fine_label")
_Features = Mapping[str, Mapping[str, Any]]


class ImageTable:
    """The images of one file, batch by batch.

    Attributes:
        columns: names of the columns that are read.
        broken: row -> reason, completing "NAME is", of images that cannot be used.
        passed_over: kind -> number, of what is not used.
    """

    def __init__(self, path: Path, schema: Any) -> None:
        """Looks for the columns.

        Args:
            path: the file, for messages.
            schema: a `pyarrow.Schema`.

        Raises:
            UserError: no column holds images, or several do and none is called `image`.
        """
        self.broken: dict[int, str] = {}
        self.passed_over: Counter[str] = Counter()
        self._path = path
        self._paths: list[str | None] = []
        self._labels: list[Any] = []
        features = _features(schema)
        self._image, further = _image_column(path, schema, features)
        self._label, unused = _label_column(schema, features)
        self._classes = _class_names(path, features.get(self._label or "", {}))
        self._per_row = {kinds.FURTHER_IMAGES: further, kinds.OTHER_LABELS: unused}
        self.columns = [name for name in (self._image, self._label) if name is not None]

    def __len__(self) -> int:
        """Number of rows so far."""
        return len(self._paths)

    def add(self, batch: Any) -> Any:
        """Takes the next rows.

        Args:
            batch: a `pyarrow.RecordBatch` of n rows with `columns`, and others.

        Returns:
            The n encoded images, a `pyarrow.BinaryArray` or `LargeBinaryArray`; anything for `broken`.

        Raises:
            UserError: the batch is damaged, or has paths in the place of images.
        """
        start, names = len(self), batch.schema.names
        with reading(self._path):
            content, paths, missing = _image_rows(batch.column(names.index(self._image)))
            if self._label is not None:
                label = batch.column(names.index(self._label))
                label.validate(full=True)
                self._labels.append(label)
        elsewhere = [row for row in missing if paths[row]]
        if elsewhere:
            raise UserError(
                f"{printable(self._path)} has the path of an image in its place "
                f"({printable(paths[elsewhere[0]])}): pass the folder of the image files, or copy them "
                "into the data set with save_to_disk"
            )
        self.broken |= {start + row: NO_BYTES for row in missing}
        self._paths += paths
        for kind, number in self._per_row.items():
            self.passed_over[kind] += number * len(content)
        return content

    def names(self, prefix: str) -> Names:
        """Names of the images: their paths, if all have one of their own, or else their rows."""
        told = [path for path in self._paths if path]
        if len(set(told)) == len(self):
            return Names.of(f"{prefix}/{path}" for path in told)
        return Names.of(f"{prefix}/{row}" for row in range(len(self)))

    def labels(self) -> tuple[Sequence[str], Labels]:
        """Names of classes, and (N,) int64 positions among them, or `NO_LABEL`.

        Raises:
            UserError: a label is none of the classes.
        """
        import pyarrow as pa

        if not self._labels:
            return (), np.full(len(self), NO_LABEL, np.int64)
        with reading(self._path):
            column = pa.chunked_array(self._labels)
            is_number = _is_number(column.type)
            if self._classes is not None and is_number:
                numbers = _plain(column).cast(pa.int64()).fill_null(NO_LABEL).to_numpy()
                return self._classes, self._checked(numbers.copy(), len(self._classes))
            encoded = _plain(column).cast(pa.string()).dictionary_encode().combine_chunks()
            classes: list[str] = encoded.dictionary.to_pylist()
            label = encoded.indices.fill_null(NO_LABEL).to_numpy().astype(np.int64)
        none = str(NO_LABEL) if is_number else ""
        numbers = [NO_LABEL if name == none else i for i, name in enumerate(classes)]
        return classes, renumbered(label, numbers)

    def _checked(self, label: Labels, count: int) -> Labels:
        outside = label[(label < NO_LABEL) | (label >= count)]
        if len(outside):
            raise UserError(
                f"{printable(self._path)} has a label {outside[0]}, and names {count} classes: make "
                "the file again"
            )
        return label


def require_pyarrow(path: Path) -> None:
    """Raises a UserError that names `path`, and the command that installs pyarrow, if it is missing."""
    require("pyarrow", printable(path), "pip install 'fastsimsiam[arrow]'")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What pyarrow says about a file's content becomes a UserError of one line."""
    import pyarrow as pa

    try:
        yield
    except UserError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        if isinstance(error, OSError) and error.errno:
            raise UserError(why_not_read(path, error)) from error
        raise damaged(path, str(error)) from error


def damaged(path: Path, reason: str) -> UserError:
    """The error about a file whose content is not what it should be."""
    reason = reason.strip().partition("\n")[0]
    return UserError(
        f"{printable(path)} is cut off or damaged ({printable(reason)}): fetch it again"
    )


def refuse_pointer(file: RecordFile) -> None:
    """Refuses what git writes in the place of a large file, unless Git LFS is installed.

    Raises:
        UserError: the file is such a pointer, or empty.
    """
    name = printable(file.path)
    start = bytes(file.read_new(0, min(file.size, len(LFS_POINTER))))
    if not start:
        raise UserError(f"{name} is empty: fetch it again")
    if start == LFS_POINTER:
        raise UserError(f"{name} is a Git LFS pointer, not the file itself: run git lfs pull")


def encoded_images(column: Any) -> Any:
    """The bytes in a column of images, a binary array, which a struct may hold."""
    import pyarrow as pa

    return column.field("bytes") if pa.types.is_struct(column.type) else column


def _image_rows(column: Any) -> tuple[Any, list[str | None], list[int]]:
    """The bytes and the paths of n images, and the rows that have no bytes."""
    import pyarrow as pa

    column.validate()  # the sizes of its parts
    content = encoded_images(column)
    is_missing = _is_null(column) | _is_null(content)
    paths: list[str | None] = [None] * len(column)
    if pa.types.is_struct(column.type) and column.type.get_field_index("path") >= 0:
        path = column.field("path")
        path.validate(full=True)
        gone = _is_null(column)
        paths = [None if none else text for none, text in zip(gone, path.to_pylist(), strict=True)]
    return content, paths, np.flatnonzero(is_missing).tolist()


def _is_null(column: Any) -> npt.NDArray[np.bool_]:
    is_null: npt.NDArray[np.bool_] = column.is_null().to_numpy(zero_copy_only=False)
    return is_null


def _features(schema: Any) -> _Features:
    """What `datasets` knows of the columns; nothing where it has not written the file."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: about for name, about in features.items() if isinstance(about, dict)}
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        return {}


def _image_column(path: Path, schema: Any, features: _Features) -> tuple[str, int]:
    """The column of images, and the number of others."""
    import pyarrow as pa

    def kind(name: str) -> str:
        return str(features.get(name, {}).get("_type", "Value"))

    told = [name for name in schema.names if kind(name) == "Image"]
    # Columns of sounds and films have the same types.
    other = [field for field in schema if kind(field.name) == "Value" and _holds_images(field.type)]
    structs = [field.name for field in other if pa.types.is_struct(field.type)]
    found = told or structs or [field.name for field in other]
    if not found:
        columns = ", ".join(f"{field.name}: {field.type}" for field in schema)
        raise UserError(
            f"{printable(path)} has no column of encoded images (it has {printable(columns) or 'none'})"
        )
    image = next((name for name in _IMAGES if name in found), found[0])
    if len(found) > 1 and image not in _IMAGES:
        raise UserError(
            f"{printable(path)} has several columns of images ({printable(', '.join(found))}): rename "
            "the one that is meant to image"
        )
    if not _holds_images(type_ := schema.types[schema.names.index(image)]):
        raise UserError(
            f"{printable(path)} has a column of images, {printable(image)}, of the type "
            f"{printable(type_)}: expected struct<bytes: binary, path: string>, as datasets writes it"
        )
    return image, len(found) - 1


def _holds_images(type_: Any) -> bool:
    """Whether a column has bytes, by itself or as a field of structs."""
    import pyarrow as pa

    if pa.types.is_struct(type_):
        position, path = type_.get_field_index("bytes"), type_.get_field_index("path")
        text = path < 0 or _is_text(type_.field(path).type)
        return position >= 0 and text and _is_bytes(type_.field(position).type)
    return _is_bytes(type_)


def _label_column(schema: Any, features: _Features) -> tuple[str | None, int]:
    """The column of labels, and the number of such columns if none can be used."""
    named = [name for name in _LABELS if name in schema.names]
    classes = [name for name in schema.names if features.get(name, {}).get("_type") == "ClassLabel"]
    tried = named + (classes if len(classes) == 1 else [])
    for name in tried:
        type_ = schema.types[schema.names.index(name)]
        if _is_number(type_) or _is_text(_value_type(type_)):
            return name, 0
    return None, len({*named, *classes})


def _class_names(path: Path, feature: Mapping[str, Any]) -> list[str] | None:
    """Names of the classes that a column's numbers are of; None if it does not say."""
    names = feature.get("names")
    if feature.get("_type") != "ClassLabel" or not isinstance(names, list):
        return None
    names = [str(name) for name in names]
    name, times = next(iter(Counter(names).most_common(1)), ("", 0))
    if times > 1:
        raise UserError(
            f"{printable(path)} has {times} classes of the name {printable(name)}: give each its own"
        )
    return names


def _plain(column: Any) -> Any:
    """A column without a dictionary."""
    return column.cast(_value_type(column.type))


def _value_type(type_: Any) -> Any:
    import pyarrow as pa

    return type_.value_type if pa.types.is_dictionary(type_) else type_


def _is_number(type_: Any) -> bool:
    import pyarrow as pa

    type_ = _value_type(type_)
    return bool(pa.types.is_integer(type_) or pa.types.is_boolean(type_))


def _is_text(type_: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_))


def _is_bytes(type_: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_binary(type_) or pa.types.is_large_binary(type_))
