"""Parquet files: packed in their order, with bounded memory, and refused by everything else."""

import os
import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from as_stored import as_table, classes_in, files_of, hub_parquet
from pyarrow import parquet

import fastsimsiam
from fastsimsiam.cli import main
from fastsimsiam.config.run import Config
from fastsimsiam.errors import UserError
from fastsimsiam.storage import row_groups
from fastsimsiam.storage.base import Storage
from fastsimsiam.storage.beton import open_beton
from fastsimsiam.storage.open import has_split, open_source, open_split
from fastsimsiam.storage.passed_over import notes
from fastsimsiam.tools.pack import PackOptions, pack
from fastsimsiam.train.pretrain import pretrain


def few(class_folders: Path, count: int = 4) -> pa.Table:
    """Some images of two classes."""
    files = files_of(class_folders / "train")[32 - count // 2 : 32 + count // 2]
    return as_table(files, classes_in(files))


def one_file(folder: Path, table: pa.Table, name: str = "0.parquet", **options: object) -> Path:
    """A folder with a Parquet file."""
    folder.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, folder / name, **options)
    return folder


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """File and number of each row group that is decoded from now on."""
    found: list[tuple[str, int]] = []
    original = row_groups.read_group

    def counting(path, parquet, number, columns):
        found.append((path.name, number))
        return original(path, parquet, number, columns)

    monkeypatch.setattr(row_groups, "read_group", counting)
    return found


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_images_are_those_of_class_folders(
    class_folders: Path, tmp_path: Path, split: str
) -> None:
    data = hub_parquet(class_folders, tmp_path / "data")
    said: list[tuple[int, int]] = []
    found = open_source(data, split, report=lambda done, total: said.append((done, total)))
    folders = open_split(class_folders, split)
    assert said[-1] == (len(folders), len(folders))
    assert has_split(data, split)
    np.testing.assert_array_equal(found.sizes, folders.sizes)
    np.testing.assert_array_equal(found.orientation, folders.orientation)
    np.testing.assert_array_equal(found.label, folders.label)
    assert list(found.classes) == list(folders.classes)
    assert found.bytes_total == folders.bytes_total
    assert notes(found) == []
    assert len(set(found.paths)) == len(folders)
    for index in range(len(folders)):
        found.will_need(index)
        assert bytes(found.read(index)) == bytes(folders.read(index))
        assert found.file_of(index).name == found.paths[index].partition("/")[0]
    copy = pickle.loads(pickle.dumps(found))
    assert bytes(copy.read(3)) == bytes(folders.read(3))


def test_packed_they_are_what_class_folders_are(
    class_folders: Path, tmp_path: Path, decoded: list[tuple[str, int]]
) -> None:
    """Threads read ahead of each other, and no row group is decoded twice."""
    data = hub_parquet(class_folders, tmp_path / "data")
    pack(open_source(data), tmp_path / "a.beton", PackOptions(), workers=3)
    pack(open_source(class_folders), tmp_path / "b.beton", PackOptions(), workers=3)
    assert (tmp_path / "a.beton").read_bytes() == (tmp_path / "b.beton").read_bytes()
    assert open_beton(tmp_path / "a.beton").classes == ["ant", "bee", "cow"]
    assert len(decoded) == 12
    assert len(set(decoded)) == 12


def test_memory_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[tuple[str, int]]
) -> None:
    """20 row groups of a megabyte, of which two or three are in memory."""
    monkeypatch.setattr(row_groups, "_KEPT_BYTES", 2_500_000)
    rng = np.random.default_rng(0)
    content = [rng.bytes(100_000) for _ in range(200)]
    one_file(tmp_path, pa.table({"image": pa.array(content)}), row_group_size=10)
    del content
    before = pa.total_allocated_bytes()
    found = open_source(tmp_path)
    most = 0
    for index in range(200):
        assert len(found.read(index)) == 100_000
        most = max(most, pa.total_allocated_bytes() - before)
    assert 1_000_000 < most < 5_000_000
    assert decoded == [("0.parquet", number) for number in range(20)]
    # One that was kept is not decoded again, and one that was not is.
    found.read(185)
    assert len(decoded) == 20
    found.read(0)
    assert decoded[-1] == ("0.parquet", 0)


def test_huge_row_groups_are_refused(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_file(tmp_path, few(class_folders))
    monkeypatch.setattr(row_groups, "_LARGEST", 1000)
    with pytest.raises(UserError, match=r"0.parquet has row groups of .* with row groups of 100"):
        open_source(tmp_path)


def test_everything_but_pack_refuses_them(
    class_folders: Path, tmp_path: Path, tiny_config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    data = hub_parquet(class_folders, tmp_path / "data")
    pattern = rf"{data} holds Parquet files, .*: fastsimsiam pack {data} train.beton --split train$"
    with pytest.raises(UserError, match=pattern):
        open_split(data, "train")
    with pytest.raises(UserError, match=rf"pack {data} val.beton --split val$"):
        open_split(data, "val")
    with pytest.raises(UserError, match=pattern):
        fastsimsiam.Loader(data, batch_size=4, device="cpu")
    with pytest.raises(UserError, match=pattern):
        pretrain(replace(tiny_config, data=data))
    file = data / "data" / "train-00000-of-00003.parquet"
    for argv in (
        ["doctor", "--recipe", "imagenette", "--data", str(data)],
        ["views", str(data), "--out", str(tmp_path / "views.png")],
        ["views", str(file), "--out", str(tmp_path / "views.png")],
    ):
        assert main(argv) == 2
        error = capsys.readouterr().err
        assert "can be read only in their order" in error
        assert error.count("\n") == 1


def test_what_the_refusal_says_can_be_typed(
    class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For the layout of the Hub, and for a folder of each split."""
    hub = hub_parquet(class_folders, tmp_path / "hub")
    folders = tmp_path / "folders"
    for name in ("train", "validation"):
        (folders / name).mkdir(parents=True)
        for file in (hub / "data").glob(f"{name}-*"):
            (folders / name / file.name).symlink_to(file)
    for data in (hub, folders):
        for split, count in (("train", 96), ("val", 24)):
            with pytest.raises(UserError) as caught:
                open_split(data, split)
            argv = str(caught.value).rpartition("fastsimsiam ")[2].split()
            argv[2] = str(tmp_path / argv[2])
            assert main(argv) == 0
            assert f"{count} images of 3 classes" in capsys.readouterr().out


def test_labels_and_names_are_those_of_arrow_files(class_folders: Path, tmp_path: Path) -> None:
    table = few(class_folders)
    plain = table.drop_columns(["label"]).append_column("label", [["x", "y", "x", "y"]])
    found = open_source(one_file(tmp_path / "a", plain.replace_schema_metadata(None)))
    assert [found.classes[label] for label in found.label.tolist()] == ["x", "y", "x", "y"]
    assert found.paths[0] == "0.parquet/ant_30.JPEG"
    none = table.drop_columns(["label"])
    assert open_source(one_file(tmp_path / "b", none)).classes == ["unlabeled"]
    for name in ("c-train.parquet", "c-val.parquet", "c-test.parquet"):
        one_file(tmp_path / "c", table, name)
    found = open_source(tmp_path / "c")
    assert found.passed_over == {"files of other splits": 1}


def test_broken_images_are_named(class_folders: Path, tmp_path: Path) -> None:
    rows = few(class_folders).column("image").to_pylist()
    rows[1] = rows[1] | {"bytes": b"no image"}
    rows[2] = {"bytes": None, "path": None}
    table = pa.table({"image": pa.array(rows)})
    found = open_source(one_file(tmp_path, table))
    assert list(found.unreadable) == [1, 2]
    assert found.unreadable[2] == "without bytes"
    with pytest.raises(UserError, match=r"0.parquet/1 is not a readable image .*\(and 1 more\)"):
        pack(found, tmp_path / "a.beton", PackOptions(), workers=1)
    manifest = pack(found, tmp_path / "a.beton", PackOptions(), workers=1, on_bad_image="skip")
    assert manifest["images_total"] == 2
    assert list(manifest["left_out"]) == ["0.parquet/1", "0.parquet/2"]


def paths_alone(data: Path) -> pa.Table:
    rows = [{"bytes": None, "path": "x.jpg"}] * 4
    return pa.table(
        {"image": pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))}
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (paths_alone, r"has the path of an image in its place \(x.jpg\)"),
        (lambda data: few(data).drop_columns(["image"]), "no column of encoded images"),
        (lambda data: few(data).slice(0, 0), "no images in the Parquet files of"),
    ],
)
def test_refused(
    class_folders: Path, tmp_path: Path, make: Callable[[Path], pa.Table], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        open_source(one_file(tmp_path, make(class_folders)))


def test_a_file_cut_off_anywhere_is_refused(class_folders: Path, tmp_path: Path) -> None:
    one_file(tmp_path, few(class_folders), row_group_size=2)
    whole = (tmp_path / "0.parquet").read_bytes()
    for end in (len(whole) - 1, len(whole) - 8, *range(1, len(whole), len(whole) // 20)):
        (tmp_path / "0.parquet").write_bytes(whole[:end])
        with pytest.raises(UserError, match=r"0.parquet is cut off or damaged \(.*\): fetch it"):
            open_source(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "0.parquet is empty: fetch it again"),
        (b"PAR1" + b"x" * 5000 + b"PAR1", "0.parquet is cut off or damaged"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer.*git lfs pull"),
    ],
)
def test_what_is_no_parquet_file(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "0.parquet").write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_source(tmp_path)


def damage(file: Path, content: bytes) -> None:
    """Changes a byte of an image, with the time of the file as it was."""
    status, whole = file.stat(), bytearray(file.read_bytes())
    whole[whole.index(content) + len(content) // 2] ^= 1
    file.write_bytes(whole)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_damage_in_a_row_group_is_found_by_its_checksum(
    class_folders: Path, tmp_path: Path
) -> None:
    table = few(class_folders)
    options = {
        "compression": "none",
        "use_dictionary": False,
        "write_page_checksum": True,
        "write_statistics": False,
    }
    one_file(tmp_path, table, **options)
    found = open_source(tmp_path)
    damage(tmp_path / "0.parquet", table.column("image")[2]["bytes"].as_py())
    for use in (lambda: found.read(0), lambda: open_source(tmp_path)):
        with pytest.raises(UserError, match=r"0.parquet is cut off or damaged \(.*CRC"):
            use()


def test_a_file_that_changes_meanwhile(class_folders: Path, tmp_path: Path) -> None:
    one_file(tmp_path, few(class_folders))
    found = open_source(tmp_path)
    found = pickle.loads(pickle.dumps(found))  # which has opened nothing
    os.utime(tmp_path / "0.parquet", (1, 1))
    with pytest.raises(UserError, match=r"0.parquet was changed since it was opened: start"):
        found.read(0)


def test_a_missing_pyarrow_is_one_line(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_file(tmp_path, few(class_folders))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        UserError, match=r"0.parquet needs pyarrow: pip install 'fastsimsiam\[arrow"
    ):
        open_source(tmp_path)


def test_class_folders_beside_another_file_are_the_source(
    class_folders: Path, tmp_path: Path
) -> None:
    """What people unpack stays where it was."""
    for folder in (class_folders / "train").iterdir():
        (tmp_path / folder.name).symlink_to(folder)
    (tmp_path / "ILSVRC2012_img_val.tar").touch()
    assert len(open_source(tmp_path)) == 96


def test_names_in_errors(class_folders: Path, tmp_path: Path) -> None:
    found: Storage = open_source(one_file(tmp_path, few(class_folders)))
    assert found.name(1) == f"{tmp_path}/0.parquet: 0.parquet/ant_31.JPEG"
