"""Packed files, written without FFCV: FFCV's writer makes the same, and its readers read them."""

import io
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from conftest import open_with_pil, require, textured_image
from damage_beton import check, compare, jpeg, read
from PIL import Image
from small_places import files_of_at_most

from fastsimsiam.errors import UserError
from fastsimsiam.loaders.decode import read_rgb
from fastsimsiam.storage import beton_writer
from fastsimsiam.storage.beton import Beton, open_beton
from fastsimsiam.storage.beton_writer import BetonWriter
from fastsimsiam.storage.class_folder import open_split
from fastsimsiam.storage.manifest import manifest_path
from fastsimsiam.tools import pack as pack_module
from fastsimsiam.tools.pack import PackOptions, pack
from fastsimsiam.tools.verify import verify

Pixels = npt.NDArray[np.uint8]


class _Samples:
    """Samples as FFCV's writer wants them: half of class 0, the rest of class 1."""

    def __init__(self, images: list[Image.Image]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.images[index], int(index >= len(self) // 2)


def write_with_ffcv(file: Path, images: list[Image.Image]) -> None:
    """Writes a packed file by FFCV's own writer, in one process: its order is that of the images."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    fields = {"image": RGBImageField(write_mode="jpg"), "label": IntField()}
    DatasetWriter(str(file), fields, num_workers=1).from_indexed_dataset(_Samples(images))


def decoded_by_ffcv(record: bytes, height: int, width: int) -> Pixels:
    """What FFCV's decoder, with its fast DCT and upsampling, makes of a JPEG."""
    from ffcv.libffcv import imdecode

    pixels = np.zeros((height, width, 3), np.uint8)
    source = np.frombuffer(record, np.uint8)
    size = (height, width)
    assert imdecode(source, pixels, *size, *size, 0, 0, 1, 1, False, False) == 0
    return pixels


@contextmanager
def records_by_ffcv(file: Path, cache: str) -> Iterator[list[bytes]]:
    """The records as FFCV's reader and one of its memory managers, `os` or `process`, find them."""
    from ffcv.memory_managers import OSCacheManager, ProcessCacheManager
    from ffcv.reader import Reader

    reader = Reader(str(file))
    manager = {"os": OSCacheManager, "process": ProcessCacheManager}[cache](reader)
    read_record = manager.compile_reader()
    batches = np.array_split(np.arange(len(reader.metadata)), 5)
    context = manager.schedule_epoch([batch.tolist() for batch in batches])
    context.__enter__()
    try:
        records = []
        for number, batch in enumerate(batches):
            context.start_batch(number)
            for pointer in reader.metadata["f0"]["data_ptr"][batch]:
                records.append(read_record(pointer, context.state).tobytes())
        yield records
    finally:
        context.__exit__(None, None, None)


def written(
    file: Path, records: list[bytes], *, capacity: int | None = None, page_size: int = 1 << 14
) -> Beton:
    """Writes records that claim to be 48x64 pixels, with labels 0, 1, 2, 0, ..., on small pages."""
    with BetonWriter(file, capacity or len(records), page_size=page_size) as writer:
        for number, record in enumerate(records):
            writer.add(record, 48, 64, number % 3)
        writer.finish()
    return open_beton(file)


def of_random_sizes(count: int) -> list[bytes]:
    """Records of 1 to 9,000 bytes."""
    rng = np.random.default_rng(0)
    return [rng.bytes(int(size)) for size in rng.integers(1, 9_000, count)]


def test_a_file_is_to_the_byte_what_ffcv_writes(tmp_path: Path) -> None:
    require("ffcv")
    from ffcv.fields.rgb_image import encode_jpeg

    rng = np.random.default_rng(0)
    sizes = [(1000, 1100 + number) for number in range(16)]
    images = [Image.fromarray(rng.integers(0, 256, (*s, 3), dtype=np.uint8)) for s in sizes]
    write_with_ffcv(tmp_path / "theirs.beton", images)
    theirs = open_beton(tmp_path / "theirs.beton")
    assert theirs.length.sum() > 1 << 23  # more than a page
    assert theirs.label.tolist() == [0] * 8 + [1] * 8
    assert theirs.sizes.tolist() == [list(size) for size in sizes]
    for index in range(16):
        record = encode_jpeg(np.asarray(images[index]), 90).tobytes()
        assert bytes(theirs.read(index)) == record
        wanted = np.asarray(open_with_pil(io.BytesIO(record)))
        np.testing.assert_array_equal(read_rgb(theirs, index), wanted)
        place = tmp_path / "images" / f"k{theirs.label[index]}" / f"{index:02d}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(record)
    pack(open_split(tmp_path / "images", "train"), tmp_path / "ours.beton", PackOptions())
    assert (tmp_path / "ours.beton").read_bytes() == (tmp_path / "theirs.beton").read_bytes()


@pytest.mark.parametrize("cache", ["os", "process"])
def test_ffcv_finds_the_records_of_many_pages(cache: str, tmp_path: Path) -> None:
    require("ffcv")
    from ffcv.reader import Reader

    records = of_random_sizes(300)
    records[100] = bytes(100_000)  # pages of 16 KiB become pages of 128 KiB
    file = tmp_path / "a.beton"
    beton = written(file, records, capacity=2000)
    with records_by_ffcv(file, cache) as found:
        assert found == records
    reader = Reader(str(file))
    assert reader.page_size == 1 << 17
    assert reader.field_names == ["image", "label"]
    np.testing.assert_array_equal(reader.metadata["f1"], beton.label)
    assert np.ptp(beton.pointer // reader.page_size) > 5


@pytest.mark.parametrize("os_cache", [True, False])
def test_ffcvs_loader_shows_the_images_of_a_packed_file(os_cache: bool, tmp_path: Path) -> None:
    """Over several pages, with an image longer than FFCV's pages of 8 MiB, and one that is left out."""
    require("ffcv")
    from ffcv.fields.decoders import SimpleRGBImageDecoder
    from ffcv.loader import Loader

    rng = np.random.default_rng(1)
    for number in range(24):
        place = tmp_path / "images" / f"k{number % 2}" / f"{number:02d}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        content = jpeg(textured_image(rng, 48, 64))
        if number == 5:
            content = content[:200]
        elif number % 6 == 2:  # bytes after the end of the image
            content += bytes(9_000_000 if number == 8 else 3_000_000)
        place.write_bytes(content)
    storage = open_split(tmp_path / "images", "train")
    manifest = pack(storage, tmp_path / "a.beton", PackOptions(), on_bad_image="skip")
    assert list(manifest["left_out"]) == ["k1/05.jpg"]
    assert manifest["images_with_their_own_bytes"] == 23
    beton = open_beton(tmp_path / "a.beton")
    assert np.ptp(beton.pointer) > 2 << 23
    loader = Loader(
        str(tmp_path / "a.beton"),
        batch_size=23,
        num_workers=1,
        os_cache=os_cache,
        pipelines={"image": [SimpleRGBImageDecoder()]},
    )
    images, labels = next(iter(loader))
    assert labels.flatten().tolist() == beton.label.tolist() == [0] * 12 + [1] * 11
    for index, name in enumerate(beton.paths):
        content = (tmp_path / "images" / name).read_bytes()
        np.testing.assert_array_equal(images[index], decoded_by_ffcv(content, 48, 64))
        difference = images[index].astype(np.int16) - read_rgb(beton, index)
        assert np.abs(difference).mean() < 4  # its DCT and its upsampling are the fast ones


SIZES = ((1, 1), (1, 65_500), (65_500, 1), (7, 3), (2, 4000))


def test_images_of_all_sizes_are_read_by_ffcv(tmp_path: Path) -> None:
    """libjpeg-turbo's largest side is 65,500 pixels."""
    require("ffcv")
    rng = np.random.default_rng(2)
    (tmp_path / "k").mkdir()
    for number, size in enumerate(SIZES):
        rows = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(rows).save(tmp_path / "k" / f"{number}.png")
    file = tmp_path / "a.beton"
    pack(open_split(tmp_path, "train"), file, PackOptions())
    beton = open_beton(file)
    assert beton.sizes.tolist() == [list(size) for size in SIZES]
    with records_by_ffcv(file, "process") as records:
        for index, size in enumerate(SIZES):
            shown = decoded_by_ffcv(records[index], *size)
            assert np.abs(shown.astype(np.int16) - read_rgb(beton, index)).mean() < 4
    compare([file], [read(file, "cpu")], [read(file, "ffcv")], "ffcv")
    assert len(read(file, "ffcv").shown) == len(SIZES)


def test_larger_sides_are_refused_or_scaled_down(tmp_path: Path) -> None:
    (tmp_path / "k").mkdir()
    Image.new("RGB", (65_501, 3)).save(tmp_path / "k" / "wide.png")
    storage = open_split(tmp_path, "train")
    with pytest.raises(UserError, match=r"wide\.png is too large for the format: pass --max-side$"):
        pack(storage, tmp_path / "a.beton", PackOptions())
    with pytest.raises(UserError, match="--max-side is 65501: give 1 to 65500"):
        PackOptions(max_side=65_501)
    pack(storage, tmp_path / "a.beton", PackOptions(max_side=65_500))
    assert open_beton(tmp_path / "a.beton").sizes.tolist() == [[3, 65_500]]


def test_a_record_too_long_for_the_format_is_encoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack_module, "LARGEST_RECORD", 10_000)
    (tmp_path / "k").mkdir()
    content = jpeg(textured_image(np.random.default_rng(3), 48, 64))
    (tmp_path / "k" / "a.jpg").write_bytes(content)
    (tmp_path / "k" / "b.jpg").write_bytes(content + bytes(10_000))
    manifest = pack(open_split(tmp_path, "train"), tmp_path / "a.beton", PackOptions())
    assert manifest["images_with_their_own_bytes"] == 1
    beton = open_beton(tmp_path / "a.beton")
    assert beton.length.max() < 10_000
    difference = read_rgb(beton, 1).astype(np.int16) - read_rgb(beton, 0)
    assert np.abs(difference).mean() < 10


def test_no_record_crosses_a_page_and_none_is_lost(tmp_path: Path) -> None:
    records = [*of_random_sizes(300), bytes(1 << 14), b"1", bytes((1 << 14) + 1), b"2"]
    beton = written(tmp_path / "a.beton", records)
    assert [bytes(beton.read(index)) for index in range(len(records))] == records
    assert beton.label.tolist() == [number % 3 for number in range(len(records))]
    assert beton.sizes.tolist() == [[48, 64]] * len(records)
    first, last = beton.pointer >> 15, (beton.pointer + beton.length - 1) >> 15
    np.testing.assert_array_equal(first, last)
    before = beton.pointer[:-2] >> 14, (beton.pointer + beton.length - 1)[:-2] >> 14
    np.testing.assert_array_equal(*before)  # until the page grew


def test_writing_takes_the_memory_of_a_record(tmp_path: Path) -> None:
    record = bytes(500_000)
    tracemalloc.start()
    try:
        with BetonWriter(tmp_path / "a.beton", 60) as writer:
            for _ in range(60):
                writer.add(record, 48, 64, 0)
            writer.finish()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20  # a page is 8 MiB, the file is 32


def test_a_file_without_its_tables_is_refused(tmp_path: Path) -> None:
    with BetonWriter(tmp_path / "a.beton", 3) as writer:
        for _ in range(3):
            writer.add(b"record", 48, 64, 0)
    with pytest.raises(UserError, match="is not a complete packed file"):
        open_beton(tmp_path / "a.beton")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten JPEGs of two classes."""
    rng = np.random.default_rng(4)
    for number in range(10):
        place = tmp_path / "images" / f"k{number % 2}" / f"{number}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        textured_image(rng, 60, 80).save(place)
    return tmp_path / "images"


@pytest.mark.parametrize("where", ["the records", "the last table"])
def test_a_full_disk_leaves_the_older_file(where: str, folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "a.beton"
    storage = open_split(folder, "train")
    pack(storage, target, PackOptions())
    before = target.read_bytes(), manifest_path(target).read_bytes()
    # A file of FFCV has its first record on page 1 and ends with 24 bytes for each record.
    room = (1 << 23) + 100 if where == "the records" else len(before[0]) - 100
    with (
        files_of_at_most(room),
        pytest.raises(UserError, match=r"^cannot write DST .*a\.beton \(File too large\): raise"),
    ):
        pack(storage, target, PackOptions())
    assert (target.read_bytes(), manifest_path(target).read_bytes()) == before
    assert not list(tmp_path.glob("*.partial"))


def test_a_record_that_is_not_what_was_written_stops_pack(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = beton_writer.BetonWriter.add

    def lose_a_bit(writer: BetonWriter, data: bytes, *rest: int) -> None:
        add(writer, data[:-1] + bytes([data[-1] ^ 1]), *rest)

    monkeypatch.setattr(beton_writer.BetonWriter, "add", lose_a_bit)
    with pytest.raises(UserError, match="the copy differs from what was written; is the disk full"):
        pack(open_split(folder, "train"), tmp_path / "a.beton", PackOptions())
    assert not list(tmp_path.glob("a.beton*"))


# FFCV is installed for the tests: an import of it fails here as where it is not.
WITHOUT_FFCV = """
import sys
sys.modules["ffcv"] = None
from fastsimsiam.cli import main
images, out = sys.argv[1:]
assert main(["pack", images, out + "/train.beton"]) == 0
assert main(["pack", "--verify", out + "/train.beton"]) == 0
import tiny_backbone
from fastsimsiam.loaders import registry
registry.RESIDENT_HOST_SHARE = 0.0
options = "--arch tiny_resnet --image-size 32 --batch-size 5 --max-steps 2 --device cpu --workers 1"
options += " --compile off --precision fp32 --knn.every-epochs 0"
assert main(["pretrain", "imagenette", "--data", out, "--out", out + "/run", *options.split()]) == 0
assert main(["pretrain", "imagenette", "--data", out, "--out", out + "/other", "--loader", "ffcv",
             *options.split()]) == 2
"""


def test_without_ffcv_files_are_packed_verified_and_trained_on(
    folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_FFCV, str(folder), str(out)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
        env={"PYTHONPATH": str(Path(__file__).parents[1]), "XDG_CACHE_HOME": str(tmp_path)},
    )
    assert done.returncode == 0, done.stderr
    assert "10 images, complete and as packed" in done.stdout
    log = (out / "run" / "log.txt").read_text()
    assert "loader cpu (" in log
    assert done.stderr.splitlines()[-1].startswith("fastsimsiam: error: --loader ffcv needs FFCV: ")
    assert not check(out / "train.beton").error
    assert len(verify(out / "train.beton").beton) == 10
