"""Class folders: what is found, what is refused, and an index that is never stale."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastsimsiam.errors import UserError
from fastsimsiam.storage import header_index
from fastsimsiam.storage.cached_arrays import cache_file
from fastsimsiam.storage.class_folder import open_split


def save(path: Path, size: tuple[int, int] = (12, 8), **options: object) -> None:
    """Writes a plain image of (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "red").save(path, **options)


def test_split_folders(class_folders: Path) -> None:
    train = open_split(class_folders, "train")
    val = open_split(class_folders, "val", classes=train.classes)
    assert (len(train), len(val)) == (96, 24)
    assert train.classes == ["ant", "bee", "cow"]
    for index in (0, 40, 95):
        assert train.file_of(index).parent.name == train.classes[train.label[index]]
        with Image.open(train.file_of(index)) as image:
            width, height = image.size
        assert train.sizes[index].tolist() == [height, width]


def test_flat_folder_with_nested_files(tmp_path: Path) -> None:
    save(tmp_path / "a" / "deep" / "x.png")
    save(tmp_path / "b" / "y.JPG")
    (tmp_path / "b" / "notes.txt").write_text("no image")
    save(tmp_path / "stray.png")
    found = open_split(tmp_path, "train")
    assert list(found.paths) == ["a/deep/x.png", "b/y.JPG"]
    assert found.label.tolist() == [0, 1]


def test_orientation_gives_upright_sizes(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "a" / "x.jpg", (12, 8), exif=exif)
    found = open_split(tmp_path, "train")
    assert found.sizes.tolist() == [[12, 8]]
    assert found.orientation.tolist() == [6]


@pytest.mark.parametrize(
    ("make", "split", "message"),
    [
        (lambda root: None, "train", "does not exist"),
        (lambda root: root.mkdir(), "train", "no image files under"),
        (lambda root: save(root / "a" / "x.png"), "val", "has no folder val/"),
        (lambda root: save(root / "val" / "a" / "x.png"), "train", "has no folder train/"),
    ],
)
def test_wrong_folders_are_named(tmp_path: Path, make: object, split: str, message: str) -> None:
    make(tmp_path / "data")
    with pytest.raises(UserError, match=message):
        open_split(tmp_path / "data", split)


def test_a_class_unknown_to_training_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "train" / "a" / "x.png")
    save(tmp_path / "val" / "z" / "x.png")
    with pytest.raises(UserError, match="val/z is a class that the training split does not have"):
        open_split(tmp_path, "val", classes=["a"])


def test_unreadable_files_are_kept_and_named(tmp_path: Path) -> None:
    save(tmp_path / "a" / "good.png")
    (tmp_path / "a" / "text.jpg").write_text("not an image")
    (tmp_path / "a" / "void.jpg").touch()
    (tmp_path / "a" / "folder.jpg").mkdir()
    found = open_split(tmp_path, "train")
    assert [Path(found.paths[i]).name for i in found.unreadable] == ["text.jpg", "void.jpg"]
    with pytest.raises(UserError, match=r"text\.jpg is not a readable .* \(and 1 more\).*skip"):
        found.require_readable()


def test_only_changed_files_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "abc":
        save(tmp_path / "k" / f"{name}.png")
    read: list[str] = []
    original = header_index.read_header

    def counting(path: Path) -> tuple[int, int, int]:
        read.append(path.name)
        return original(path)

    monkeypatch.setattr(header_index, "read_header", counting)
    open_split(tmp_path, "train")
    assert sorted(read) == ["a.png", "b.png", "c.png"]
    read.clear()
    open_split(tmp_path, "train")
    assert read == []
    save(tmp_path / "k" / "b.png", (30, 40))
    os.utime(tmp_path / "k" / "b.png", ns=(time.time_ns(), time.time_ns() + 10**9))
    (tmp_path / "k" / "c.png").unlink()
    found = open_split(tmp_path, "train")
    assert read == ["b.png"]
    assert found.sizes.tolist() == [[8, 12], [40, 30]]


def test_a_damaged_index_is_rebuilt(tmp_path: Path) -> None:
    save(tmp_path / "data" / "k" / "a.png")
    open_split(tmp_path / "data", "train")
    index = cache_file(tmp_path / "data", "")
    assert index.exists()
    index.write_bytes(index.read_bytes()[:40])
    assert open_split(tmp_path / "data", "train").sizes.tolist() == [[8, 12]]


def test_an_unwritable_cache_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    save(tmp_path / "data" / "k" / "a.png")
    np.testing.assert_array_equal(open_split(tmp_path / "data", "train").sizes, [[8, 12]])
