"""Packed files that lie: written without FFCV, mutated, and read by every loader.

`python tests/damage_beton.py 1000` mutates a thousand; tests/test_beton.py takes fewer of the same.
"""

import json
import re
import struct
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fastsimsiam.config.views import ViewSpec
from fastsimsiam.doctor.synthetic import textured_image
from fastsimsiam.errors import UserError
from fastsimsiam.loaders.base import LoaderOptions
from fastsimsiam.loaders.registry import build_loader
from fastsimsiam.plan.batches import TrainPlan
from fastsimsiam.storage.beton import open_beton
from fastsimsiam.storage.manifest import manifest_path
from fastsimsiam.tools.verify import verify


def installed(module: str) -> bool:
    """Whether a module can be imported."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that would hold it
        return False


PAGE = 1 << 16
HEADER, FIELD, ROW, ALLOCATION = 24, 1041, 24, 24
IMAGE_FIELD, LABEL_FIELD = 2, 1
MODULES = {"cpu": "fastsimsiam", "resident": "fastsimsiam", "reference": "fastsimsiam"}
MODULES |= {"dali": "nvidia.dali", "ffcv": "ffcv"}
READERS = [name for name, module in MODULES.items() if installed(module)]
"""Loaders that read packed files on a CPU, as far as their libraries are installed."""


def jpeg(image: Image.Image, **options: object) -> bytes:
    """An encoded image."""
    target = BytesIO()
    image.save(target, "JPEG", **({"quality": 90} | options))
    return target.getvalue()


@dataclass
class Layout:
    """A packed file in memory: its bytes, and where its tables are."""

    content: bytearray
    rows: int
    allocations: int
    count: int

    def row(self, image: int) -> int:
        """Where the row of an image begins: mode, width, height, pointer; 16 bytes on its label."""
        return self.rows + ROW * image

    def allocation(self, image: int) -> int:
        """Where the allocation of an image begins: sample, pointer, bytes."""
        return self.allocations + ALLOCATION * image

    def put(self, position: int, kind: str, value: int) -> None:
        """Writes a number of a `struct` type, cut to its size."""
        size = struct.calcsize(kind)
        self.content[position : position + size] = (value % (1 << 8 * size)).to_bytes(
            size, "little"
        )

    def get(self, position: int, kind: str) -> int:
        """Reads a number of a `struct` type."""
        return int(struct.unpack_from("<" + kind, self.content, position)[0])


def layout(
    records: Sequence[bytes],
    sizes: Sequence[tuple[int, int]],
    labels: Sequence[int],
    page: int = PAGE,
) -> Layout:
    """A packed file with a field of images and one of integers, as FFCV writes it.

    Args:
        records: encoded images.
        sizes: height and width that the table claims.
        labels: class numbers.
        page: bytes of a page; no record is longer.
    """
    rows = HEADER + 2 * FIELD
    pointers, position = [], -(-(rows + ROW * len(records)) // page) * page
    for record in records:
        if position % page + len(record) > page:
            position = -(-position // page) * page
        pointers.append(position)
        position += len(record)
    end = -(-position // page) * page
    content = bytearray(end)
    struct.pack_into("<HHIQQ", content, 0, 2, 2, page, len(records), end)
    for number, (kind, name) in enumerate(((IMAGE_FIELD, b"image"), (LABEL_FIELD, b"label"))):
        struct.pack_into("<B16s", content, HEADER + FIELD * number, kind, name)
    found = Layout(content=content, rows=rows, allocations=end, count=len(records))
    for number, (record, (height, width), label, pointer) in enumerate(
        zip(records, sizes, labels, pointers, strict=True)
    ):
        struct.pack_into("<BHHQ3xq", content, found.row(number), 0, width, height, pointer, label)
        content[pointer : pointer + len(record)] = record
    for number, (record, pointer) in enumerate(zip(records, pointers, strict=True)):
        content += struct.pack("<QQQ", number, pointer, len(record))
    return found


def photographs(count: int = 12, side: int = 40) -> tuple[list[bytes], list[tuple[int, int]]]:
    """Encoded images of several sizes, the last one the largest, with their heights and widths."""
    rng = np.random.default_rng(5)
    sizes = [(int(h), int(w)) for h, w in rng.integers(16, side, (count, 2))]
    sizes[-1] = (4 * side, 3 * side)
    return [jpeg(textured_image(rng, *size)) for size in sizes], sizes


def intact(count: int = 12) -> Layout:
    """A packed file without faults, of three classes."""
    records, sizes = photographs(count)
    return layout(records, sizes, [number % 3 for number in range(count)])


def write(found: Layout, path: Path, manifest: dict[str, object] | None = None) -> Path:
    """Writes a packed file, and a manifest if one is given."""
    path.write_bytes(found.content)
    if manifest is not None:
        manifest_path(path).write_text(json.dumps(manifest))
    return path


def manifest_of(found: Layout) -> dict[str, object]:
    """The manifest of `intact`."""
    return {
        "format": 1,
        "classes": ["a", "b", "c"],
        "images": [f"{number % 3}/{number}.jpg" for number in range(found.count)],
        "bytes": len(found.content),
    }


def _nasty(rng: np.random.Generator, found: Layout) -> int:
    """A number that is likely to break a reader: around powers of two and the size of the file."""
    base = rng.choice(np.array([0, 1, len(found.content), found.allocations, PAGE, found.count]))
    power = 1 << int(rng.integers(0, 64))
    small = int(rng.integers(-9, 10))
    return [int(base) + small, power + small, -power, -1, int(rng.integers(0, 1 << 62))][
        int(rng.integers(0, 5))
    ]


def _header(rng: np.random.Generator, found: Layout) -> None:
    position, kind = [(0, "H"), (2, "H"), (4, "I"), (8, "Q"), (16, "Q")][int(rng.integers(0, 5))]
    found.put(position, kind, _nasty(rng, found))


def _field(rng: np.random.Generator, found: Layout) -> None:
    number = int(rng.integers(0, 2))
    if rng.random() < 0.5:
        found.put(HEADER + FIELD * number, "B", int(rng.choice([0, 1, 2, 3, 4, 5, 6, 7, 255])))
    else:
        at = HEADER + FIELD * number + int(rng.integers(0, 60))
        found.content[at] = int(rng.integers(0, 256))


def _image(rng: np.random.Generator, found: Layout) -> None:
    row = found.row(int(rng.integers(0, found.count)))
    offset, kind = [(0, "B"), (1, "H"), (3, "H"), (5, "Q"), (16, "Q")][int(rng.integers(0, 5))]
    found.put(row + offset, kind, _nasty(rng, found))


def _size(rng: np.random.Generator, found: Layout) -> None:
    row = found.row(int(rng.integers(0, found.count)))
    for offset in (1, 3):
        found.put(row + offset, "H", int(rng.choice([0, 1, 8, 30, 41, 160, 4096, 65535])))


def _swap(rng: np.random.Generator, found: Layout) -> None:
    one, other = (int(number) for number in rng.choice(found.count, 2))
    found.put(found.row(one) + 5, "Q", found.get(found.row(other) + 5, "Q"))


def _allocation(rng: np.random.Generator, found: Layout) -> None:
    at = found.allocation(int(rng.integers(0, found.count))) + 8 * int(rng.integers(0, 3))
    if rng.random() < 0.5:
        found.put(at, "Q", found.get(at, "Q") + int(rng.integers(-40, 40)))
    else:
        found.put(at, "Q", _nasty(rng, found))


def _bytes(rng: np.random.Generator, found: Layout) -> None:
    tables = found.row(found.count)
    for _ in range(int(rng.integers(1, 9))):
        at = int(rng.integers(0, tables))
        if rng.random() < 0.3:
            at = int(rng.integers(found.allocations, len(found.content)))
        found.content[at] = int(rng.integers(0, 256))


def _cut(rng: np.random.Generator, found: Layout) -> None:
    del found.content[int(rng.integers(0, len(found.content))) :]


def _longer(rng: np.random.Generator, found: Layout) -> None:
    found.content += rng.bytes(int(rng.choice([1, 23, 24, 48, 72])))


def _jpeg_header(rng: np.random.Generator, found: Layout) -> None:
    """Another size in the JPEG's own header."""
    pointer = found.get(found.row(int(rng.integers(0, found.count))) + 5, "Q")
    at = found.content.index(b"\xff\xc0", pointer) + 5
    for offset in (0, 2):
        if rng.random() < 0.7:
            value = int(rng.choice([0, 1, 16, 24, 33, 200, 5000, 65500]))
            found.content[at + offset : at + offset + 2] = value.to_bytes(2, "big")


MUTATIONS: tuple[Callable[[np.random.Generator, Layout], None], ...] = (
    _header,
    _field,
    _image,
    _size,
    _swap,
    _allocation,
    _bytes,
    _cut,
    _longer,
    _jpeg_header,
)
VALUES = (
    "0",
    "-1",
    "1e999",
    '"x"',
    "[]",
    "[1]",
    '["a"]',
    "null",
    "{}",
    "true",
    "[" * 3000,
    "\udcff",
)


def _manifest(rng: np.random.Generator, found: Layout) -> bytes:
    """A manifest with another value for a key, or with random bytes in it."""
    content = manifest_of(found)
    if rng.random() < 0.4:
        text = bytearray(json.dumps(content).encode())
        for _ in range(int(rng.integers(1, 5))):
            text[int(rng.integers(0, len(text)))] = int(rng.integers(0, 256))
        return bytes(text)
    key = str(rng.choice([*content, "sha256", "crc32", "images_of_class"]))
    text = json.dumps(content | {key: "HERE"})
    return text.replace('"HERE"', str(rng.choice(np.array(VALUES)))).encode(
        errors="surrogateescape"
    )


def mutants(folder: Path, number: int, seed: int = 0) -> list[Path]:
    """Writes mutated files, of each kind about as many; one in ten is intact but for its manifest."""
    rng = np.random.default_rng(seed)
    original = intact()
    files = []
    for index in range(number):
        if rng.random() < 0.1:
            file = write(original, folder / f"{index:04d}_manifest.beton")
            manifest_path(file).write_bytes(_manifest(rng, original))
        else:
            found = Layout(**vars(original) | {"content": bytearray(original.content)})
            kind = MUTATIONS[index % len(MUTATIONS)]
            kind(rng, found)
            if rng.random() < 0.2 and len(found.content) > found.row(found.count):
                _image(rng, found)
            file = write(found, folder / f"{index:04d}{kind.__name__}.beton")
        files.append(file)
    return files


@dataclass(frozen=True)
class Outcome:
    """What a reader says of a file: an error, or the images shown, refused and warned of."""

    error: str = ""
    shown: tuple[int, ...] = ()
    refused: tuple[str, ...] = ()
    warned: tuple[str, ...] = ()
    pixels: float = 0.0


def read(file: Path, reader: str, on_bad_image: str = "skip") -> Outcome:
    """Reads a file by a loader, skipping broken images; anything but a `UserError` is a fault."""
    try:
        storage = open_beton(file)
        options = LoaderOptions(device=torch.device("cpu"), workers=1, on_bad_image=on_bad_image)
        with closing(build_loader(reader, storage, options)) as loader:
            plan = TrainPlan(
                label=storage.label,
                sizes=storage.sizes,
                seed=0,
                specs=(ViewSpec(),),
                image_size=16,
                batch_size=min(len(storage), 6),
            )
            shown, total = [], 0.0
            for batch in loader.iterate(plan):
                shown += batch.index.tolist()
                total += float(batch.crops[0].sum())
            return Outcome(
                shown=tuple(shown),
                refused=tuple(sorted(loader.bad_images)),
                warned=tuple(sorted(loader.warned_images)),
                pixels=total,
            )
    except UserError as error:
        return Outcome(error=one_line(str(error), file))


def check(file: Path) -> Outcome:
    """What `pack --verify` says."""
    try:
        return Outcome(shown=tuple(range(len(verify(file, workers=1).beton))))
    except UserError as error:
        return Outcome(error=one_line(str(error), file))


def one_line(text: str, file: Path) -> str:
    """An error that names its file, on one line, and shows no memory address."""
    assert "\n" not in text, text
    assert not re.search("0x[0-9a-f]{8}", text), text
    assert file.name in text, text
    return text


def read_in_child(files: Sequence[Path], reader: str, patience: float = 120) -> list[Outcome]:
    """The outcomes of a reader for files that may crash it: in a copy of this process.

    Args:
        files: packed files.
        reader: a loader.
        patience: seconds that a file may take.

    Raises:
        AssertionError: it crashed or hangs; names the file.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # What has to be compiled is compiled here, and the copy has it too.
        assert not read(write(intact(), folder / "intact.beton"), reader).error
        results = folder / "results"
        results.touch()
        child = get_context("fork").Process(target=_child, args=(files, reader, results))
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # Python's, of threads beside a fork
            child.start()
        lines: list[str] = []
        while child.is_alive():
            child.join(patience)
            before, lines = lines, results.read_text().splitlines()
            if len(lines) == len(before):
                child.kill()
        lines = results.read_text().splitlines()
        assert len(lines) == len(files), (child.exitcode, files[len(lines)].name)
    return [Outcome(*map(_as_tuple, json.loads(line).values())) for line in lines]


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _child(files: Sequence[Path], reader: str, results: Path) -> None:
    with open(results, "w", buffering=1) as handle:
        for file in files:
            print(json.dumps(vars(read(file, reader))), file=handle)


def run(number: int, seed: int, readers: Sequence[str] = READERS) -> dict[str, int]:
    """Mutates files, reads each by every reader in a process that may crash, and compares them.

    Args:
        number: mutated files.
        seed: of the mutations.
        readers: loaders.

    Returns:
        Numbers of files: `refused` as a whole, `partly` read, `read`, and `verified` as intact.

    Raises:
        AssertionError: a reader crashed, or two readers disagree.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = mutants(folder, number, seed)
        first = read_in_child(files, readers[0])
        for reader in readers[1:]:
            # Those that start processes or pipelines for every file take a quarter of the files.
            step = 4 if reader in ("dali", "reference") else 1
            few = files[::step]
            compare(few, first[::step], read_in_child(few, reader), reader)
        verified = sum(not check(file).error for file in files)
        return {
            "refused": sum(bool(outcome.error) for outcome in first),
            "partly": sum(bool(outcome.refused) for outcome in first),
            "read": sum(not outcome.error and not outcome.refused for outcome in first),
            "verified": verified,
        }


def compare(
    files: Sequence[Path], first: Sequence[Outcome], other: Sequence[Outcome], reader: str
) -> None:
    """Requires that two readers refuse the same files and images, and show the same pixels."""
    for file, one, two in zip(files, first, other, strict=True):
        assert bool(one.error) == bool(two.error), (reader, file.name, one, two)
        assert one.shown == two.shown, (reader, file.name, one, two)
        assert one.refused == two.refused, (reader, file.name, one, two)
        assert one.warned == two.warned, (reader, file.name, one, two)
        if reader not in ("dali", "reference"):  # other arithmetic, and color in PIL
            assert abs(one.pixels - two.pixels) <= 0.003 * one.pixels, (reader, file.name, one, two)


if __name__ == "__main__":
    print(run(int(sys.argv[1]), seed=int(sys.argv[2]) if len(sys.argv) > 2 else 0))
