"""Downloads CIFAR-10 and writes it as PNG files to DEST/train/CLASS and DEST/val/CLASS.

Needs Pillow. The archive holds pickles written by Python 2; they are read without NumPy, and nothing
that they name is executed.
"""

import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _archive import Source, arguments, install, opened, run
from _download import DataError, writing

SOURCE = Source(
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    "c58f30108f718f92721af3b95e74349a",
    {"train": (10, 50_000), "val": (10, 10_000)},
)
FOLDER = "cifar-10-batches-py"
BATCHES = {"train": [f"data_batch_{number}" for number in range(1, 6)], "val": ["test_batch"]}
SIDE = 32
PLANE = SIDE * SIDE  # bytes of a color plane; an image is a red, a green and a blue one


class Inert:
    """Replaces every NumPy object of a batch; keeps the array's state and does nothing."""

    state: tuple[Any, ...] = ()

    def __init__(self, *_: object) -> None:
        """Accepts the arguments of NumPy's constructors."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state  # (version, shape, dtype, Fortran order, bytes)


class BatchUnpickler(pickle.Unpickler):
    """Resolves the three names of a pickled array to `Inert` and refuses all others."""

    def find_class(self, module: str, name: str) -> type[Inert]:
        """Resolves a global of the pickle."""
        if f"{module}.{name}" in (
            "numpy.core.multiarray._reconstruct",
            "numpy.ndarray",
            "numpy.dtype",
        ):
            return Inert
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")


def load(tar: tarfile.TarFile, name: str) -> dict[bytes, Any]:
    """Reads one of the archive's pickled dicts."""
    file = tar.extractfile(f"{FOLDER}/{name}")
    return dict(BatchUnpickler(io.BytesIO(file.read() if file else b""), encoding="bytes").load())


def read_classes(tar: tarfile.TarFile) -> list[str]:
    """Returns the class names in the order of the labels."""
    names = [name.decode("ascii") for name in load(tar, "batches.meta")[b"label_names"]]
    if not all(name.isidentifier() for name in names):  # they become folder names
        raise ValueError(f"odd class names {names}")
    return names


def read_batch(tar: tarfile.TarFile, name: str) -> tuple[list[int], bytes]:
    """Returns the labels, and the bytes of all images: three color planes each."""
    batch = load(tar, name)
    labels = [int(label) for label in batch[b"labels"]]
    _, shape, _, fortran, pixels = batch[b"data"].state
    if (
        tuple(shape) != (len(labels), 3 * PLANE)
        or fortran
        or len(pixels) != len(labels) * 3 * PLANE
    ):
        raise ValueError(f"array of shape {shape} for {len(labels)} labels")
    return labels, pixels


def convert(tar: tarfile.TarFile, folder: Path, tick: Callable[[], None]) -> None:
    """Writes the images of all batches as folder/SPLIT/CLASS/INDEX.png."""
    try:
        from PIL import Image
    except ImportError:
        raise DataError("Pillow is missing: run python -m pip install pillow") from None
    classes = read_classes(tar)
    for split, batches in BATCHES.items():
        for name in classes:
            (folder / split / name).mkdir(parents=True)
        index = 0
        for batch in batches:
            labels, pixels = read_batch(tar, batch)
            tick()
            for number, label in enumerate(labels):
                start = number * 3 * PLANE
                planes = [
                    Image.frombytes("L", (SIDE, SIDE), pixels[at : at + PLANE])
                    for at in range(start, start + 3 * PLANE, PLANE)
                ]
                path = folder / split / classes[label] / f"{index:05d}.png"
                Image.merge("RGB", planes).save(path)
                index += 1


def unpack(archive: Path, folder: Path) -> None:
    """Converts the archive; unexpected content means that it is not the official one."""
    with opened(archive) as (tar, tick), writing(folder):
        try:
            convert(tar, folder, tick)
        except (
            AttributeError,
            LookupError,
            TypeError,
            ValueError,
            pickle.UnpicklingError,
        ) as error:
            raise DataError(f"{archive} is not the official archive: {error!r}") from error


def main() -> None:
    """Runs the command line."""
    args = arguments(__doc__, "data/cifar10").parse_args()
    install(
        SOURCE, args.dest, url=args.url, archive=args.archive, verify=args.verify, unpack=unpack
    )


if __name__ == "__main__":
    raise SystemExit(run(main))
