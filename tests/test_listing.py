"""What a folder holds: images, classes, splits, and what is passed over, told by kind."""

import inspect
import json
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from test_storage import save

from fastsimsiam.cli import main
from fastsimsiam.config.run import Config, KnnConfig
from fastsimsiam.errors import UserError
from fastsimsiam.storage import open as storages
from fastsimsiam.storage.class_folder import has_split, open_split
from fastsimsiam.storage.image_files import ImageFiles
from fastsimsiam.storage.listing import IMAGE_SUFFIXES, list_images
from fastsimsiam.storage.passed_over import notes
from fastsimsiam.train.pretrain import pretrain


def touch(*paths: Path) -> None:
    """Makes empty files."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def refusal(data: Path, split: str = "train") -> str:
    """The one line with which a data set is refused."""
    with pytest.raises(UserError) as caught:
        open_split(data, split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_are_images_by_their_suffix_in_any_case(tmp_path: Path) -> None:
    names = [f"x{suffix}" for suffix in IMAGE_SUFFIXES] + [
        "y.JPG",
        "y.WebP",
        "y.TIFF",
        "y.a.b.Jfif",
    ]
    touch(*(tmp_path / "k" / name for name in names))
    touch(*(tmp_path / "k" / f"{n}.heic" for n in range(6)), tmp_path / "k" / "x.NEF")
    touch(tmp_path / "k" / "shard.tar", tmp_path / "k" / "notes.txt", tmp_path / "k" / "x.jpg~")
    found = list_images(tmp_path)
    assert [path for path, _, _ in found.files] == sorted(f"k/{name}" for name in names)
    assert dict(found.passed_over) == {
        ".heic files": 6,
        ".nef files": 1,
        ".tar files": 1,
        "files without an image suffix": 2,
    }


def test_hidden_and_system_entries_are_left_out_and_counted(tmp_path: Path) -> None:
    train = tmp_path / ".cache" / "set" / "train"  # a hidden folder above is none of the data set's
    for name in ("cat", "dog"):
        save(train / name / "1.png")
    for hidden in (
        *("cat/._1.png", "cat/.ipynb_checkpoints/1-checkpoint.png", ".ipynb_checkpoints/1.png"),
        *("__MACOSX/cat/._1.png", "dog/@eaDir/1.png/THUMB.jpg", "dog/@eaDir/1.png/b.jpg"),
        *("cat/Thumbs.db", "cat/desktop.ini", ".DS_Store", "lost+found/1.png", "#recycle/1.png"),
        *("$RECYCLE.BIN/1.png", "System Volume Information/1.png", ".Trashes/1.png"),
    ):
        touch(train / hidden)
    found = open_split(train.parent, "train")
    assert list(found.paths) == ["cat/1.png", "dog/1.png"]
    assert found.classes == ["cat", "dog"]
    assert found.passed_over == {"hidden or system entries": 13}
    assert notes(found) == [f"not used in {train}: hidden or system entries: 13"]


def test_images_beside_class_folders_are_told_loudly(tmp_path: Path) -> None:
    save(tmp_path / "train" / "a" / "x.png")
    touch(*(tmp_path / "train" / f"loose{n}.jpg" for n in range(10)))
    touch(tmp_path / "above.jpg", tmp_path / "test" / "x.png", tmp_path / "README.md")
    touch(tmp_path / "train" / "a" / "x.heic")
    (tmp_path / "val").mkdir()
    found = open_split(tmp_path, "train")
    assert found.passed_over == {
        "images beside the class folders": 10,
        "images beside train/ and val/": 1,
        "folders beside train/ and val/": 1,
        ".heic files": 1,
    }
    root = tmp_path / "train"
    assert [line.partition(" and not used")[0] for line in notes(found)[:2]] == [
        f"WARNING: 10 images are beside the class folders of {root}",
        f"WARNING: 1 image is beside {root}",
    ]
    assert notes(found)[2:] == [
        f"WARNING: 1 .heic file in {root} not used: convert to JPEG or PNG to use it",
        f"not used beside {root}: 1 other folder",
    ]


def test_the_log_the_summary_and_evaluations_tell_it(
    tiny_config: Config, class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(class_folders / "train", data / "training")
    shutil.copytree(class_folders / "val", data / "test")
    save(data / "training" / "loose.png")
    pretrain(replace(tiny_config, data=data, max_steps=2, knn=KnnConfig(every_epochs=1, k=(3,))))
    log = (tiny_config.out / "log.txt").read_text()
    told = f"WARNING: 1 image is beside the class folders of {data}/training and not used"
    assert log.count(told) == 1
    assert f"no kNN during training: {data} has no folder val/, but test/: rename it to val" in log
    summary = json.loads((tiny_config.out / "summary.json").read_text())
    assert summary["passed_over"] == {
        "images beside the class folders": 1,
        "folders beside train/ and val/": 1,
    }
    (data / "test").rename(data / "Validation")
    assert main(["knn", str(tiny_config.out), "--data", str(data), "--k", "3"]) == 0
    assert told in capsys.readouterr().err


def test_where_all_is_used_nothing_is_told(class_folders: Path) -> None:
    found = open_split(class_folders, "train")
    assert found.passed_over == {}
    assert notes(found) == []


def test_a_single_class_of_folders_is_told(tmp_path: Path) -> None:
    save(tmp_path / "train" / "images" / "cat" / "x.png")
    save(tmp_path / "train" / "images" / "dog" / "x.png")
    (line,) = notes(open_split(tmp_path, "train"))
    assert "has a single class, whose images lie in 2 folders within it" in line


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("train", "val"),
        ("training", "validation"),
        ("Train", "Val"),
        ("TRAIN", "VALID"),
        ("train", "valid"),
        ("Training", "val"),
    ],
)
def test_splits_are_found_by_their_usual_names(tmp_path: Path, train: str, val: str) -> None:
    save(tmp_path / train / "a" / "x.png")
    save(tmp_path / val / "a" / "y.png")
    for module in (storages, sys.modules[open_split.__module__]):
        assert module.has_split(tmp_path, "train")
        assert module.has_split(tmp_path, "val")
        assert module.open_split(tmp_path, "train").root == tmp_path / train
        assert list(module.open_split(tmp_path, "val").paths) == ["a/y.png"]


@pytest.mark.parametrize("name", ["test", "dev", "val2017", "val_images", "ValSet", "Testing"])
def test_no_other_name_is_the_validation_split_in_silence(tmp_path: Path, name: str) -> None:
    save(tmp_path / "train" / "a" / "x.png")
    save(tmp_path / name / "a" / "y.png")
    assert not has_split(tmp_path, "val")
    assert refusal(tmp_path, "val") == (
        f"{tmp_path} has no folder val/, but {name}/: rename it to val to use it"
    )
    assert open_split(tmp_path, "train").passed_over == {"folders beside train/ and val/": 1}


def test_two_folders_for_a_split_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "train" / "a" / "x.png")
    save(tmp_path / "training" / "a" / "x.png")
    assert "has the folders train/ and training/, which are both names of" in refusal(tmp_path)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "train").symlink_to(tmp_path / "train")
    (tmp_path / "linked" / "Training").symlink_to(tmp_path / "train")
    assert len(open_split(tmp_path / "linked", "train")) == 1


@pytest.mark.parametrize("splits", [["validation", "test"], ["Test"], ["valid"]])
def test_splits_without_a_training_split_are_no_classes(tmp_path: Path, splits: list[str]) -> None:
    for name in splits:
        save(tmp_path / name / "a" / "x.png")
    assert "has no folder train/: make one with a folder for each class" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (  # the folder above Kaggle's
            ["I/Data/C/train/n1/x", "I/Data/C/train/n2/x", "I/Data/C/val/x", "I/Data/C/test/x"],
            "{}/I/Data/C holds test/ and train/ and val/, which are splits, not classes: pass "
            "{}/I/Data/C as the data set",
        ),
        (
            ["I/C/train/n1/x", "I/C/train/n2/x"],
            "{}/I/C holds train/, .* pass {}/I/C as the data set",
        ),
        (
            ["dog/train/x", "dog/val/x", "cat/train/x", "cat/val/x"],
            "{}/cat holds train/ and val/, as 1 other folder does, .*: lay the images out as "
            "{}/train/CLASS and {}/val/CLASS",
        ),
        (["seg_train/a/x", "seg_test/a/x"], "{} holds seg_test/ and seg_train/, which are splits"),
        (["train2017/x", "val2017/x"], "{} holds train2017/ and val2017/, which are splits"),
        (["TrainSet/a/x", "TestSet/a/x"], "{} holds TestSet/ and TrainSet/, which are splits"),
        (
            ["train/train/a/x", "train/train/b/x"],
            "{}/train holds train/, .*: lay the images out as",
        ),
        (["train/training/a/x", "train/test/b/x"], "{}/train holds test/ and training/, which are"),
    ],
)
def test_splits_do_not_become_classes(tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        touch(tmp_path / f"{name}.jpg")
    with pytest.raises(UserError, match=message.replace("{}", str(tmp_path))):
        open_split(tmp_path, "train")


@pytest.mark.parametrize(
    "files",
    [
        ["train/bus/x", "train/car/x", "train/train/x"],  # COCO's and CIFAR-100's class
        ["train/vehicle/train/x", "train/vehicle/bus/x"],
        ["train/dog/x", "train/dog/test/x"],
        ["train/train_station/x", "train/test_tube/x"],
    ],
)
def test_a_class_may_be_called_train(tmp_path: Path, files: list[str]) -> None:
    for name in files:
        save(tmp_path / f"{name}.png")
    assert [Path(path).with_suffix("") for path in open_split(tmp_path, "train").paths] == [
        Path(name).relative_to("train") for name in sorted(files)
    ]


def test_images_without_classes_have_no_labels(tmp_path: Path) -> None:
    for name in ("b", "a"):
        save(tmp_path / "flat" / f"{name}.png")
    (tmp_path / "flat" / "c.jpg").symlink_to("nothing")
    touch(tmp_path / "flat" / ".hidden.png")
    found = open_split(tmp_path / "flat", "train")
    assert found.paths == ["a.png", "b.png", "c.jpg"]
    assert found.classes == ["unlabeled"]
    assert found.unreadable == {2: "cannot be read (a link to nothing)"}
    assert found.passed_over == {"hidden or system entries": 1}
    save(tmp_path / "set" / "train" / "a" / "x.png")
    save(tmp_path / "set" / "val" / "x.png")
    with pytest.raises(UserError) as caught:
        open_split(tmp_path / "set", "val", classes=["a"])
    assert str(caught.value) == (
        f"{tmp_path}/set/val has no labels, and the training split has: sort its images into class "
        "folders, or rename it to leave it out"
    )


def test_a_folder_without_images_is_refused_with_what_is_in_it(tmp_path: Path) -> None:
    touch(tmp_path / "tars" / "a" / "x.tar", tmp_path / "tars" / "b" / "x.txt")
    assert (
        "(it holds .tar files: 1, class folders without images: 2, files without an image suffix: 1)"
    ) in refusal(tmp_path / "tars")


def test_what_is_no_folder_is_called_what_it_is(tmp_path: Path) -> None:
    touch(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for path, what in (
        (tmp_path / "file", "is a file, not a folder"),
        (tmp_path / "pipe", "is a named pipe, not a folder"),
        (tmp_path / "link", "is a link to nothing, not a folder"),
        (Path("/dev/null"), "is a device, not a folder"),
        (tmp_path / "none", "does not exist"),
        (tmp_path / "file" / "x", "does not exist"),
    ):
        assert f"{path} {what}" in refusal(path)
        assert not has_split(path, "val")
    save(tmp_path / "set" / "train" / "a" / "x.png")
    touch(tmp_path / "set" / "val")
    assert f"{tmp_path}/set has no folder val/ (val is a file)" in refusal(tmp_path / "set", "val")


def test_classes_that_one_split_lacks(tmp_path: Path) -> None:
    save(tmp_path / "train" / "cat" / "x.png")
    (tmp_path / "train" / "bird").mkdir()
    save(tmp_path / "val" / "cat" / "x.png")
    train = open_split(tmp_path, "train")
    assert (train.classes, train.passed_over) == (["cat"], {"class folders without images": 1})
    assert len(open_split(tmp_path, "val", classes=train.classes)) == 1
    save(tmp_path / "val" / "bird" / "x.png")
    with pytest.raises(
        UserError, match="val/bird is a class of which the training split has no im"
    ):
        open_split(tmp_path, "val", classes=train.classes)
    save(tmp_path / "val" / "ape" / "x.png")
    with pytest.raises(UserError, match=r"val/ape is a class that .* does not have \(and 1 more\)"):
        open_split(tmp_path, "val", classes=train.classes)


def linked(tmp_path: Path, *links: tuple[str, str]) -> ImageFiles:
    """A set of cat/1.png and dog/1.png with links (from, to)."""
    for name in ("cat", "dog"):
        save(tmp_path / "train" / name / "1.png")
    for source, target in links:
        (tmp_path / "train" / source).symlink_to(target)
    return open_split(tmp_path, "train")


def test_links_are_followed_and_cannot_lead_in_circles(tmp_path: Path) -> None:
    found = linked(
        tmp_path,
        ("katze", "cat"),  # a class of its own, as in torchvision
        ("dog/2.png", "../cat/1.png"),
        ("dog/up", ".."),
        ("dog/upper", "../.."),
        ("dog/root", "/"),
        ("dog/here", "."),
        ("self", "."),
    )
    assert list(found.paths) == ["cat/1.png", "dog/1.png", "dog/2.png", "katze/1.png"]
    assert found.classes == ["cat", "dog", "katze"]
    assert found.passed_over == {
        "links to folders that are listed already": 5,
        "class folders without images": 1,
    }


def test_a_linked_folder_is_listed_once_per_class(tmp_path: Path) -> None:
    """Twenty folders that link to each other have more ways through them than can be walked."""
    folders = [tmp_path / "train" / "k" / f"{n:02d}" for n in range(20)]
    for folder in folders:
        save(folder / "x.png")
        for other in folders:
            (folder / f"to-{other.name}").symlink_to(other)
    found = open_split(tmp_path, "train")
    assert list(found.paths) == [f"k/{n:02d}/x.png" for n in range(20)]
    assert found.passed_over == {"links to folders that are listed already": 400}


def test_links_to_nothing(tmp_path: Path) -> None:
    found = linked(
        tmp_path,
        ("dog/gone.jpg", "/nowhere/x.jpg"),
        ("dog/self.jpg", "self.jpg"),
        ("dog/notes", "/nowhere/notes"),
        ("bird", "/nowhere/bird"),
        ("ring", "ring"),
    )
    assert found.passed_over == {"links to nothing": 3}
    assert {found.paths[i]: reason for i, reason in found.unreadable.items()} == {
        "dog/gone.jpg": "cannot be read (a link to nothing)",
        "dog/self.jpg": "cannot be read (Too many levels of symbolic links)",
    }
    with pytest.raises(
        UserError, match=r"gone.jpg cannot be read .* \(and 1 more\): restore access"
    ):
        found.require_readable()


def test_pipes_and_devices_are_passed_over(tmp_path: Path) -> None:
    save(tmp_path / "train" / "a" / "x.png")
    os.mkfifo(tmp_path / "train" / "a" / "pipe.jpg")
    os.mkfifo(tmp_path / "train" / "a" / "pipe")
    (tmp_path / "train" / "a" / "zero.png").symlink_to("/dev/zero")
    found = open_split(tmp_path, "train")
    assert list(found.paths) == ["a/x.png"]
    assert found.passed_over == {"pipes, sockets and devices": 3}


def test_a_file_that_becomes_a_pipe_is_unreadable(tmp_path: Path) -> None:
    save(tmp_path / "a" / "x.png")
    found = open_split(tmp_path, "train")
    (tmp_path / "a" / "x.png").unlink()
    os.mkfifo(tmp_path / "a" / "x.png")
    assert len(found.read(0)) == 0


def test_more_folders_within_each_other_than_python_can_recurse(tmp_path: Path) -> None:
    deepest = tmp_path / "train" / "k" / ("d/" * 400)
    save(deepest / "x.png")
    usual = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 200)
    try:
        assert len(open_split(tmp_path, "train")) == 1
    finally:
        sys.setrecursionlimit(usual)


def test_a_path_that_is_too_long_is_one_line(tmp_path: Path) -> None:
    home = os.getcwd()
    os.makedirs(tmp_path / "train" / "k")
    os.chdir(tmp_path / "train" / "k")
    try:
        for _ in range(18):
            os.mkdir("d" * 250)
            os.chdir("d" * 250)
    finally:
        os.chdir(home)
    message = refusal(tmp_path)
    assert "cannot be read (File name too long): use shorter names, or fewer folders" in message
    assert len(message) < 500


def test_too_many_open_files_is_one_line(tmp_path: Path) -> None:
    save(tmp_path / "a" / "x.png")
    code = (
        "import os, resource, sys; from pathlib import Path\n"
        "from fastsimsiam.storage.class_folder import open_split\n"
        "file = os.open('/dev/null', os.O_RDONLY)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (file + 1, file + 1))\n"
        "try: open_split(Path(sys.argv[1]), 'train')\n"
        "except ValueError as error: print(type(error).__name__, error)\n"
    )
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 10
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == (
        f"UserError {tmp_path} cannot be read (Too many open files): raise the limit of open files "
        "(ulimit -n)\n"
    )
