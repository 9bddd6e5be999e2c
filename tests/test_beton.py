"""Packed files from elsewhere: every lie is one line, every reader tells the same, none crashes."""

import json
import os
import pickle
import sys
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from conftest import CPU, require, textured_image
from damage_beton import (
    FIELD,
    HEADER,
    Layout,
    check,
    compare,
    intact,
    jpeg,
    layout,
    manifest_of,
    mutants,
    photographs,
    read,
    read_in_child,
    write,
)
from PIL import Image

from fastsimsiam.cli import main
from fastsimsiam.config.views import ViewSpec
from fastsimsiam.errors import BadImageError, UserError
from fastsimsiam.evaluate.features import center_plan
from fastsimsiam.loaders.base import Loader, LoaderOptions
from fastsimsiam.loaders.registry import build_loader
from fastsimsiam.plan.batches import TrainPlan
from fastsimsiam.storage.beton import Beton, has_split, open_beton
from fastsimsiam.storage.manifest import manifest_path
from fastsimsiam.tools.verify import verify

OF_ALL = ["cpu", "resident", "reference", "dali", "ffcv"]
EACH_EPOCH = ["cpu", "reference", "dali", "ffcv"]
"""Loaders that read the file in every epoch."""


def loader_of(name: str, storage: Beton, on_bad_image: str = "error") -> Loader:
    """A loader of a packed file with one worker."""
    if name in ("dali", "ffcv"):
        require(name)
    options = LoaderOptions(device=CPU, workers=1, on_bad_image=on_bad_image)
    return build_loader(name, storage, options)


def plan_of(storage: Beton, batch_size: int) -> TrainPlan:
    """Batches of one small view of each image."""
    return TrainPlan(
        label=storage.label,
        sizes=storage.sizes,
        seed=0,
        specs=(ViewSpec(),),
        image_size=16,
        batch_size=batch_size,
    )


def test_a_file_is_read_without_ffcv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ffcv", None)
    records, sizes = photographs()
    file = write(intact(), tmp_path / "a.beton")
    beton = open_beton(file)
    assert [bytes(beton.read(index)) for index in range(12)] == records
    assert beton.sizes.tolist() == [list(size) for size in sizes]
    assert beton.label.tolist() == [0, 1, 2] * 4
    assert list(beton.classes) == ["0", "1", "2"]
    assert len(read(file, "cpu").shown) == 12
    assert len(verify(file).beton) == 12
    with pytest.raises(UserError, match="--loader ffcv needs FFCV: "):
        build_loader("ffcv", beton, LoaderOptions(device=CPU))


class _Samples:
    """Samples of a data set as FFCV's writer wants them."""

    def __init__(self, images: list[Image.Image]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[object, ...]:
        text = np.frombuffer(b"" if index == 2 else b"text" * (index + 1), np.uint8)
        return 0.5, text, self.images[index], np.arange(3.0), index % 2, {"n": int(index)}, 7


def test_files_of_ffcv_have_any_fields_in_any_order(tmp_path: Path) -> None:
    """The first field of images and the first one of integers count, whatever their names are."""
    require("ffcv")
    from ffcv.fields import BytesField, FloatField, IntField, JSONField, NDArrayField, RGBImageField
    from ffcv.reader import Reader
    from ffcv.writer import DatasetWriter

    rng = np.random.default_rng(3)
    images = [textured_image(rng, 30 + number, 50 - number) for number in range(6)]
    fields = {
        "weight": FloatField(),
        "caption": BytesField(),
        "picture": RGBImageField(write_mode="jpg"),
        "vector": NDArrayField(np.dtype("f8"), (3,)),
        "species": IntField(),
        "more": JSONField(),
        "number": IntField(),
    }
    file = tmp_path / "a.beton"
    DatasetWriter(str(file), fields, num_workers=1).from_indexed_dataset(_Samples(images))
    beton = open_beton(file)
    assert beton.label.tolist() == [0, 1] * 3
    assert beton.sizes.tolist() == [[image.height, image.width] for image in images]
    theirs = Reader(str(file))
    np.testing.assert_array_equal(beton.pointer, theirs.metadata["f2"]["data_ptr"])
    for index in range(6):
        with Image.open(BytesIO(beton.read(index))) as image:
            assert image.size == images[index].size
    compare([file], [read(file, "cpu")], [read(file, "ffcv")], "ffcv")
    assert not check(file).error


def put(position: int, kind: str, value: int) -> Callable[[Layout], None]:
    """Changes a number of the file."""
    return lambda found: found.put(position, kind, value)


def in_row(offset: int, kind: str, value: int) -> Callable[[Layout], None]:
    """Changes a number of image 3."""
    return lambda found: found.put(found.row(3) + offset, kind, value)


def in_allocation(offset: int, value: int) -> Callable[[Layout], None]:
    """Changes a number of the allocation of image 3."""
    return lambda found: found.put(found.allocation(3) + offset, "Q", value)


def moved(position: int) -> Callable[[Layout], None]:
    """Moves the record of image 3, in both tables."""

    def change(found: Layout) -> None:
        found.put(found.row(3) + 5, "Q", position)
        found.put(found.allocation(3) + 8, "Q", position)

    return change


def cut(bytes_kept: int) -> Callable[[Layout], None]:
    """Truncates the file."""

    def change(found: Layout) -> None:
        del found.content[bytes_kept:]

    return change


LIES = {
    "empty": (cut(0), "has 0 bytes"),
    "half a header": (cut(20), "has 20 bytes"),
    "no fields": (cut(HEADER), "has 24 bytes"),
    "half": (cut(70_000), "its last table is at byte"),
    "version": (put(0, "H", 3), "version is 3, not 2"),
    "0 fields": (put(2, "H", 0), "claims 0 fields"),
    "65535 fields": (put(2, "H", 65535), "claims 65535 fields"),
    "900 fields": (put(2, "H", 900), "900 rows"),
    "page size 0": (put(4, "I", 0), "pages of 0 bytes"),
    "page size 3": (put(4, "I", 3), "pages of 3 bytes"),
    "small pages": (put(4, "I", 512), "not among its records"),
    "0 images": (put(8, "Q", 0), "holds no images"),
    "2^40 images": (put(8, "Q", 1 << 40), "claims 1099511627776 rows"),
    "2^63 images": (put(8, "Q", 1 << 63), "claims 9223372036854775808 rows"),
    "table past the end": (put(16, "Q", 1 << 60), "its last table is at byte 1152921504606846976"),
    "table in the header": (put(16, "Q", 24), "its last table is at byte 24"),
    "custom field": (put(HEADER, "B", 255), "unknown type 255"),
    "no field of images": (put(HEADER, "B", 0), "no field of images"),
    "no field of labels": (put(HEADER + FIELD, "B", 0), "no field of integer labels"),
    "raw pixels": (in_row(0, "B", 1), "holds raw pixels"),
    "unknown mode": (in_row(0, "B", 9), "image 3 has the unknown mode 9"),
    "label -1": (in_row(16, "Q", -1), "the label of image 3 is -1"),
    "label 2^62": (in_row(16, "Q", 1 << 62), "the label of image 3 is 4611686018427387904"),
    "pointer to nothing": (in_row(5, "Q", 80_000), "image 3 has no record"),
    "pointer past the end": (in_row(5, "Q", (1 << 64) - 1), "image 3 has no record"),
    "record past the end": (moved(1 << 40), "not among its records"),
    "record in the header": (moved(0), "not among its records"),
    "record in the table": (moved(HEADER + 2 * FIELD), "not among its records"),
    "record of 2^63 bytes": (in_allocation(16, 1 << 63), "not among its records"),
    "record longer than a page": (in_allocation(16, 66_000), "not among its records"),
    "record of no bytes": (in_allocation(16, 0), "image 3 has no record"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_one_line_and_takes_no_memory(lie: str, tmp_path: Path) -> None:
    found = intact()
    change, message = LIES[lie]
    change(found)
    file = write(found, tmp_path / "a.beton")
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=message) as caught:
            open_beton(file)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(caught.value) == check(file).error


def lying_sizes(folder: Path) -> list[Path]:
    """Files of which a record claims another size than its JPEG has; the last one is intact."""
    rng = np.random.default_rng(1)
    small = [jpeg(textured_image(rng, 24, 32)) for _ in range(8)]
    large = jpeg(Image.new("RGB", (3000, 3000), (9, 99, 199)))
    folder.mkdir()
    cases = {
        "a_none_around_large": (large, (0, 0)),
        "b_small_around_large": (large, (24, 32)),
        "c_large_around_small": (small[0], (3000, 3000)),
        "d_huge_around_small": (small[0], (65535, 65535)),
        "e_row_around_small": (small[0], (1, 65535)),
        "f_turned": (small[0], (32, 24)),
        "g_true": (large, (3000, 3000)),
    }
    return [
        write(
            layout([*small[1:], record], [*[(24, 32)] * 7, size], [0] * 8, page=1 << 18),
            folder / f"{name}.beton",
        )
        for name, (record, size) in cases.items()
    ]


def test_a_claimed_size_is_that_of_the_jpeg(tmp_path: Path) -> None:
    """FFCV's decoder would write past the frame reserved by the claim, or leave older pixels in it."""
    files = lying_sizes(tmp_path / "sizes")
    refused = [(f"{file}, record 7 (7)",) for file in files[:-1]] + [()]
    outcomes = [read(file, "cpu") for file in files]
    assert [outcome.refused for outcome in outcomes] == refused
    compare(files, outcomes, [read(file, "reference") for file in files], "reference")
    compare(
        files, outcomes, [read(file, "resident") for file in files[4:]], "resident"
    ) if 0 else None
    require("ffcv")
    compare(files, outcomes, read_in_child(files, "ffcv"), "ffcv")
    for file in files[:-1]:
        storage = open_beton(file)
        assert "record 7" in check(file).error
        with (
            pytest.raises((BadImageError, UserError), match="record 7") as caught,
            closing(loader_of("ffcv", storage)) as loader,
        ):
            list(loader.iterate(center_plan(storage, 16, 1.0)))
        assert "\n" not in str(caught.value)


def test_a_huge_image_is_compared_with_its_header_when_the_file_is_opened(tmp_path: Path) -> None:
    record = bytearray(jpeg(textured_image(np.random.default_rng(0), 24, 32)))
    at = record.index(b"\xff\xc0") + 5
    record[at : at + 4] = (9001).to_bytes(2, "big") + (9002).to_bytes(2, "big")
    true = write(layout([bytes(record)], [(9001, 9002)], [0]), tmp_path / "true.beton")
    assert open_beton(true).sizes.tolist() == [[9001, 9002]]
    false = open_beton(write(layout([bytes(record)], [(9002, 9001)], [0]), tmp_path / "f.beton"))
    assert false.sizes.tolist() == [[0, 0]]
    with pytest.raises(UserError, match=r"claims 9001x9002 pixels, and its JPEG does not"):
        false.require_readable()


def odd_records(folder: Path) -> Path:
    """A file of records that some decoders refuse, guess, or show in other colors."""
    rng = np.random.default_rng(2)
    image = textured_image(rng, 40, 56)
    plain = jpeg(image)
    png = BytesIO()
    image.save(png, "PNG")
    exif = Image.Exif()
    exif[0x0112] = 6
    scan = plain.index(b"\xff\xda")
    damaged = bytearray(plain)
    damaged[scan + 300 : scan + 320] = b"\xff\x00" * 10
    records = [
        plain,
        jpeg(image.convert("L")),
        jpeg(image.convert("CMYK")),
        jpeg(image, progressive=True),
        jpeg(image, keep_rgb=True),
        jpeg(image, exif=exif),
        png.getvalue(),
        bytes(damaged),
        plain[: len(plain) // 2] + b"\xff\xd9",
        plain[: len(plain) // 2],
        plain[:scan],
        b"this is no image",
        plain + b"bytes after the end",
        b"bytes before" + plain,
    ]
    folder.mkdir()
    found = layout(records, [(40, 56)] * len(records), [0] * len(records))
    return write(found, folder / "odd.beton")


@pytest.mark.parametrize("on_bad_image", ["skip", "skip-strict"])
def test_odd_records_are_judged_alike(on_bad_image: str, tmp_path: Path) -> None:
    """What libjpeg-turbo refuses or warns of, the compiled code leaves to the judgement of all."""
    require("ffcv")
    file = odd_records(tmp_path / "odd")
    cpu = read(file, "cpu", on_bad_image)
    strict = on_bad_image == "skip-strict"
    assert len(cpu.refused) == (6 if strict else 4)
    assert len(cpu.warned) == (0 if strict else 2)
    for name in ("ffcv", "resident", "reference"):
        compare([file], [cpu], [read(file, name, on_bad_image)], name)


def test_mutated_files_are_read_alike_by_all_or_refused(tmp_path: Path) -> None:
    """`python tests/damage_beton.py 1000` is the same with a thousand."""
    files = mutants(tmp_path, 80, seed=7)
    outcomes = [read(file, "cpu") for file in files]
    kinds = [bool(outcome.error) for outcome in outcomes]
    assert 0.3 < np.mean(kinds) < 0.8
    assert sum(bool(outcome.refused) for outcome in outcomes) >= 8
    compare(files, outcomes, [read(file, "resident") for file in files], "resident")
    for file, outcome in zip(files, outcomes, strict=True):
        assert check(file).error or not outcome.error
    few = files[::16]
    compare(few, outcomes[::16], [read(file, "reference") for file in few], "reference")


def test_mutated_files_do_not_crash_ffcv(tmp_path: Path) -> None:
    require("ffcv")
    files = mutants(tmp_path, 80, seed=7)
    compare(files, [read(file, "cpu") for file in files], read_in_child(files, "ffcv"), "ffcv")


def test_mutated_files_are_the_same_to_dali(tmp_path: Path) -> None:
    require("dali")
    files = mutants(tmp_path, 80, seed=7)[::8]
    compare(files, [read(file, "cpu") for file in files], [read(f, "dali") for f in files], "dali")


@pytest.mark.parametrize("name", EACH_EPOCH)
def test_a_file_that_is_cut_off_during_a_run_is_one_line(name: str, tmp_path: Path) -> None:
    """A mapped file would end the process by a signal."""
    file = write(intact(), tmp_path / "a.beton")
    storage = open_beton(file)
    plan = plan_of(storage, 2)
    with closing(loader_of(name, storage, "skip")) as loader:
        next(loader.iterate(plan, 0))
        os.truncate(file, 4096)
        with pytest.raises(
            UserError, match=r"a\.beton was cut off during the run .*restore"
        ) as caught:
            list(loader.iterate(plan, 1))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", EACH_EPOCH)
def test_a_run_stays_with_the_file_that_it_has_opened(name: str, tmp_path: Path) -> None:
    """`pack` gives a new file the old one's name while another process reads the old one."""
    file = write(intact(), tmp_path / "a.beton")
    storage = open_beton(file)
    other = layout([jpeg(Image.new("RGB", (20, 20)))] * 12, [(20, 20)] * 12, [0] * 12)
    with closing(loader_of(name, storage)) as loader:
        os.replace(write(other, tmp_path / "b.beton"), file)
        plan = plan_of(storage, 4)
        assert all(batch.crops[0].float().std() > 5 for batch in loader.iterate(plan))
    with pytest.raises(UserError, match=r"a\.beton was replaced since it was opened"):
        pickle.loads(pickle.dumps(storage))


def test_a_copy_in_another_process_opens_the_file_again(tmp_path: Path) -> None:
    file = write(intact(), tmp_path / "a.beton")
    storage = open_beton(file)
    copy = pickle.loads(pickle.dumps(storage))
    assert copy.file.descriptor != storage.file.descriptor
    assert bytes(copy.read(5)) == bytes(storage.read(5))
    content = pickle.dumps(storage)
    file.unlink()
    with pytest.raises(UserError, match="was removed since it was opened"):
        pickle.loads(content)


def test_the_file_is_closed_with_its_last_user(tmp_path: Path) -> None:
    storage = open_beton(write(intact(), tmp_path / "a.beton"))
    descriptor = storage.file.descriptor
    os.fstat(descriptor)
    del storage
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "cannot be read"),
        ("[]", "no JSON object"),
        ("{", "cannot be read"),
        ("[" * 100_000, "RecursionError"),
        ('{"format": 2}', "format is '2', not 1"),
        ('{"classes": 3}', "classes is no list of names"),
        ('{"classes": {"0": "a"}}', "classes is no list of names"),
        ('{"images": [1, 2]}', "images is no list of names"),
        ('{"images": ["a"]}', "belongs to another file"),
        ('{"classes": ["a"]}', "belongs to another file"),
        ('{"bytes": 5}', "belongs to another file"),
        ('{"bytes": "many"}', "bytes is no number"),
        ('{"bytes": ' + "9" * 5000 + "}", "cannot be read"),
        ('{"crc32": [true]}', "crc32 is no list of numbers"),
        ('{"warned": ["a"]}', "warned is no object of texts"),
    ],
)
def test_a_forged_manifest_is_one_line(content: str, message: str, tmp_path: Path) -> None:
    file = write(intact(), tmp_path / "a.beton")
    manifest_path(file).write_text(content)
    with pytest.raises(UserError, match=message) as caught:
        open_beton(file)
    assert str(manifest_path(file)) in str(caught.value)
    assert "\n" not in str(caught.value)
    manifest_path(file).unlink()  # as the message says
    assert len(open_beton(file)) == 12


def test_any_name_survives_in_the_manifest(tmp_path: Path) -> None:
    """Names of files are any bytes, of which Python makes lone surrogates."""
    names = ["k/\udcff\udc80.jpg", "k/\x1b[31m.jpg", "k/a\nb.jpg", "k/ä.jpg", "k/\u2028.jpg"]
    names += [f"k/{number}.jpg" for number in range(7)]
    found = intact()
    file = write(found, tmp_path / "a.beton", manifest_of(found) | {"images": names})
    beton = open_beton(file)
    assert list(beton.paths) == names
    assert beton.name(1) == f"{file}, record 1 (k/\\x1b[31m.jpg)"
    assert beton.name(2) == f"{file}, record 2 (k/a\\nb.jpg)"


@pytest.mark.parametrize("what", ["file", "manifest"])
def test_a_named_pipe_does_not_hang(what: str, tmp_path: Path) -> None:
    file = tmp_path / "a.beton"
    if what == "file":
        os.mkfifo(file)
    else:
        os.mkfifo(manifest_path(write(intact(), file)))
    with pytest.raises(UserError, match=r"a\.beton.* is no regular file"):
        open_beton(file)


def test_a_folder_and_a_missing_file_are_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "a.beton").mkdir()
    with pytest.raises(UserError, match=r"a\.beton is a folder"):
        open_beton(tmp_path / "a.beton")
    with pytest.raises(UserError, match=r"b\.beton does not exist: make it with fastsimsiam pack"):
        open_beton(tmp_path / "b.beton")


def test_a_name_that_no_system_takes_is_no_traceback(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 5000)
    assert not has_split(long, "train")
    with pytest.raises(UserError, match=r"cannot be read \(File name too long\)"):
        open_beton(long.with_suffix(".beton"))


def overlap(found: Layout) -> None:
    """Lets the record of image 4 begin within that of image 3, in both tables."""
    pointer = found.get(found.row(3) + 5, "Q") + 10
    found.put(found.row(4) + 5, "Q", pointer)
    found.put(found.allocation(4) + 8, "Q", pointer)


def exchange(found: Layout) -> None:
    """Exchanges the records of images 3 and 4."""
    one, other = found.get(found.row(3) + 5, "Q"), found.get(found.row(4) + 5, "Q")
    found.put(found.row(3) + 5, "Q", other)
    found.put(found.row(4) + 5, "Q", one)


def overwrite(found: Layout) -> None:
    """Overwrites the JPEG of image 3 with that of image 5, of another size and content."""
    records, _ = photographs()
    pointer = found.get(found.row(3) + 5, "Q")
    length = found.get(found.allocation(3) + 16, "Q")
    found.content[pointer : pointer + length] = records[5].ljust(length, b"\0")[:length]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (overlap, "records 3 and 4 overlap"),
        (exchange, "record 3 was written for image 4"),
        (overwrite, "record 3 .*pixels"),
        (in_row(3, "H", 17), "record 3 .*pixels"),
        (in_row(16, "Q", 2), "the number of images of each class"),
        (in_row(16, "Q", 3), "belongs to another file"),
    ],
)
def test_verify_finds_what_opening_cannot(
    change: Callable[[Layout], None], message: str, tmp_path: Path
) -> None:
    found = intact()
    manifest = manifest_of(found) | {"images_of_class": [4, 4, 4], "sha256": "0" * 64}
    change(found)
    file = write(found, tmp_path / "a.beton", manifest)
    with pytest.raises(UserError, match=message):
        verify(file, workers=1)


def test_verify_names_the_records_that_the_decoder_warns_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = jpeg(textured_image(np.random.default_rng(2), 40, 56))
    warned = plain[: len(plain) // 2] + b"\xff\xd9"
    file = write(layout([plain, warned], [(40, 56)] * 2, [0, 0]), tmp_path / "a.beton")
    assert main(["pack", "--verify", str(file)]) == 0
    out = capsys.readouterr().out
    assert "the decoder warned of 1 images" in out
    assert f"  {file}, record 1 (1): " in out
    assert main(["pack", "--verify", str(file), "--on-bad-image", "error-strict"]) == 2
    assert "record 1 (1) cannot be decoded" in capsys.readouterr().err


def test_verify_by_command_tells_whether_there_was_a_manifest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(intact(), tmp_path / "a.beton")
    assert main(["pack", "--verify", str(file)]) == 0
    out = capsys.readouterr().out
    assert "12 images, all can be decoded" in out
    assert "without a manifest" in out
    manifest_path(file).write_text(json.dumps({"classes": ["a", "b", "c"]}))
    assert main(["pack", "--verify", str(file)]) == 2
    assert "lists no images, classes or checksum" in capsys.readouterr().err
