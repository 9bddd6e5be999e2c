"""Tars: ImageNet's own, WebDataset's, of class folders; and what is wrong with some."""

import gzip
import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from as_stored import add, files_of, imagenet_tars, shards, tar_of_class_folders

from fastsimsiam.cli import main
from fastsimsiam.config.run import Config
from fastsimsiam.errors import BadImageError, UserError
from fastsimsiam.loaders.decode import read_rgb
from fastsimsiam.storage import packed_index
from fastsimsiam.storage.base import Storage, fingerprint
from fastsimsiam.storage.cached_arrays import cache_file
from fastsimsiam.storage.open import has_split, open_split, open_val
from fastsimsiam.storage.packed_parts import Part, load_part, save_part
from fastsimsiam.storage.passed_over import notes
from fastsimsiam.storage.webdataset import FORM
from fastsimsiam.tools.pack import PackOptions, pack
from fastsimsiam.train.pretrain import pretrain

FORMS: dict[str, Callable[[Path, Path], Path]] = {
    "imagenet": imagenet_tars,
    "cls": shards,
    "json": lambda data, target: shards(data, target, label="json"),
    "unlabeled": lambda data, target: shards(data, target, label=""),
    "folders": tar_of_class_folders,
}


def assert_same_images(found: Storage, expected: Storage) -> None:
    """The same bytes and sizes in the same order."""
    assert len(found) == len(expected)
    np.testing.assert_array_equal(found.sizes, expected.sizes)
    np.testing.assert_array_equal(found.orientation, expected.orientation)
    assert found.bytes_total == expected.bytes_total
    for index in range(len(expected)):
        found.will_need(index)
        content = bytes(found.read(index))
        assert content == bytes(expected.read(index))
        assert found.file_of(index).is_file()


@pytest.mark.parametrize("form", FORMS)
def test_the_images_are_those_of_class_folders(
    class_folders: Path, tmp_path: Path, form: str
) -> None:
    data = FORMS[form](class_folders, tmp_path / "data")
    train, val = open_split(data, "train"), open_split(data, "val")
    val = open_split(data, "val", classes=train.classes)
    assert has_split(data, "train")
    assert has_split(data, "val")
    for split, found in (("train", train), ("val", val)):
        folders = open_split(class_folders, split)
        assert_same_images(found, folders)
        if form == "unlabeled":
            assert list(found.classes) == ["unlabeled"]
            assert not found.label.any()
            continue
        expected = ["0", "1", "2"] if form == "cls" else ["ant", "bee", "cow"]
        assert list(found.classes) == expected
        np.testing.assert_array_equal(found.label, folders.label)
    assert len(set(train.paths)) == len(train)
    assert notes(train) == []


def test_the_training_tar_is_the_same_data_set_as_its_folders(
    class_folders: Path, tmp_path: Path
) -> None:
    """So a run may go on with the other one."""
    data = imagenet_tars(class_folders, tmp_path / "data")
    assert fingerprint(open_split(data, "train")) == fingerprint(open_split(class_folders, "train"))


@pytest.mark.parametrize("form", FORMS)
def test_the_index_is_read_once(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    data = FORMS[form](class_folders, tmp_path / "data")
    said: list[tuple[int, int]] = []
    first = open_split(data, "train", report=lambda done, total: said.append((done, total)))
    assert said
    assert all(done <= total for done, total in said)
    monkeypatch.setattr(packed_index, "header_of", lambda file: pytest.fail("read again"))
    again = open_split(data, "train", report=lambda done, total: pytest.fail("work"))
    assert again.paths == first.paths
    assert list(again.classes) == list(first.classes)
    for name in ("label", "sizes", "orientation", "position", "length"):
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))


def test_only_changed_shards_are_read_again(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shards(class_folders, tmp_path / "data")
    before = open_split(data, "train")
    read: list[Path] = []
    original = packed_index._scanned

    def counting(stamp, scan, progress):
        read.append(stamp.path.name)
        return original(stamp, scan, progress)

    monkeypatch.setattr(packed_index, "_scanned", counting)
    os.utime(data / "train" / "0001.tar")
    (data / "train" / "0000.tar").rename(data / "train" / "0009.tar")
    after = open_split(data, "train")
    assert read == ["0001.tar", "0009.tar"]
    moved = np.roll(np.arange(96), -32)
    np.testing.assert_array_equal(after.sizes, before.sizes[moved])
    np.testing.assert_array_equal(after.label, before.label[moved])
    folders = open_split(class_folders, "train")
    for index in (0, 95):
        assert bytes(after.read(index)) == bytes(folders.read(int(moved[index])))
    read.clear()
    (data / "train" / "0009.tar").unlink()
    np.testing.assert_array_equal(open_split(data, "train").sizes, before.sizes[32:])
    assert read == []


def one_tar(folder: Path, members: dict[str, bytes], name: str = "0.tar") -> Path:
    """A folder with a tar of these files."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / name, "w") as tar:
        for member, content in members.items():
            add(tar, member, content)
    return folder


def jpegs(class_folders: Path, count: int = 3) -> list[bytes]:
    return [file.read_bytes() for file in files_of(class_folders / "train")[2 : 2 + count]]


@pytest.mark.parametrize(
    ("names", "split_of"),
    [
        (["set-train-0.tar", "set-train-1.tar", "set-validation-0.tar"], "train 2 val 1"),
        (["train.tar", "val.tar", "test.tar"], "train 1 val 1"),
        (["00000.tar", "00001.tar"], "train 2"),
    ],
)
def test_names_of_tars_tell_the_split(
    class_folders: Path, tmp_path: Path, names: list[str], split_of: str
) -> None:
    image = jpegs(class_folders, 1)[0]
    for name in names:
        one_tar(tmp_path / "data", {"a.jpg": image}, name)
    words = split_of.split()
    for split, count in zip(words[::2], words[1::2], strict=True):
        assert len(open_split(tmp_path / "data", split)) == int(count)
    assert has_split(tmp_path / "data", "val") == ("val" in words)


@pytest.mark.parametrize("pattern", ["{00..02}.tar", "{00,01,02}.tar", "0?.tar", "0{0..2}.tar"])
def test_patterns(class_folders: Path, tmp_path: Path, pattern: str) -> None:
    for number, image in enumerate(jpegs(class_folders)):
        one_tar(tmp_path, {"a.jpg": image}, f"{number:02d}.tar")
    found = open_split(tmp_path / pattern, "train")
    assert [bytes(found.read(i)) for i in range(3)] == jpegs(class_folders)
    (tmp_path / "01.tar").unlink()
    if "?" not in pattern:
        with pytest.raises(UserError, match=r"01.tar does not exist$"):
            open_split(tmp_path / pattern, "train")


def test_patterns_may_go_over_folders(class_folders: Path, tmp_path: Path) -> None:
    for number, image in enumerate(jpegs(class_folders)):
        one_tar(tmp_path / str(number), {"a.jpg": image}, "x.tar")
    found = open_split(tmp_path / "{0..2}" / "x.tar", "train")
    assert [bytes(found.read(i)) for i in range(3)] == jpegs(class_folders)
    assert found.root == tmp_path


def test_splits_in_one_folder_have_an_index_each(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tar_of_class_folders(class_folders, tmp_path / "data")
    for split in ("train", "val"):
        open_split(data, split)
    monkeypatch.setattr(packed_index, "_scanned", lambda *_: pytest.fail("read again"))
    assert [len(open_split(data, split)) for split in ("train", "val")] == [96, 24]


def test_a_tar_itself_is_a_data_set(class_folders: Path, tmp_path: Path) -> None:
    images = jpegs(class_folders)
    one_tar(tmp_path, {f"k/{i}.jpg": image for i, image in enumerate(images)})
    found = open_split(tmp_path / "0.tar", "train")
    assert [bytes(found.read(i)) for i in range(3)] == images
    assert list(found.classes) == ["k"]
    assert not has_split(tmp_path / "0.tar", "val")


def test_a_tar_beside_class_folders_is_left_alone(class_folders: Path, tmp_path: Path) -> None:
    """What people unpack stays where it was."""
    (tmp_path / "data" / "train").parent.mkdir()
    (tmp_path / "data" / "train").symlink_to(class_folders / "train")
    one_tar(tmp_path / "data", {"a.jpg": jpegs(class_folders)[0]}, "train.tar")
    assert len(open_split(tmp_path / "data", "train")) == 96


def test_samples_of_several_files(class_folders: Path, tmp_path: Path) -> None:
    one, two, three = jpegs(class_folders)
    data = one_tar(
        tmp_path / "data",
        {
            "./x/1.mask.png": three,
            "./x/1.jpg": one,
            "./x/1.cls": b"7\n",
            "./x/1.txt": b"a caption",
            "x/2.v3.jpeg": two,
            "x/2.json": b'{"cls": 12}',
            "x/3.npy": b"",
            "x/._1.jpg": b"Mac",
            "__MACOSX/x/1.jpg": b"Mac",
        },
    )
    found = open_split(data, "train")
    assert found.paths == ["0.tar/x/1.jpg", "0.tar/x/2.v3.jpeg"]
    assert [bytes(found.read(i)) for i in (0, 1)] == [one, two]
    assert [found.classes[label] for label in found.label.tolist()] == ["7", "12"]
    assert found.classes == ["7", "12"]  # by value
    assert found.passed_over == {
        "further images of samples": 1,
        "files without an image suffix": 1,
        "hidden or system entries": 2,
    }


def cut(file: Path, count: int) -> None:
    os.truncate(file, file.stat().st_size - count)


def test_a_tar_cut_off_in_an_image(class_folders: Path, tmp_path: Path) -> None:
    images = jpegs(class_folders)
    data = one_tar(tmp_path / "data", {f"{i}.jpg": image for i, image in enumerate(images)})
    tail = (data / "0.tar").stat().st_size
    with tarfile.open(data / "0.tar") as tar:
        last = tar.getmembers()[-1]
    cut(data / "0.tar", tail - last.offset_data - last.size + 5)
    for _ in range(2):  # not from the index alone
        found = open_split(data, "train")
        assert found.unreadable == {2: "cut off: the end of its tar is missing"}
        assert found.sizes[2].tolist() == [0, 0]
        assert bytes(found.read(1)) == images[1]
        with pytest.raises(UserError, match=r"0.tar: 0.tar/2.jpg is cut off: .*: fetch or make"):
            found.require_readable()
        with pytest.raises(BadImageError, match=r"0.tar/2.jpg is cut off"):
            found.read(2)


def test_a_tar_cut_off_between_images_is_told_of(class_folders: Path, tmp_path: Path) -> None:
    images = jpegs(class_folders)
    data = one_tar(tmp_path / "data", {f"{i}.jpg": image for i, image in enumerate(images)})
    with tarfile.open(data / "0.tar") as tar:
        os.truncate(data / "0.tar", tar.getmembers()[-1].offset)
    found = open_split(data, "train")
    assert len(found) == 2
    assert notes(found) == [
        f"WARNING: 1 tar ends without the mark of an end in {data}: compare the size or checksum with "
        "that of its source"
    ]


def lying(tar: Path, change: int) -> None:
    """Gives the first member of a tar another size, with the right checksum of its header."""
    content = bytearray(tar.read_bytes())
    size = int(content[124:135], 8) + change
    content[124:136] = b"%011o\0" % size
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    tar.write_bytes(content)


@pytest.mark.parametrize("change", [-600, 600])
def test_a_member_that_lies_about_its_size(
    class_folders: Path, tmp_path: Path, change: int
) -> None:
    images = jpegs(class_folders)
    data = one_tar(tmp_path / "data", {f"{i}.jpg": image for i, image in enumerate(images)})
    lying(data / "0.tar", change)
    with pytest.raises(UserError, match=r"0.tar is damaged after 0.jpg \(.*\): fetch or make"):
        open_split(data, "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"0.tar is no tar \(empty file\)"),
        (b"x" * 5000, r"0.tar is no tar \("),
        (gzip.compress(b"x" * 2000), "0.tar is compressed by gzip, .* unpack it with gunzip"),
        (b"\x28\xb5\x2f\xfd" + b"x" * 2000, "compressed by Zstandard.*unzstd"),
    ],
)
def test_what_is_no_tar(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "0.tar").write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_split(tmp_path, "train")


def test_compressed_shards_are_refused(tmp_path: Path) -> None:
    (tmp_path / "0.tar.gz").write_bytes(gzip.compress(b"x" * 2000))
    with pytest.raises(UserError, match="0.tar.gz is compressed by gzip"):
        open_split(tmp_path, "train")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.cls": b"1"}, r"no images in the 1 file of"),
        ({"a.txt": b"", "b.npy": b""}, "files without an image suffix: 1"),
        ({"a.jpg": b"", "a.cls": b"\xff\xfe"}, "0.tar: a.cls cannot be read"),
        ({"a.jpg": b"", "a.json": b"{"}, "0.tar: a.json cannot be read"),
        ({"a.jpg": b"", "a.json": b"[3]"}, "unlabeled"),
        ({"a.jpg": b"", "a.cls": b"1", "b.jpg": b""}, "1 of 2 images have no label"),
        ({"a.jpg": b"", "a.cls": b"1" * 2_000_000}, "2000000 bytes, which is no label"),
    ],
)
def test_odd_members(tmp_path: Path, members: dict[str, bytes], message: str) -> None:
    data = one_tar(tmp_path / "data", members)
    if message == "unlabeled":
        assert open_split(data, "train").classes == ["unlabeled"]
        return
    with pytest.raises(UserError, match=message):
        open_split(data, "train")


def test_an_image_without_a_header_is_unreadable(class_folders: Path, tmp_path: Path) -> None:
    data = one_tar(tmp_path / "data", {"a.jpg": jpegs(class_folders)[0], "b.jpg": b"no image"})
    for _ in range(2):
        found = open_split(data, "train")
        assert found.unreadable == {
            1: "not a readable image (the content is none of JPEG, PNG, WebP, TIFF, BMP, GIF, AVIF)"
        }
        assert found.sizes[1].tolist() == [0, 0]


def test_a_tar_that_changes_during_the_run(class_folders: Path, tmp_path: Path) -> None:
    data = one_tar(tmp_path / "data", {"a.jpg": jpegs(class_folders)[0]})
    found = open_split(data, "train")
    os.utime(data / "0.tar", (1, 1))
    with pytest.raises(UserError, match=r"0.tar was changed since it was opened: start"):
        found.read(0)
    found = open_split(data, "train")
    found.read(0)
    os.truncate(data / "0.tar", 600)
    with pytest.raises(UserError, match=r"a.jpg is beyond the end of its file, which was cut off"):
        found.read(0)
    (data / "0.tar").unlink()
    found.will_need(0)


def test_links_and_pipes_in_a_tar(class_folders: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        add(tar, "a.jpg", jpegs(class_folders)[0])
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE)):
            info = tarfile.TarInfo(f"{number}.jpg")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    found = open_split(tmp_path, "train")
    assert len(found) == 1
    assert found.passed_over == {"links and other entries of tars that are no files": 3}


@pytest.mark.parametrize("damage", ["missing", "other", "text", "short"])
def test_the_devkit_has_to_be_there(class_folders: Path, tmp_path: Path, damage: str) -> None:
    data = imagenet_tars(class_folders, tmp_path / "data")
    devkit = data / "ILSVRC2012_devkit_t12.tar.gz"
    message = "devkit_t12.tar.gz is damaged or another file"
    if damage == "missing":
        devkit.unlink()
        message = "devkit_t12.tar.gz is missing: the classes of ILSVRC2012_img_val.tar are in it"
    elif damage == "text":
        devkit.write_bytes(b"not found")
    elif damage == "short":
        devkit.write_bytes(devkit.read_bytes()[:-100])
    else:
        with tarfile.open(devkit, "w:gz") as tar:
            add(tar, "ILSVRC2012_devkit_t12/data/meta.mat", b"")
    assert len(open_split(data, "train")) == 96
    with pytest.raises(UserError, match=message):
        open_split(data, "val")


def test_a_training_tar_cut_off_in_a_class(class_folders: Path, tmp_path: Path) -> None:
    data = imagenet_tars(class_folders, tmp_path / "data")
    with tarfile.open(data / "ILSVRC2012_img_train.tar") as tar:
        last = tar.getmembers()[-1]
        os.truncate(data / "ILSVRC2012_img_train.tar", last.offset_data + last.size // 2)
    found = open_split(data, "train")
    assert 64 < len(found) < 96
    (name, reason), *_ = ((found.paths[i], text) for i, text in found.unreadable.items())
    assert name.startswith("cow/")
    assert reason == "cut off: the end of its tar is missing"


def test_many_shards_and_few_descriptors(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = jpegs(class_folders)[0]
    for number in range(40):
        one_tar(tmp_path, {"a.jpg": image}, f"{number:02d}.tar")
    monkeypatch.setattr("fastsimsiam.storage.record_files._MOST_OPEN", 4)
    before = len(os.listdir("/proc/self/fd"))
    found = open_split(tmp_path, "train")
    for index in (*range(40), *range(40)):
        assert bytes(found.read(index)) == image
    assert len(os.listdir("/proc/self/fd")) <= before + 5
    assert io.BytesIO(found.read(3)).read() == image


def forged(part: Part, **changes: object) -> Part:
    """An index with other columns."""
    return replace(part, columns={**part.columns, **changes})


def test_a_forged_index_is_not_believed(class_folders: Path, tmp_path: Path) -> None:
    data = shards(class_folders, tmp_path / "data")
    good = open_split(data, "train")
    root = data / "train"
    file = cache_file(root, FORM)
    assert file is not None
    content = file.read_bytes()
    part = load_part(file, root, 1 << 30)
    assert part is not None
    count, columns = len(part.names), part.columns
    one = np.eye(1, count, 5, dtype=np.int64)[0]
    wrong = [
        forged(part, position=columns["position"] + one * 10**9),
        forged(part, position=columns["position"] - one * 10**9),
        forged(part, position=columns["position"] + one * (2**63 - 10**6)),
        forged(part, length=columns["length"] + one * 10**6),
        forged(part, length=columns["length"] - one * 10**6),
        forged(part, label=columns["label"] + one * 3),
        forged(part, label=columns["label"] - one * 9),
        forged(part, orientation=columns["orientation"] + (8 * one).astype(np.uint8)),
        forged(part, sizes=columns["sizes"] - 1000),
        forged(part, sizes=columns["sizes"].astype(np.int64)),
        forged(part, position=columns["position"][:-1]),
        replace(part, rows=[31, 33, 31]),
        replace(part, rows=[32, 65, -1]),
        replace(part, passed_over=[{}, {}]),
        replace(part, passed_over=[{}, {}, {"x": "y"}]),
        replace(part, classes=[1, 2, 3]),
    ]
    for number, bad in enumerate(wrong):
        save_part(file, root, bad)
        assert load_part(file, root, 1 << 30) is None, number
        found = open_split(data, "train")
        np.testing.assert_array_equal(found.position, good.position, err_msg=str(number))
        np.testing.assert_array_equal(found.label, good.label)
        assert file.read_bytes() == content
    for place in range(0, len(content), 97):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert load_part(file, root, 1 << 30) is None, place


def test_the_index_of_another_tar_of_the_same_size(class_folders: Path, tmp_path: Path) -> None:
    """Whose time is the same as well: the images tell, and what to do."""
    one, two, three = jpegs(class_folders)
    data = one_tar(tmp_path / "data", {"a.jpg": one, "b.jpg": two + bytes(len(three))})
    open_split(data, "train")
    status = (data / "0.tar").stat()
    one_tar(data, {"a.jpg": two + bytes(len(three)), "b.jpg": one})
    os.utime(data / "0.tar", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (data / "0.tar").stat().st_size == status.st_size
    found = open_split(data, "train")
    for index in (0, 1):
        with pytest.raises(BadImageError, match=r"0.tar: 0.tar/[ab].jpg"):
            read_rgb(found, index)
    assert main(["index", str(data), "--again"]) == 0
    assert bytes(open_split(data, "train").read(1)) == one


def test_two_processes_make_the_index_together(class_folders: Path, tmp_path: Path) -> None:
    data = shards(class_folders, tmp_path / "data")
    code = (
        "import sys; from pathlib import Path\n"
        "from fastsimsiam.storage.open import open_split\n"
        "for _ in range(5): print(len(open_split(Path(sys.argv[1]), 'train')))\n"
    )
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-c", code, str(data)]
    both = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate()[0] for process in both] == ["96\n" * 5] * 2
    assert len(list((tmp_path / "cache" / "fastsimsiam").iterdir())) == 1


@pytest.mark.parametrize("order", [("1.jpg", "1.mask.png"), ("1.mask.png", "1.jpg")])
def test_the_image_of_a_sample_is_not_its_mask(
    class_folders: Path, tmp_path: Path, order: tuple[str, str]
) -> None:
    one, two, _ = jpegs(class_folders)
    content = {"1.jpg": one, "1.mask.png": two}
    data = one_tar(tmp_path / "data", {name: content[name] for name in order})
    found = open_split(data, "train")
    assert found.paths == ["0.tar/1.jpg"]
    assert bytes(found.read(0)) == one
    assert notes(found) == [
        f"WARNING: 1 image is not used in {data}: up to the first dot they have the names of others, "
        "as NAME.mask.png beside NAME.jpg"
    ]


def test_names_with_dots_in_class_folders(class_folders: Path, tmp_path: Path) -> None:
    images = jpegs(class_folders)
    data = one_tar(
        tmp_path / "data", {f"cat/at 10.{i}.33.jpg": image for i, image in enumerate(images)}
    )
    found = open_split(data, "train")
    assert [bytes(found.read(i)) for i in range(3)] == images
    assert found.classes == ["cat"]


@pytest.mark.parametrize("above", ["train/", "data/set/train/"])
def test_folders_above_the_classes(class_folders: Path, tmp_path: Path, above: str) -> None:
    one, two, three = jpegs(class_folders)
    members = {f"{above}cat/1.jpg": one, f"{above}dog/1.jpg": two, f"{above}dog/2.jpg": three}
    found = open_split(one_tar(tmp_path / "data", members), "train")
    assert [found.classes[label] for label in found.label.tolist()] == ["cat", "dog", "dog"]


def test_a_tar_of_two_splits_is_refused(class_folders: Path, tmp_path: Path) -> None:
    one, two, _ = jpegs(class_folders)
    data = one_tar(tmp_path / "data", {"set/train/cat/1.jpg": one, "set/val/cat/2.jpg": two})
    with pytest.raises(
        UserError, match="0.tar holds train/ and val/, which are splits, not classes"
    ):
        open_split(data, "train")


@pytest.mark.parametrize("cut_in", ["image", "label"])
def test_a_cut_off_tar_with_labels_can_be_skipped(
    class_folders: Path, tmp_path: Path, tiny_config: Config, cut_in: str
) -> None:
    data = shards(class_folders, tmp_path / "data")
    file = data / "train" / "0002.tar"
    with tarfile.open(file) as tar:
        image, label = tar.getmembers()[-2:]
    os.truncate(file, label.offset if cut_in == "label" else image.offset_data + 100)
    found = open_split(data, "train")
    assert len(found) == 96
    assert found.unreadable == {95: "cut off: the end of its tar is missing"}
    assert found.label[:95].tolist() == open_split(class_folders, "train").label[:95].tolist()
    config = replace(tiny_config, data=data)
    with pytest.raises(UserError, match="000095.jpeg is cut off"):
        pretrain(config)
    assert pretrain(replace(config, on_bad_image="skip")).steps == 12
    target = tmp_path / "packed.beton"
    manifest = pack(found, target, PackOptions(), on_bad_image="skip")
    assert manifest["images_total"] == 95


def test_a_training_tar_cut_off_at_a_class(class_folders: Path, tmp_path: Path) -> None:
    data = imagenet_tars(class_folders, tmp_path / "data")
    with tarfile.open(data / "ILSVRC2012_img_train.tar") as tar:
        last = tar.getmembers()[-1]
    os.truncate(data / "ILSVRC2012_img_train.tar", last.offset_data + 100)
    found = open_split(data, "train")
    assert found.classes == ["ant", "bee"]
    assert any("without the mark of an end" in line for line in notes(found))


@pytest.mark.parametrize("beside", ["x.tar", "images.tar.gz", "metadata.parquet"])
def test_an_archive_beside_images_is_left_alone(
    class_folders: Path, tmp_path: Path, beside: str
) -> None:
    for number, image in enumerate(jpegs(class_folders)):
        (tmp_path / f"{number}.jpg").write_bytes(image)
    one_tar(tmp_path, {"a.jpg": jpegs(class_folders)[0]}, beside)
    found = open_split(tmp_path, "train")
    assert found.paths == ["0.jpg", "1.jpg", "2.jpg"]
    assert found.passed_over == {f"{Path(beside).suffix} files": 1}


def test_a_damaged_shard_costs_the_index_of_no_other(
    class_folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = shards(class_folders, tmp_path / "data", of_split=4)
    open_split(data, "train")
    good = (data / "train" / "0001.tar").read_bytes()
    (data / "train" / "0001.tar").write_bytes(b"x" * 3000)
    with pytest.raises(UserError, match=r"0001.tar is no tar"):
        open_split(data, "train")
    (data / "train" / "0001.tar").write_bytes(good)
    read: list[str] = []
    original = packed_index._scanned

    def counting(stamp, scan, progress):
        read.append(stamp.path.name)
        return original(stamp, scan, progress)

    monkeypatch.setattr(packed_index, "_scanned", counting)
    assert len(open_split(data, "train")) == 96
    assert read == ["0001.tar"]


def test_a_pattern_has_no_validation_split(class_folders: Path, tmp_path: Path) -> None:
    one_tar(tmp_path, {"a.jpg": jpegs(class_folders)[0], "a.cls": b"3"}, "00.tar")
    for data in (tmp_path / "{00..00}.tar", tmp_path / "00.tar", tmp_path):
        assert len(open_split(data, "train")) == 1
        with pytest.raises(UserError, match="pass validation images by --val PATH"):
            open_val(data, None)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (b'{"label": null, "cls": 3}', ["3"]),
        (b'{"notes": "' + b"x" * 2_000_000 + b'"}', ["unlabeled"]),
    ],
)
def test_labels_in_json(
    class_folders: Path, tmp_path: Path, label: bytes, expected: list[str]
) -> None:
    data = one_tar(tmp_path / "data", {"a.jpg": jpegs(class_folders)[0], "a.json": label})
    assert open_split(data, "train").classes == expected
