"""Lists of images, Kaggle's ImageNet, images without labels, and a validation set of its own."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from as_stored import files_of, shards

from fastsimsiam.config.evaluation import EvalOptions
from fastsimsiam.config.run import Config, KnnConfig
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.knn import knn
from fastsimsiam.storage.open import has_split, has_val, open_split, open_val
from fastsimsiam.storage.passed_over import notes
from fastsimsiam.train.pretrain import pretrain


def line(path: str, label: str) -> str:
    return f"{path},{label}"


LISTS: dict[str, tuple[str, Callable[[str, str], str]]] = {
    "commas": ("list.csv", line),
    "columns": ("list.csv", lambda path, label: f"7,{label},{path}"),
    "many columns": ("list.csv", lambda path, label: f"a name,{path},{label}"),
    "tabs": ("list.tsv", lambda path, label: f"{path}\t{label}"),
    "tabs in text": ("list.txt", lambda path, label: f"{path}\t{label}"),
    "Caffe": ("list.txt", lambda path, label: f"{path} {'abc'.index(label[0])}"),
    "paths": ("list.txt", lambda path, label: f"./{path}"),
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_is_a_data_set(class_folders: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "train").symlink_to(class_folders / "train")
    name, write = LISTS[kind]
    paths = [
        path.relative_to(class_folders).as_posix() for path in files_of(class_folders / "train")
    ]
    lines = [write(path, path.split("/")[1]) for path in reversed(paths)]
    if kind == "columns":
        lines.insert(0, "id,Class,File_Name")
    if kind == "many columns":
        lines.insert(0, "name,path,label")
    (tmp_path / name).write_text("\n".join(lines) + "\n\n")
    found, folders = open_split(tmp_path / name, "train"), open_split(class_folders, "train")
    assert found.paths == paths[::-1]
    assert [bytes(found.read(i)) for i in (0, 95)] == [bytes(folders.read(i)) for i in (95, 0)]
    np.testing.assert_array_equal(found.sizes, folders.sizes[::-1])
    if kind == "paths":
        assert found.classes == ["unlabeled"]
    else:
        assert found.classes == (["0", "1", "2"] if kind == "Caffe" else ["ant", "bee", "cow"])
        np.testing.assert_array_equal(found.label, folders.label[::-1])
    assert not has_split(tmp_path / name, "val")
    with pytest.raises(UserError, match="is a file, not a folder"):
        open_split(tmp_path / name, "val")


def test_paths_may_be_absolute_and_have_spaces(class_folders: Path, tmp_path: Path) -> None:
    file = files_of(class_folders / "train")[3]
    (tmp_path / "of mine").mkdir()
    (tmp_path / "of mine" / "a b 3.jpg").write_bytes(file.read_bytes())
    (tmp_path / "list.txt").write_text(f"{file}\nof mine/a b 3.jpg\n")
    found = open_split(tmp_path / "list.txt", "train")
    assert bytes(found.read(0)) == bytes(found.read(1)) == file.read_bytes()
    assert found.file_of(0) == file


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", "a.csv lists no images"),
        ("a.txt", "notes of mine\n", "a.txt, line 1: 'notes of mine' has no image suffix"),
        ("a.csv", "path,label\nx.jpg,1\ny.py,1\n", "a.csv, line 3: 'y.py' has no image suffix"),
        ("a.csv", "id,label\n7,1\n", "a.csv has the columns id, label, and none for paths"),
        ("a.csv", "id,path\n7\n", "a.csv, line 2: no path"),
        ("a.txt", "x\0.jpg\n", "a.txt, line 1: a path has a zero byte: remove it"),
        ("a.csv", "x.jpg,1\ny.jpg\n", "1 of 2 images have no label, and the others have"),
        ("a.csv", '"x.jpg,1\n' + "y" * 200_000, "a.csv is no readable CSV"),
    ],
)
def test_wrong_lists_are_told_of(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        open_split(tmp_path / name, "train")


def test_missing_files_of_a_list(class_folders: Path, tmp_path: Path) -> None:
    file = files_of(class_folders / "train")[3]
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "list.csv").write_text(f"{file},a\ngone.jpg,a\nfolder.jpg,b\n")
    found = open_split(tmp_path / "list.csv", "train")
    assert found.unreadable == {
        1: "cannot be read (No such file or directory)",
        2: "cannot be read (it is no regular file)",
    }
    with pytest.raises(UserError, match=r"gone.jpg cannot be read .* \(and 1 more\): restore"):
        found.require_readable()
    with pytest.raises(UserError, match=r"nothing.txt does not exist"):
        open_split(tmp_path / "nothing.txt", "train")


@pytest.fixture
def kaggle(class_folders: Path, tmp_path: Path) -> Path:
    """What Kaggle's archive unpacks to."""
    folder = tmp_path / "kaggle" / "ILSVRC" / "Data" / "CLS-LOC"
    (folder / "val").mkdir(parents=True)
    (folder / "test").mkdir()
    (folder / "val" / "._x.JPEG").touch()
    (folder / "train").symlink_to(class_folders / "train")
    rows = ["ImageId,PredictionString"]
    for number, file in enumerate(files_of(class_folders / "val"), start=1):
        name = f"ILSVRC2012_val_{number:08d}"
        (folder / "val" / f"{name}.JPEG").write_bytes(file.read_bytes())
        rows.append(f"{name},{file.parent.name} 1 2 3 4 {file.parent.name} 5 6 7 8 ")
    (tmp_path / "kaggle" / "LOC_val_solution.csv").write_text("\n".join([rows[0], *rows[:0:-1]]))
    return tmp_path / "kaggle"


@pytest.mark.parametrize("below", ["", "ILSVRC", "ILSVRC/Data", "ILSVRC/Data/CLS-LOC"])
def test_kaggles_imagenet(class_folders: Path, kaggle: Path, below: str) -> None:
    data = kaggle / below
    train = open_split(data, "train")
    val = open_split(data, "val", classes=train.classes)
    folders = open_split(class_folders, "val")
    assert len(train) == 96
    assert val.passed_over == {"hidden or system entries": 1}
    assert "val is Kaggle's ImageNet: its classes are in " in notes(val)[0]
    assert train.classes == ["ant", "bee", "cow"]
    np.testing.assert_array_equal(val.label, folders.label)
    assert bytes(val.read(7)) == bytes(folders.read(7))
    assert has_split(data, "val")


@pytest.mark.parametrize("change", ["missing", "other", "image"])
def test_kaggles_classes_have_to_be_there(kaggle: Path, change: str) -> None:
    solution = kaggle / "LOC_val_solution.csv"
    message = "is no file of ImageNet's classes"
    if change == "missing":
        solution.unlink()
        message = (
            "val has no class folders, as Kaggle's ImageNet: put its LOC_val_solution.csv into"
        )
    elif change == "other":
        solution.write_text("a,b\n1,2\n")
    else:
        solution.write_text("\n".join(solution.read_text().split("\n")[:-1]))
        message = "ILSVRC2012_val_00000001.JPEG is not in LOC_val_solution.csv"
    with pytest.raises(UserError, match=message):
        open_split(kaggle, "val")


def test_kaggles_val_may_be_sorted(class_folders: Path, kaggle: Path) -> None:
    val = kaggle / "ILSVRC" / "Data" / "CLS-LOC" / "val"
    val.rename(val.with_name("flat"))
    val.symlink_to(class_folders / "val")
    assert open_split(kaggle, "val").classes == ["ant", "bee", "cow"]


def flat(class_folders: Path, target: Path) -> Path:
    """The training images without their classes."""
    target.mkdir()
    for number, file in enumerate(files_of(class_folders / "train")):
        (target / f"{number:02d}{file.suffix}").write_bytes(file.read_bytes())
    return target


def test_images_without_labels_are_trained_on(
    class_folders: Path, tmp_path: Path, tiny_config: Config
) -> None:
    data = flat(class_folders, tmp_path / "flat")
    config = replace(tiny_config, data=data, max_steps=2, knn=KnnConfig(every_epochs=1, k=(5,)))
    assert pretrain(config).steps == 2
    assert (
        "no kNN during training: the images have no labels" in (config.out / "log.txt").read_text()
    )
    with pytest.raises(
        UserError, match="flat: the images have no labels, so nothing can be scored"
    ):
        knn(config.out, data, options=EvalOptions(val=class_folders))


def test_validation_images_of_their_own(
    class_folders: Path, tmp_path: Path, tiny_config: Config
) -> None:
    (tmp_path / "mine").symlink_to(class_folders / "train")
    stored = shards(class_folders, tmp_path / "shards", label="json")
    config = replace(tiny_config, data=tmp_path / "mine", val=class_folders / "val", max_steps=2)
    config = replace(config, knn=KnnConfig(every_epochs=1, k=(5,)))
    last = pretrain(config).last
    assert "knn_top1_k5" in last
    assert not has_val(config.data, None)
    for val in (class_folders / "val", class_folders, stored, stored / "val"):
        assert has_val(config.data, val)
        found = open_val(config.data, val, classes=["ant", "bee", "cow"])
        assert found.label.tolist() == [0] * 8 + [1] * 8 + [2] * 8
        options = EvalOptions(val=val, device="cpu", precision="fp32")
        assert knn(config.out, config.data, k=(5,), options=options).trained == {
            5: pytest.approx(last["knn_top1_k5"])
        }


def test_shuffling_by_blocks(class_folders: Path, tmp_path: Path, tiny_config: Config) -> None:
    """The same images per epoch, in another order; refused where there are no blocks."""
    data = shards(class_folders, tmp_path / "shards")
    orders = {}
    for shuffle in ("full", "blocks"):
        config = replace(tiny_config, data=data, shuffle=shuffle, shuffle_blocks=1, max_steps=4)
        config = replace(config, out=tmp_path / shuffle)
        pretrain(config)
        orders[shuffle] = (config.out / "metrics.jsonl").read_text()
    assert orders["full"] != orders["blocks"]
    with pytest.raises(
        UserError, match="--shuffle blocks: the images of .* are files of their own"
    ):
        pretrain(replace(tiny_config, shuffle="blocks"))
    np.testing.assert_array_equal(open_split(data, "train").blocks, [0, 32, 64, 96])
