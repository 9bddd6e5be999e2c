"""Images as arrays: .npy, .npz, CIFAR's own files, arrays in memory."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import open_with_pil

import fastsimsiam
from fastsimsiam.config.run import Config
from fastsimsiam.config.views import ViewSpec
from fastsimsiam.errors import UserError
from fastsimsiam.loaders.decode import read_rgb
from fastsimsiam.storage.arrays import array_images
from fastsimsiam.storage.base import Storage
from fastsimsiam.storage.open import has_split, open_split
from fastsimsiam.storage.passed_over import notes
from fastsimsiam.train.pretrain import pretrain

Pixels = npt.NDArray[np.uint8]
RNG = np.random.default_rng(0)


def some(count: int = 6, *shape: int) -> Pixels:
    return RNG.integers(0, 256, (count, *(shape or (9, 7, 3))), dtype=np.uint8)


def assert_shows(found: Storage, images: Pixels) -> None:
    """Every loader's decoder gives the pixels of the array."""
    rgb = images if images.ndim == 4 else np.repeat(images[..., None], 3, axis=3)
    assert len(found) == len(images)
    assert found.sizes.tolist() == [list(rgb.shape[1:3])] * len(images)
    for index, expected in enumerate(rgb):
        np.testing.assert_array_equal(read_rgb(found, index), expected)


@pytest.mark.parametrize("width", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("channels", [(), (1,), (3,)])
def test_pixels_come_back(tmp_path: Path, width: int, channels: tuple[int, ...]) -> None:
    images = some(3, 5, width, *channels)
    np.save(tmp_path / "a.npy", images)
    found = open_split(tmp_path / "a.npy", "train")
    assert_shows(found, images[..., 0] if channels == (1,) else images)
    with open_with_pil_of(found, 1) as image:
        assert image.size == (width, 5)
    copy = pickle.loads(pickle.dumps(found))
    assert bytes(copy.read(2)) == bytes(found.read(2))


def open_with_pil_of(found: Storage, index: int):
    """PIL's own opinion of the encoded image."""
    import io

    return open_with_pil(io.BytesIO(found.read(index)))


def test_channels_may_come_first() -> None:
    images = some(4, 3, 9, 7)
    found = array_images(Path("array"), images)
    assert_shows(found, np.ascontiguousarray(images.transpose(0, 2, 3, 1)))


def npz(**names: str) -> Callable[[Path], Path]:
    """A .npz whose arrays have these names."""

    def make(folder: Path) -> Path:
        arrays = {names[key]: array for key, array in SET.items() if key in names}
        np.savez_compressed(folder / "set.npz", **arrays)
        return folder / "set.npz"

    return make


SET = {
    "train": some(6),
    "label": np.array([2, 0, 1, 1, 0, 2]),
    "val": some(3),
    "val_label": np.array([[1], [0], [2]]),
}


def npy_files(folder: Path) -> Path:
    np.save(folder / "train.npy", SET["train"])
    np.save(folder / "train_labels.npy", SET["label"])
    np.save(folder / "val.npy", SET["val"])
    np.save(folder / "val_labels.npy", SET["val_label"].astype(np.uint8))
    return folder


def npz_files(folder: Path) -> Path:
    np.savez(folder / "train.npz", images=SET["train"], labels=SET["label"])
    np.savez(folder / "val.npz", images=SET["val"], labels=SET["val_label"])
    return folder


FORMS: dict[str, Callable[[Path], Path]] = {
    "MedMNIST": npz(
        train="train_images", label="train_labels", val="val_images", val_label="val_labels"
    ),
    "Keras": npz(train="x_train", label="y_train", val="x_test", val_label="y_test"),
    "npy": npy_files,
    "npz": npz_files,
}


@pytest.mark.parametrize("form", FORMS)
def test_splits_and_labels(tmp_path: Path, form: str) -> None:
    data = FORMS[form](tmp_path)
    train = open_split(data, "train")
    assert_shows(train, SET["train"])
    assert train.label.tolist() == SET["label"].tolist()
    assert train.classes == ["0", "1", "2"]
    assert has_split(data, "val")
    val = open_split(data, "val", classes=train.classes)
    assert_shows(val, SET["val"])
    assert val.label.tolist() == [1, 0, 2]


def test_arrays_without_labels_or_with_several(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", SET["train"])
    found = open_split(tmp_path / "a.npz", "train")
    assert found.classes == ["unlabeled"]
    assert not has_split(tmp_path / "a.npz", "val")
    np.savez(tmp_path / "b.npz", images=SET["train"], labels=np.zeros((6, 14), np.uint8))
    found = open_split(tmp_path / "b.npz", "train")
    assert found.classes == ["unlabeled"]
    assert notes(found) == [
        f"not used in {tmp_path}/b.npz: images with several labels, which are not used: 6"
    ]


def save_npy(array: npt.NDArray[np.generic]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        np.save(folder / "a.npy", array)
        return folder / "a.npy"

    return make


def cut_npy(folder: Path) -> Path:
    np.save(folder / "a.npy", SET["train"])
    content = (folder / "a.npy").read_bytes()
    (folder / "a.npy").write_bytes(content[:-5])
    return folder / "a.npy"


def objects(folder: Path) -> Path:
    np.save(folder / "a.npy", np.array([{}, {}]), allow_pickle=True)
    return folder / "a.npy"


def no_zip(folder: Path) -> Path:
    (folder / "a.npz").write_bytes(b"x" * 300)
    return folder / "a.npz"


def npy_called_npz(folder: Path) -> Path:
    np.save(folder / "a.npy", SET["train"])
    (folder / "a.npy").rename(folder / "a.npz")
    return folder / "a.npz"


def damaged_labels(folder: Path) -> Path:
    np.save(folder / "a.npy", SET["train"])
    (folder / "a_labels.npy").write_bytes(b"x" * 300)
    return folder / "a.npy"


def damaged_zip(folder: Path) -> Path:
    np.savez_compressed(folder / "a.npz", images=SET["train"])
    content = bytearray((folder / "a.npz").read_bytes())
    content[200] ^= 255
    (folder / "a.npz").write_bytes(content)
    return folder / "a.npz"


def of_labels(labels: npt.NDArray[np.generic]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        np.savez(folder / "a.npz", images=SET["train"], labels=labels)
        return folder / "a.npz"

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (save_npy(np.zeros((2, 8, 8, 3), np.float32)), r"the type float32: give images of uint8"),
        (
            save_npy(np.zeros((2, 8), np.uint8)),
            r"the shape \(2, 8\) and the type uint8: give images",
        ),
        (save_npy(np.zeros((2, 8, 8, 4), np.uint8)), "give images of 1 or 3 channels"),
        (save_npy(np.zeros((0, 8, 8, 3), np.uint8)), "there is no image in it"),
        (
            save_npy(np.asfortranarray(some(2))),
            r"is damaged or no file of NumPy \(it is in Fortran",
        ),
        (cut_npy, r"\(5 bytes are missing at its end\): save it again"),
        (objects, "the type object: give images of uint8"),
        (save_npy(np.uint8(3)), "it is a single number"),
        (npy_called_npz, "it holds one array, as .npy does"),
        (damaged_labels, "a_labels.npy is damaged or no file of NumPy"),
        (no_zip, "is damaged or no file of NumPy"),
        (damaged_zip, "is damaged or no file of NumPy"),
        (
            npz(train="pictures"),
            "holds the arrays pictures, and no images: call them images, or x_train",
        ),
        (of_labels(np.zeros(5, np.int64)), r"6 images, and labels of the shape \(5,\)"),
        (of_labels(np.zeros(6)), "the type float64: give a whole number for each image"),
        (of_labels(np.array([0, 0, 0, 0, 0, -1])), "labels from -1 to 0: give them from 0"),
    ],
)
def test_what_is_no_array_of_images(
    tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        open_split(make(tmp_path), "train")


def test_a_file_that_is_cut_off_during_the_run(tmp_path: Path) -> None:
    found = open_split(save_npy(SET["train"])(tmp_path), "train")
    with open(tmp_path / "a.npy", "r+b") as file:
        file.truncate(300)
    with pytest.raises(UserError, match="a.npy was cut off: restore it and start"):
        found.read(5)


CIFAR = [some(4, 3072) for _ in range(6)]
CIFAR_LABELS = [[0, 1, 2, 1]] * 6


def cifar10(folder: Path) -> Path:
    """Pickles as Python 2 wrote them: with bytes as keys."""
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    for name, images, labels in zip(names, CIFAR, CIFAR_LABELS, strict=True):
        content = {b"data": images, b"labels": labels, b"batch_label": b"of 6"}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    content = {b"label_names": [b"plane", b"car", b"bird"]}
    (folder / "batches.meta").write_bytes(pickle.dumps(content, protocol=2))
    return folder


def cifar10_binary(folder: Path) -> Path:
    names = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    for name, images, labels in zip(names, CIFAR, CIFAR_LABELS, strict=True):
        rows = np.concatenate([np.array(labels, np.uint8)[:, None], images], axis=1)
        (folder / name).write_bytes(rows.tobytes())
    (folder / "batches.meta.txt").write_text("plane\ncar\nbird\n\n")
    return folder


def cifar100(folder: Path) -> Path:
    for name, part in (("train", slice(0, 5)), ("test", slice(5, 6))):
        labels = [label for batch in CIFAR_LABELS[part] for label in batch]
        content = {b"data": np.concatenate(CIFAR[part]), b"fine_labels": labels}
        content[b"coarse_labels"] = [9] * len(labels)
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    content = {b"fine_label_names": [b"plane", b"car", b"bird"], b"coarse_label_names": []}
    (folder / "meta").write_bytes(pickle.dumps(content, protocol=2))
    return folder


def cifar100_binary(folder: Path) -> Path:
    for name, part in (("train.bin", slice(0, 5)), ("test.bin", slice(5, 6))):
        labels = np.concatenate(CIFAR_LABELS[part]).astype(np.uint8)[:, None]
        rows = np.concatenate([labels + 7, labels, np.concatenate(CIFAR[part])], axis=1)
        (folder / name).write_bytes(rows.tobytes())
    (folder / "fine_label_names.txt").write_text("plane\ncar\nbird\n")
    return folder


@pytest.mark.parametrize("make", [cifar10, cifar10_binary, cifar100, cifar100_binary])
def test_cifar_as_it_is_downloaded(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    data = make(tmp_path)
    train = open_split(data, "train")
    pixels = np.concatenate(CIFAR[:5]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    assert_shows(train, pixels)
    assert train.classes == ["plane", "car", "bird"]
    assert train.label.tolist() == [0, 1, 2, 1] * 5
    assert has_split(data, "val")
    val = open_split(data, "val", classes=train.classes)
    assert_shows(val, CIFAR[5].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        import os

        return os.system, ("touch evil",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("data_batch_3", pickle.dumps(Evil()), r"it holds (posix|os).system\): unpack the archive"),
        ("data_batch_3", pickle.dumps([3]), "it holds no dictionary"),
        ("data_batch_3", pickle.dumps({b"data": 3}), "it holds no images and labels of CIFAR"),
        ("data_batch_3", b"", "data_batch_3 is damaged or no file of CIFAR"),
        ("batches.meta", pickle.dumps({}), None),
    ],
)
def test_pickles_are_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, message: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    data = cifar10(tmp_path)
    (data / name).write_bytes(content)
    with pytest.raises(UserError, match=message or "labels from 0 to 2: give them from 0 to"):
        open_split(data, "train")
    assert not (tmp_path / "evil").exists()
    (data / "data_batch_4").unlink()


def test_a_binary_file_that_is_cut_off(tmp_path: Path) -> None:
    data = cifar10_binary(tmp_path)
    content = (data / "data_batch_2.bin").read_bytes()
    (data / "data_batch_2.bin").write_bytes(content[:-1])
    with pytest.raises(UserError, match="12291 bytes are no multiple of 3073"):
        open_split(data, "train")


@pytest.mark.parametrize("loader", ["resident", "cpu", "reference"])
def test_an_array_in_memory_through_the_loader(loader: str) -> None:
    images, labels = some(16, 40, 40, 3), np.arange(16) % 3
    options = {
        "batch_size": 8,
        "image_size": 24,
        "views": (ViewSpec(jitter=0, grayscale=0, blur=0),),
    }
    with fastsimsiam.Loader((images, labels), loader=loader, workers=1, **options) as loaded:
        (view,), label = next(iter(loaded))
        assert loaded.classes == ["0", "1", "2"]
        assert view.shape == (8, 3, 24, 24)
        assert set(label.tolist()) <= {0, 1, 2}
    with fastsimsiam.Loader(images, loader="resident", **options) as loaded:
        (same,), _ = next(iter(loaded))
        assert torch.allclose(view, same, atol=0.05)


def test_training_on_arrays(tmp_path: Path, tiny_config: Config) -> None:
    from dataclasses import replace

    np.savez(tmp_path / "set.npz", x_train=some(40, 36, 36, 3), y_train=np.arange(40) % 4)
    config = replace(tiny_config, data=tmp_path / "set.npz", max_steps=2, loader="auto")
    assert pretrain(config).steps == 2
    assert "loader resident" in (config.out / "log.txt").read_text()
