"""Packing: verified copies, errors in one line, no partial files."""

import json
import resource
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from conftest import CPU, open_with_pil, require, textured_image
from PIL import Image

from fastsimsiam.cli import main
from fastsimsiam.config.views import ViewSpec
from fastsimsiam.errors import BadImageError, UserError
from fastsimsiam.evaluate.features import center_plan
from fastsimsiam.loaders.base import LoaderOptions
from fastsimsiam.loaders.decode import read_rgb
from fastsimsiam.loaders.registry import build_loader
from fastsimsiam.plan.batches import TrainPlan
from fastsimsiam.storage.beton import Beton, open_beton
from fastsimsiam.storage.class_folder import open_split
from fastsimsiam.storage.manifest import manifest_path
from fastsimsiam.storage.open import has_split
from fastsimsiam.storage.open import open_split as open_any
from fastsimsiam.tools.pack import PackOptions, pack
from fastsimsiam.tools.verify import verify
from fastsimsiam.version import __version__


def packed(source: Path, target: Path, **options: object) -> Beton:
    """Packs class folders."""
    pack(open_split(source, "train"), target, PackOptions(**options), workers=2)
    return open_beton(target)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Twelve JPEGs of two classes."""
    rng = np.random.default_rng(0)
    for number in range(12):
        folder = tmp_path / "images" / f"k{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        textured_image(rng, 60, 80).save(folder / f"{number:02d}.jpg", quality=92)
    return tmp_path / "images"


def test_jpegs_are_copied_byte_by_byte(images: Path, tmp_path: Path) -> None:
    folder = open_split(images, "train")
    beton = packed(images, tmp_path / "a.beton")
    assert len(beton) == 12
    np.testing.assert_array_equal(beton.label, folder.label)
    np.testing.assert_array_equal(beton.sizes, folder.sizes)
    assert list(beton.classes) == ["k0", "k1"]
    for index in range(12):
        assert bytes(beton.read(index)) == folder.file_of(index).read_bytes()
    manifest = json.loads(manifest_path(tmp_path / "a.beton").read_text())
    assert manifest["images_with_their_own_bytes"] == manifest["images_total"] == 12
    assert manifest["images_of_class"] == [6, 6]
    assert manifest["versions"] == {"fastsimsiam": __version__}
    assert len(verify(tmp_path / "a.beton").beton) == 12


@pytest.mark.parametrize(
    ("options", "size"), [({"max_side": 40}, (30, 40)), ({"short_side": 30}, (30, 40))]
)
def test_larger_images_are_scaled_down(
    options: dict[str, int], size: tuple[int, int], images: Path, tmp_path: Path
) -> None:
    beton = packed(images, tmp_path / "a.beton", **options)
    assert {tuple(row) for row in beton.sizes.tolist()} == {size}
    original = open_with_pil(images / "k0" / "00.jpg").resize(size[::-1], Image.Resampling.BICUBIC)
    difference = np.abs(read_rgb(beton, 0).astype(int) - np.asarray(original, dtype=int))
    assert difference.mean() < 10  # JPEG halves the colors of a rough texture


def nasty(folder: Path) -> Path:
    """A folder of 12 intact images, some of unusual formats and sizes, and three broken files."""
    rng = np.random.default_rng(1)
    place = folder / "nasty" / "k"
    place.mkdir(parents=True)
    for number in range(8):
        textured_image(rng, 60, 80).save(place / f"{number}.jpg")
    textured_image(rng, 60, 80).convert("CMYK").save(place / "cmyk.jpg")
    textured_image(rng, 60, 80).convert("L").save(place / "gray.jpg")
    Image.new("RGB", (1, 1), (9, 99, 199)).save(place / "pixel.png")
    Image.new("RGB", (12_000, 9_000), (200, 100, 50)).save(place / "huge.jpg", quality=50)
    whole = (place / "0.jpg").read_bytes()
    (place / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (place / "empty.jpg").write_bytes(b"")
    (place / "text.jpg").write_text("this is no image")
    (place / "x.jpg").mkdir()
    return folder / "nasty"


BROKEN = {"truncated.jpg", "empty.jpg", "text.jpg"}


@pytest.fixture(scope="module")
def nasty_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written once: the large image takes a second."""
    return nasty(tmp_path_factory.mktemp("set"))


def test_broken_files_are_left_out_and_listed(nasty_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "a.beton"
    with pytest.raises(UserError, match=r"empty\.jpg is not a readable .*and 1 more"):
        packed(nasty_folder, target, max_side=512)
    assert not target.exists()
    storage = open_split(nasty_folder, "train")
    manifest = pack(storage, target, PackOptions(max_side=512), on_bad_image="skip")
    assert {Path(path).name for path in manifest["left_out"]} == BROKEN
    beton = open_beton(target)
    assert len(beton) == 12
    size = {Path(path).name: tuple(s) for path, s in zip(beton.paths, beton.sizes, strict=True)}
    assert size["huge.jpg"] == (384, 512)
    assert size["pixel.png"] == (1, 1)
    for index in range(12):
        original = open_with_pil(nasty_folder / beton.paths[index])
        original = original.resize(read_rgb(beton, index).shape[1::-1])
        difference = read_rgb(beton, index).astype(int) - np.asarray(original, dtype=int)
        assert np.abs(difference).mean() < 10
    require("ffcv")
    with closing(
        build_loader("ffcv", beton, LoaderOptions(device=CPU, workers=2, on_bad_image="error"))
    ) as loader:
        assert sum(len(b.index) for b in loader.iterate(center_plan(beton, 16, 1.0))) == 12


@pytest.mark.parametrize("name", ["cpu", "dali", "resident", "reference"])
def test_every_loader_takes_the_same_folder(name: str, nasty_folder: Path) -> None:
    if name == "dali":
        require("dali")
    storage = open_split(nasty_folder, "train")
    with pytest.raises(UserError, match=r"\.jpg is not a readable"):
        build_loader(name, storage, LoaderOptions(device=CPU, workers=2, on_bad_image="error"))
    loader = build_loader(name, storage, LoaderOptions(device=CPU, workers=2, on_bad_image="skip"))
    plan = TrainPlan(
        label=storage.label,
        sizes=storage.sizes,
        seed=0,
        specs=(ViewSpec(), ViewSpec()),
        image_size=32,
        batch_size=len(storage),
    )
    with closing(loader):
        (batch,) = loader.iterate(plan)
    shown = {Path(storage.paths[index]).name for index in batch.index.tolist()}
    assert shown == {path.name for path in nasty_folder.glob("k/*.*") if path.is_file()} - BROKEN
    assert {Path(path).name for path in loader.bad_images} == BROKEN


def damage(beton: Beton, index: int) -> None:
    """Overwrites the tables of a record, after which no decoder can read it."""
    with open(beton.root, "r+b") as file:
        file.seek(int(beton.pointer[index]) + 2)
        file.write(bytes(100))


def test_a_broken_record_is_named_and_never_loaded(images: Path, tmp_path: Path) -> None:
    """FFCV alone would return the pixels of the previous image instead."""
    require("ffcv")
    beton = packed(images, tmp_path / "a.beton")
    damage(beton, 3)
    plan = TrainPlan(
        label=beton.label,
        sizes=beton.sizes,
        seed=0,
        specs=(ViewSpec(), ViewSpec()),
        image_size=32,
        batch_size=12,
    )
    loader = build_loader("ffcv", beton, LoaderOptions(device=CPU, workers=2, on_bad_image="error"))
    with (
        closing(loader),
        pytest.raises(BadImageError, match=r"record 3 \(k0/06.jpg\) .*skip") as caught,
    ):
        list(loader.iterate(plan))
    assert "\n" not in str(caught.value)
    loader = build_loader("ffcv", beton, LoaderOptions(device=CPU, workers=2, on_bad_image="skip"))
    with closing(loader):
        (batch,) = loader.iterate(plan)
    assert 3 not in batch.index.tolist()
    assert list(loader.bad_images) == [beton.name(3)]
    assert batch.crops[0].float().flatten(1).std(1).min() > 5  # no row was left unwritten
    with pytest.raises(UserError, match=r"record 3 \(k0/06.jpg\) has changed since it was packed"):
        verify(tmp_path / "a.beton")


def test_damaged_and_foreign_files_are_refused(images: Path, tmp_path: Path) -> None:
    target = tmp_path / "a.beton"
    packed(images, target)
    content = target.read_bytes()
    target.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="not a complete packed file|truncated"):
        open_beton(target)
    target.write_bytes(b"")
    with pytest.raises(UserError, match="not a complete packed file"):
        open_beton(target)
    target.write_bytes(content)
    manifest_path(target).write_text("{")
    with pytest.raises(UserError, match=r"a\.beton\.json cannot be read"):
        open_beton(target)


def test_data_sets_are_opened_by_their_format(images: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    packed(images, data / "train.beton")
    packed(images, data / "val.beton")
    assert has_split(data, "val")
    train = open_any(data, "train")
    assert isinstance(train, Beton)
    assert isinstance(open_any(data / "train.beton", "train"), Beton)
    # Labels follow the classes of the training split, whatever the order in the file.
    swapped = open_any(data, "val", classes=["k1", "k0"])
    np.testing.assert_array_equal(swapped.label, 1 - train.label)
    with pytest.raises(UserError, match="has a class k0"):
        open_any(data, "val", classes=["k1"])
    require("ffcv")
    with pytest.raises(UserError, match="fastsimsiam pack"):
        build_loader(
            "ffcv",
            open_split(images, "train"),
            LoaderOptions(device=CPU, workers=1, on_bad_image="error"),
        )


def test_a_killed_pack_leaves_no_file(images: Path, tmp_path: Path) -> None:
    target = tmp_path / "a.beton"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(images), str(target)], stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("*.partial")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(tmp_path.glob("*.partial"))
    assert not target.exists()
    assert len(packed(images, target)) == 12
    assert not list(tmp_path.glob("*.partial"))


# Packs one image and then waits.
KILLED = """
import sys, time
from pathlib import Path
from fastsimsiam.tools.pack import PackOptions, pack
from fastsimsiam.storage.class_folder import open_split
pack(open_split(Path(sys.argv[1]), "train"), Path(sys.argv[2]), PackOptions(), workers=1,
     report=lambda done, total: time.sleep(60))
"""


def test_a_full_disk_is_one_line(images: Path, tmp_path: Path) -> None:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    done = subprocess.run(
        [sys.executable, "-m", "fastsimsiam", "pack", str(images), str(tmp_path / "a.beton")],
        capture_output=True,
        text=True,
        preexec_fn=limit,
        check=False,
        env={
            "XDG_CACHE_HOME": str(tmp_path),
            "PATH": "",
            "HOME": str(tmp_path),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
    )
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert "cannot write DST" in line
    assert "File too large" in line
    assert not list(tmp_path.glob("a.beton*"))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["{images}", "{out}/a.txt"], "ends in .beton"),
        (["{images}"], "needs SRC and DST.beton"),
        (["{images}", "{out}/a.beton", "--max-side", "9", "--short-side", "9"], "drop one of them"),
        (["{images}", "{out}/a.beton", "--quality", "0"], "--quality is 0"),
        (["{images}", "{out}/a.beton", "--workers", "-1"], "--workers is -1"),
        (["{out}", "{out}/a.beton"], "no image files"),
        (["--verify", "{out}/a.beton"], "does not exist"),
    ],
)
def test_wrong_input_is_one_line(
    argv: list[str], message: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    argv = [argument.format(images=images, out=tmp_path / "empty") for argument in argv]
    assert main(["pack", *argv]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_pack_and_verify_by_command(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "a.beton"
    assert main(["pack", str(images), str(target), "--max-side", "70"]) == 0
    assert main(["pack", "--verify", str(target)]) == 0
    assert "12 images" in capsys.readouterr().out


def test_a_packed_file_is_packed_again(class_folders: Path, tmp_path: Path) -> None:
    """To make it smaller, for instance."""
    first, second = tmp_path / "a" / "train.beton", tmp_path / "b" / "train.beton"
    assert main(["pack", str(class_folders), str(first), "--split", "train"]) == 0
    assert main(["pack", str(first), str(second), "--max-side", "40"]) == 0
    big, small = open_beton(first), open_beton(second)
    assert list(small.classes) == list(big.classes) == ["ant", "bee", "cow"]
    assert small.label.tolist() == big.label.tolist()
    assert big.sizes.max() > small.sizes.max() == 40


def test_each_split_is_packed_by_name(
    class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pack", str(class_folders), str(tmp_path / "a.beton")]) == 2
    assert capsys.readouterr().err == (
        f"fastsimsiam: error: {class_folders} has the splits train and val: pack each with --split, to "
        "a file of its own\n"
    )
    assert main(["pack", str(class_folders), str(tmp_path / "v.beton"), "--split", "val"]) == 0
    assert len(open_beton(tmp_path / "v.beton")) == 24
    assert main(["pack", "nowhere", str(tmp_path / "a.bin")]) == 2
    assert "DST is" in capsys.readouterr().err  # before anything is read
