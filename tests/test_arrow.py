"""Arrow files as `datasets` writes them: the images of class folders, and what is wrong with some."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from as_stored import (
    as_table,
    classes_in,
    datasets_cache,
    files_of,
    saved_to_disk,
    tables,
    write_arrow,
)

from fastsimsiam.cli import main
from fastsimsiam.errors import BadImageError, UserError
from fastsimsiam.storage import packed_index
from fastsimsiam.storage.base import Storage
from fastsimsiam.storage.beton import open_beton
from fastsimsiam.storage.open import has_split, open_source, open_split
from fastsimsiam.storage.passed_over import notes
from fastsimsiam.tools.pack import PackOptions, pack

FORMS: dict[str, Callable[[Path, Path], Path]] = {
    "saved": saved_to_disk,
    "cache": datasets_cache,
    "saved, file format": lambda data, target: saved_to_disk(data, target, stream=False),
    "cache, file format": lambda data, target: datasets_cache(data, target, stream=False),
}


def assert_same(found: Storage, expected: Storage) -> None:
    """The same bytes, sizes and labels in the same order."""
    np.testing.assert_array_equal(found.sizes, expected.sizes)
    np.testing.assert_array_equal(found.orientation, expected.orientation)
    np.testing.assert_array_equal(found.label, expected.label)
    assert list(found.classes) == list(expected.classes)
    assert found.bytes_total == expected.bytes_total
    for index in range(len(expected)):
        found.will_need(index)
        assert bytes(found.read(index)) == bytes(expected.read(index))


@pytest.mark.parametrize("form", FORMS)
def test_the_images_are_those_of_class_folders(
    class_folders: Path, tmp_path: Path, form: str
) -> None:
    data = FORMS[form](class_folders, tmp_path / "data")
    train = open_split(data, "train")
    val = open_split(data, "val", classes=train.classes)
    for split, found in (("train", train), ("val", val)):
        assert has_split(data, split)
        assert_same(found, open_split(class_folders, split))
        assert notes(found) == []
        assert found.is_packed
    assert len(set(train.paths)) == 96
    assert train.paths[0].endswith("-00000-of-00003.arrow/ant_00.png")


@pytest.mark.parametrize("form", FORMS)
def test_the_index_is_read_once(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    """And without pyarrow from then on; both splits of one folder have an index."""
    data = FORMS[form](class_folders, tmp_path / "data")
    said: list[tuple[int, int]] = []
    first = open_split(data, "train", report=lambda done, total: said.append((done, total)))
    val = open_split(data, "val")
    assert said
    assert all(done <= total for done, total in said)
    monkeypatch.setattr(packed_index, "header_of", lambda file: pytest.fail("read again"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    again = open_split(data, "train", report=lambda done, total: pytest.fail("work"))
    assert again.paths == first.paths
    assert list(again.classes) == list(first.classes)
    for name in ("label", "sizes", "orientation", "position", "length"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
    assert open_split(data, "val").paths == val.paths
    assert_same(again, open_split(class_folders, "train"))


def test_reading_needs_no_pyarrow(class_folders: Path, tmp_path: Path) -> None:
    data = saved_to_disk(class_folders, tmp_path / "data")
    open_split(data, "train")
    code = (
        "import sys\nfrom pathlib import Path\nfrom fastsimsiam.storage.open import open_split\n"
        "found = open_split(Path(sys.argv[1]), 'train')\n"
        "assert sum(len(found.read(i)) for i in range(96)) == found.bytes_total\n"
        "assert 'pyarrow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(data)], check=True)


def test_a_missing_pyarrow_is_one_line(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = saved_to_disk(class_folders, tmp_path / "data")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"00003.arrow needs pyarrow: pip install 'fastsimsiam\["):
        open_split(data, "train")


@pytest.mark.parametrize("form", ["saved", "cache"])
def test_packed_they_are_what_class_folders_are(
    class_folders: Path, tmp_path: Path, form: str
) -> None:
    data = FORMS[form](class_folders, tmp_path / "data")
    pack(open_source(data), tmp_path / "a.beton", PackOptions(), workers=2)
    pack(open_source(class_folders), tmp_path / "b.beton", PackOptions(), workers=2)
    assert (tmp_path / "a.beton").read_bytes() == (tmp_path / "b.beton").read_bytes()
    found = [open_beton(tmp_path / name).classes for name in ("a.beton", "b.beton")]
    assert found == [["ant", "bee", "cow"]] * 2


def one_file(folder: Path, table: pa.Table, name: str = "data-00000-of-00001.arrow") -> Path:
    """A folder with an Arrow file of one batch."""
    folder.mkdir(parents=True, exist_ok=True)
    write_arrow(table, folder / name)
    return folder


def few(class_folders: Path, count: int = 4) -> pa.Table:
    """Some images of two classes."""
    files = files_of(class_folders / "train")[32 - count // 2 : 32 + count // 2]
    return as_table(files, classes_in(files))


def classes_of(storage: Storage) -> list[str]:
    return [storage.classes[label] for label in storage.label.tolist()]


def replaced(table: pa.Table, name: str, column: object, **feature: object) -> pa.Table:
    """A table with another column, of which `datasets` knows `feature`, or nothing."""
    about = json.loads(table.schema.metadata[b"huggingface"])
    about["info"]["features"].pop(name, None)
    if feature:
        about["info"]["features"][name] = feature
    if name in table.column_names:
        table = table.drop_columns([name])
    if not isinstance(column, pa.Array | pa.ChunkedArray):
        column = pa.array(column)
    table = table.append_column(name, column)
    return table.replace_schema_metadata({"huggingface": json.dumps(about)})


@pytest.mark.parametrize(
    ("name", "column", "feature", "expected"),
    [
        ("label", [3, 10, 3, 3], {}, ["3", "10", "3", "3"]),
        ("label", pa.array([3, 1, 3, 3], pa.int8()), {}, ["3", "1", "3", "3"]),
        ("labels", ["x", "y", "x", "x"], {}, ["x", "y", "x", "x"]),
        ("fine_label", pa.array(["x", "y", "x", "x"], pa.large_string()), {}, ["x", "y", "x", "x"]),
        ("label", pa.array(["x", "y", "x", "x"]).dictionary_encode(), {}, ["x", "y", "x", "x"]),
        ("label", pa.array([7, 5, 7, 7]).dictionary_encode(), {}, ["7", "5", "7", "7"]),
        ("label", [True, False, True, True], {}, ["true", "false", "true", "true"]),
        ("kind", [1, 0, 1, 1], {"_type": "ClassLabel", "names": ["q", "p"]}, ["p", "q", "p", "p"]),
        ("kind", [1, 0, 1, 1], {}, ["unlabeled"] * 4),
        ("label", [-1, -1, -1, -1], {"_type": "ClassLabel", "names": ["p"]}, ["unlabeled"] * 4),
        ("label", [-1, -1, -1, -1], {}, ["unlabeled"] * 4),
        ("label", pa.array([None] * 4, pa.string()), {}, ["unlabeled"] * 4),
        ("label", ["", "", "", ""], {}, ["unlabeled"] * 4),
    ],
)
def test_labels(
    class_folders: Path,
    tmp_path: Path,
    name: str,
    column: object,
    feature: dict[str, object],
    expected: list[str],
) -> None:
    table = few(class_folders).drop_columns(["label"])
    found = open_split(one_file(tmp_path, replaced(table, name, column, **feature)), "train")
    assert classes_of(found) == expected
    assert notes(found) == []


@pytest.mark.parametrize(
    ("columns", "number"),
    [
        ({"label": [[1], [2], [3], [4]]}, 4),
        ({"label": [0.5, 1.5, 2.5, 3.5]}, 4),
        ({"one": [0, 1, 1, 0], "two": [0, 1, 1, 0]}, 8),
    ],
)
def test_classes_in_another_type_or_name_are_counted(
    class_folders: Path, tmp_path: Path, columns: dict[str, object], number: int
) -> None:
    table = few(class_folders).drop_columns(["label"])
    for name, column in columns.items():
        feature = {} if name == "label" else {"_type": "ClassLabel", "names": ["p", "q"]}
        table = replaced(table, name, column, **feature)
    found = open_split(one_file(tmp_path, table), "train")
    assert list(found.classes) == ["unlabeled"]
    assert found.passed_over == {"labels in columns of another type or name": number}


def test_classes_of_labels_are_told_by_their_names(class_folders: Path, tmp_path: Path) -> None:
    """Files may number them in another way, and the validation split may."""
    table = few(class_folders)
    one_file(tmp_path, table, "x-train-0.arrow")
    other = replaced(table, "label", [0, 0, 1, 1], _type="ClassLabel", names=["bee", "ant"])
    one_file(tmp_path, other, "x-train-1.arrow")
    one_file(tmp_path, other, "x-test.arrow")
    train = open_split(tmp_path, "train")
    assert classes_of(train) == ["ant", "ant", "bee", "bee", "bee", "bee", "ant", "ant"]
    assert train.passed_over == {"files of other splits": 1}
    assert not has_split(tmp_path, "val")
    (tmp_path / "x-test.arrow").rename(tmp_path / "x-val.arrow")
    val = open_split(tmp_path, "val", classes=train.classes)
    assert val.label.tolist() == [1, 1, 0, 0]


def images(table: pa.Table) -> list[dict[str, object]]:
    return table.column("image").to_pylist()


@pytest.mark.parametrize("told", [True, False])
def test_columns_of_images(class_folders: Path, tmp_path: Path, told: bool) -> None:
    """Structs, with large offsets too, or plain bytes; known by metadata or by their type."""
    table = few(class_folders)
    content = [row["bytes"] for row in images(table)]
    struct = pa.struct({"path": pa.string(), "bytes": pa.large_binary()})
    kinds = {
        "pixels": pa.array(images(table), struct),
        "picture": pa.array(content),
        "photo": pa.array(content, pa.large_binary()),
    }
    for name, column in kinds.items():
        feature = {"_type": "Image"} if told else {}
        other = replaced(table.drop_columns(["image"]), name, column, **feature)
        found = open_split(one_file(tmp_path / name, other), "train")
        assert [bytes(found.read(i)) for i in range(4)] == content
        assert found.label.tolist() == [0, 0, 1, 1]


def test_rows_without_paths_of_their_own_are_named_by_number(
    class_folders: Path, tmp_path: Path
) -> None:
    rows = images(few(class_folders))
    for number, path in enumerate((None, "", "same")):
        changed = [row | {"path": path if i < 2 else f"{i}.jpg"} for i, row in enumerate(rows)]
        table = replaced(few(class_folders), "image", pa.array(changed, IMAGE), _type="Image")
        one_file(tmp_path, table, f"{number}.arrow")
    paths = list(open_split(tmp_path, "train").paths)
    assert paths == [f"{number}.arrow/{row}" for number in range(3) for row in range(4)]


def test_without_metadata_structs_are_images_rather_than_bytes(
    class_folders: Path, tmp_path: Path
) -> None:
    table = few(class_folders).rename_columns(["photo", "label"])
    table = table.add_column(0, "image", [[b"a", b"b", b"c", b"d"]]).replace_schema_metadata(None)
    found = open_split(one_file(tmp_path, table), "train")
    expected = [row["bytes"] for row in images(few(class_folders))]
    assert [bytes(found.read(i)) for i in range(4)] == expected
    assert notes(found) == []


IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def test_several_columns_of_images(class_folders: Path, tmp_path: Path) -> None:
    """The one called image is it; the masks are counted."""
    table = few(class_folders)
    masks = table.column("image").take(pa.array([3, 2, 1, 0]))
    both = replaced(table, "annotation", masks, _type="Image")
    both = both.select(["annotation", "label", "image"])
    found = open_split(one_file(tmp_path / "a", both), "train")
    assert [bytes(found.read(i)) for i in range(4)] == [row["bytes"] for row in images(table)]
    assert found.passed_over == {"further images of samples": 4}
    neither = replaced(both.drop_columns(["image"]), "left", masks, _type="Image")
    with pytest.raises(UserError, match=r"several columns of images \(annotation, left\): rename"):
        open_split(one_file(tmp_path / "b", neither), "train")


def test_sounds_are_no_images(class_folders: Path, tmp_path: Path) -> None:
    table = few(class_folders)
    sounds = replaced(table, "image", table.column("image"), _type="Audio")
    with pytest.raises(
        UserError, match=r"no column of encoded images \(it has label: int64, image"
    ):
        open_split(one_file(tmp_path, sounds), "train")


def test_images_without_bytes_are_unreadable(class_folders: Path, tmp_path: Path) -> None:
    rows = images(few(class_folders))
    rows[1] = NOTHING
    parts = [pa.array([row[name] for row in rows]) for name in ("bytes", "path")]
    masked = pa.StructArray.from_arrays(
        parts, fields=list(IMAGE), mask=pa.array([False, False, True, False])
    )
    table = replaced(few(class_folders), "image", masked, _type="Image")
    for _ in range(2):  # not from the index alone
        found = open_split(one_file(tmp_path, table), "train")
        assert found.unreadable == {1: "without bytes", 2: "without bytes"}
        assert bytes(found.read(3)) == rows[3]["bytes"]
        with pytest.raises(
            UserError, match=r"arrow/1 is without bytes \(and 1 more\): fetch or make"
        ):
            found.require_readable()


def test_a_batch_of_images_without_bytes(class_folders: Path, tmp_path: Path) -> None:
    empty = with_rows(class_folders, lambda rows: [row.update(NOTHING) for row in rows])
    found = open_split(one_file(tmp_path, empty), "train")
    assert found.unreadable == dict.fromkeys(range(4), "without bytes")
    for row in range(4):
        with pytest.raises(BadImageError, match=f"arrow/{row} is without bytes"):
            found.read(row)


NOTHING = {"bytes": None, "path": None}


def test_an_image_without_a_header_is_unreadable(class_folders: Path, tmp_path: Path) -> None:
    rows = images(few(class_folders))
    rows[1] = rows[1] | {"bytes": b"no image"}
    table = replaced(few(class_folders), "image", pa.array(rows, IMAGE), _type="Image")
    found = open_split(one_file(tmp_path, table), "train")
    assert [index for index, reason in found.unreadable.items() if "not a readable" in reason] == [
        1
    ]


def with_rows(class_folders: Path, change: Callable[[list[dict[str, object]]], object]) -> pa.Table:
    rows = images(few(class_folders))
    change(rows)
    return replaced(few(class_folders), "image", pa.array(rows, IMAGE), _type="Image")


REFUSED: dict[str, Callable[[Path], tuple[pa.Table, str]]] = {
    "paths alone": lambda data: (
        with_rows(data, lambda rows: rows[2].update(bytes=None, path="/data/x.jpg")),
        r"has the path of an image in its place \(/data/x.jpg\): pass the folder of the image",
    ),
    "old paths": lambda data: (
        replaced(few(data), "image", ["a.jpg"] * 4, _type="Image"),
        r"a column of images, image, of the type string: expected struct<bytes",
    ),
    "no images": lambda data: (
        few(data).drop_columns(["image"]),
        r"no column of encoded images \(it has label: int64\)",
    ),
    "dictionary": lambda data: (
        replaced(few(data), "image", pa.array([b"x"] * 4).dictionary_encode(), _type="Image"),
        r"of the type dictionary<values=binary.*: expected struct<bytes",
    ),
    "several": lambda data: (
        replaced(few(data), "image", pa.array([[b"x"]] * 4)),
        r"no column of encoded images \(it has label: int64, image: list",
    ),
    "beyond": lambda data: (
        replaced(few(data), "label", [0, 1, 2, 0], _type="ClassLabel", names=["a", "b"]),
        r"has a label 2, and names 2 classes",
    ),
    "negative": lambda data: (
        replaced(few(data), "label", [0, 1, -2, 0], _type="ClassLabel", names=["a", "b"]),
        r"has a label -2, and names 2 classes",
    ),
    "twice": lambda data: (
        replaced(few(data), "label", [0, 1, 1, 0], _type="ClassLabel", names=["a", "a"]),
        r"has 2 classes of the name a: give each its own",
    ),
    "some labels": lambda data: (
        replaced(few(data), "label", pa.array([0, None, 1, 0])),
        r"1 of 4 images have no label",
    ),
    "no rows": lambda data: (few(data).slice(0, 0), r"no images in the 1 file of"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused(class_folders: Path, tmp_path: Path, what: str) -> None:
    table, message = REFUSED[what](class_folders)
    with pytest.raises(UserError, match=message) as caught:
        open_split(one_file(tmp_path, table), "train")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_compressed_files_are_refused(
    class_folders: Path, tmp_path: Path, stream: bool, compression: str
) -> None:
    write_arrow(few(class_folders), tmp_path / "0.arrow", stream=stream, compression=compression)
    with pytest.raises(
        UserError, match=r"0.arrow is compressed, so .* save it without compression"
    ):
        open_split(tmp_path, "train")


def test_sliced_batches(class_folders: Path, tmp_path: Path) -> None:
    """A writer may keep the whole buffers, and write where the part begins."""
    table = few(class_folders).combine_chunks()
    with open(tmp_path / "0.arrow", "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        for batch in table.to_batches():
            writer.write_batch(batch.slice(1, 2))
            writer.write_batch(batch.slice(3, 0))
            writer.write_batch(batch.slice(3, 1))
    found = open_split(tmp_path, "train")
    expected = [row["bytes"] for row in images(table)[1:]]
    assert [bytes(found.read(i)) for i in range(3)] == expected
    assert found.label.tolist() == [0, 1, 1]


def test_places_in_a_part_of_a_column() -> None:
    from fastsimsiam.storage.arrow import _places

    for kind in (pa.binary(), pa.large_binary()):
        column = pa.array([b"one", b"", b"three", b"four"], kind)
        data = column.buffers()[2]
        position, length = _places(Path("x"), column.slice(1, 3), data)
        assert position.tolist() == [3, 3, 8]
        assert length.tolist() == [0, 5, 4]
        assert [len(part) for part in _places(Path("x"), column.slice(2, 0), data)] == [0, 0]


@pytest.mark.parametrize("stream", [True, False])
def test_a_file_cut_off_anywhere_is_refused(
    class_folders: Path, tmp_path: Path, stream: bool
) -> None:
    write_arrow(few(class_folders), tmp_path / "0.arrow", stream=stream, rows=2)
    whole = (tmp_path / "0.arrow").read_bytes()
    ends = [len(whole) - 1, len(whole) - 8, *range(1, len(whole), len(whole) // 40)]
    for end in ends:
        (tmp_path / "0.arrow").write_bytes(whole[:end])
        with pytest.raises(
            UserError, match=r"0.arrow is cut off or damaged \(.*\): fetch it again"
        ):
            open_split(tmp_path, "train")
    (tmp_path / "0.arrow").write_bytes(whole)
    assert len(open_split(tmp_path, "train")) == 4


def test_a_stream_that_stops_between_batches_is_refused(
    class_folders: Path, tmp_path: Path
) -> None:
    """Of itself, pyarrow reads the batches before the gap, and says nothing."""
    write_arrow(few(class_folders), tmp_path / "0.arrow", rows=2)
    whole = bytearray((tmp_path / "0.arrow").read_bytes())
    last = whole.rindex(b"\xff\xff\xff\xff", 0, len(whole) - 8)
    gap = bytes(8)
    for content in (whole[:last], whole[:last] + gap, whole[:last] + gap + whole[last + 8 :]):
        (tmp_path / "0.arrow").write_bytes(content)
        with pytest.raises(UserError, match=r"\(it does not end as it should\)"):
            open_split(tmp_path, "train")


def test_positions_that_cannot_be_are_refused(class_folders: Path, tmp_path: Path) -> None:
    table = few(class_folders)
    write_arrow(table, tmp_path / "0.arrow")
    whole = (tmp_path / "0.arrow").read_bytes()
    ends = np.cumsum([0] + [len(row["bytes"]) for row in images(table)]).astype(np.int32)
    paths = np.cumsum([0] + [len(row["path"]) for row in images(table)]).astype(np.int32)
    for numbers, number, value in (
        *((ends, 1, -5), (ends, 2, 0), (ends, 4, 1 << 30)),
        *((paths, 1, -5), (paths, 2, 0), (paths, 2, 1 << 30)),
    ):
        place = whole.index(numbers.tobytes())
        changed = numbers.copy()
        changed[number] = value
        content = whole[:place] + changed.tobytes() + whole[place + numbers.nbytes :]
        (tmp_path / "0.arrow").write_bytes(content)
        with pytest.raises(UserError, match=r"0.arrow is cut off or damaged"):
            open_split(tmp_path, "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0.arrow is empty: fetch it again"),
        (b"x" * 5000, "0.arrow is cut off or damaged"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer.*git lfs pull"),
    ],
)
def test_what_is_no_arrow_file(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "0.arrow").write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_split(tmp_path, "train")


def test_the_order_is_that_of_save_to_disk(class_folders: Path, tmp_path: Path) -> None:
    data = saved_to_disk(class_folders, tmp_path / "data") / "train"
    one_file(data, few(class_folders), "data-00003-of-00004.arrow")  # of an earlier save
    state = json.loads((data / "state.json").read_text())
    state["_data_files"].reverse()
    (data / "state.json").write_text(json.dumps(state))
    found = open_split(data, "train")
    folders = open_split(class_folders, "train")
    assert len(found) == 96
    assert bytes(found.read(0)) == bytes(folders.read(64))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ("{", r"state.json is cut off or damaged \(JSONDecodeError"),
        ("[]", "state.json is cut off or damaged"),
        ("{}", r"damaged \(KeyError: '_data_files'\)"),
        ('{"_data_files": []}', "state.json lists no files: copy the folder again"),
        (
            '{"_data_files": [{"filename": "b.arrow"}]}',
            "b.arrow, which is missing: copy the folder",
        ),
        (
            '{"_data_files": [{"filename": "a.arrow"}], "_indices_data_files": [{"filename": "i"}]}',
            r"call flatten_indices\(\) before save_to_disk",
        ),
    ],
)
def test_a_damaged_list_of_files(
    class_folders: Path, tmp_path: Path, state: str, message: str
) -> None:
    one_file(tmp_path, few(class_folders), "a.arrow")
    (tmp_path / "state.json").write_text(state)
    with pytest.raises(UserError, match=message):
        open_split(tmp_path, "train")


def test_results_that_datasets_keeps_are_no_data(class_folders: Path, tmp_path: Path) -> None:
    data = datasets_cache(class_folders, tmp_path / "data")
    one_file(data, pa.table({"indices": [3, 1]}), "cache-0123456789abcdef.arrow")
    found = open_split(data, "train")
    assert len(found) == 96
    assert notes(found) == []


def test_files_and_patterns_of_files(class_folders: Path, tmp_path: Path) -> None:
    data = datasets_cache(class_folders, tmp_path / "data")
    pattern = data / "tiny-dev-images-train-0000[12]-*.arrow"
    assert len(open_split(pattern, "train")) == 64
    assert not has_split(pattern, "val")
    assert len(open_split(data / "tiny-dev-images-validation.arrow", "train")) == 24
    both = tmp_path / "d*" / "tiny-dev-images-[tv]*.arrow"
    assert len(set(open_split(both, "train").paths)) == 120
    for name in ("a", "b"):
        one_file(tmp_path / "apart" / name, few(class_folders), "0.arrow")
    apart = open_split(tmp_path / "apart" / "*" / "0.arrow", "train")
    assert apart.paths[::4] == ["a/0.arrow/ant_30.JPEG", "b/0.arrow/ant_30.JPEG"]
    with pytest.raises(UserError, match=r"x\*.arrow: there is no such file"):
        open_split(data / "x*.arrow", "train")
    with pytest.raises(UserError, match="does not exist"):
        open_split(data / "x.arrow", "train")


def test_a_file_beside_class_folders_is_left_alone(class_folders: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split).symlink_to(class_folders / split)
    one_file(tmp_path, few(class_folders), "train.arrow")
    assert len(open_split(tmp_path, "train")) == 96
    for folder in (class_folders / "train").iterdir():
        (tmp_path / "flat" / folder.name).parent.mkdir(exist_ok=True)
        (tmp_path / "flat" / folder.name).symlink_to(folder)
    one_file(tmp_path / "flat", few(class_folders), "train.arrow")
    assert len(open_split(tmp_path / "flat", "train")) == 96


def test_a_file_that_changes_during_the_run(class_folders: Path, tmp_path: Path) -> None:
    one_file(tmp_path, few(class_folders), "0.arrow")
    found = open_split(tmp_path, "train")
    os.utime(tmp_path / "0.arrow", (1, 1))
    with pytest.raises(UserError, match=r"0.arrow was changed since it was opened: start"):
        found.read(0)
    found = open_split(tmp_path, "train")
    found.read(0)
    os.truncate(tmp_path / "0.arrow", 600)
    with pytest.raises(UserError, match=r"0.arrow/.* is beyond the end of its file"):
        found.read(0)


def test_the_command_pack_reads_them(
    class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = datasets_cache(class_folders, tmp_path / "data")
    for split, count in (("train", 96), ("val", 24)):
        assert main(["pack", str(data), str(data / f"{split}.beton"), "--split", split]) == 0
        assert f"{split}.beton: {count} images of 3 classes" in capsys.readouterr().out
    # What was packed lies beside its source, and is not packed again in its place.
    assert len(open_source(data)) == 96
    assert type(open_source(data)) is not type(open_split(data, "train"))


def test_the_command_views_takes_a_file(class_folders: Path, tmp_path: Path) -> None:
    one_file(tmp_path, few(class_folders), "0.arrow")
    out = tmp_path / "views.png"
    argv = ["views", str(tmp_path / "0.arrow"), "--out", str(out), "--images", "2"]
    assert main([*argv, "--image-size", "32"]) == 0
    assert out.stat().st_size


def test_parts_of_a_split_are_named_apart(class_folders: Path) -> None:
    """The makers of these tests: three files of 32 images."""
    assert [len(table) for table in tables(class_folders, "train")] == [32] * 3
