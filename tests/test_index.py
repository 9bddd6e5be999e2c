"""The command `index`: what it counts, and that runs after it read nothing again."""

import json
from pathlib import Path

import pytest
from as_stored import shards
from PIL import Image

from fastsimsiam.cli import main
from fastsimsiam.storage import header_index
from fastsimsiam.storage.open import open_split


@pytest.fixture
def odd(class_folders: Path, tmp_path: Path) -> Path:
    """Class folders with a broken image, a turned one and a hidden one."""
    for split in ("train", "val"):
        for name in ("ant", "bee"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for file in sorted((class_folders / split / name).iterdir())[:3]:
                (tmp_path / "data" / split / name / file.name).write_bytes(file.read_bytes())
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (300, 10)).save(tmp_path / "data" / "train" / "bee" / "z.jpg", exif=exif)
    (tmp_path / "data" / "train" / "ant" / "x.jpg").write_bytes(b"no image")
    (tmp_path / "data" / "train" / "ant" / "._x.jpg").write_bytes(b"no image")
    (tmp_path / "data" / "train" / "ant" / "clip.heic").write_bytes(b"")
    return tmp_path / "data"


def test_what_is_in_class_folders(
    odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["index", str(odd), "--json", str(tmp_path / "index.json")]) == 0
    told = capsys.readouterr().out
    assert f"train: 8 images, 0.0 MB, in {odd}/train\n" in told
    assert "; 1 turned by EXIF\n" in told
    assert "  2 classes of 4 images: ant, bee\n" in told
    assert "  1 without a readable header:\n" in told
    assert f"    {odd}/train/ant/x.jpg: not a readable image (the content is none of" in told
    assert f"  WARNING: 1 .heic file in {odd}/train not used: convert to JPEG or PNG" in told
    assert f"  not used in {odd}/train: hidden or system entries: 1\n" in told
    assert f"val: 6 images, 0.0 MB, in {odd}/val\n" in told
    found = json.loads((tmp_path / "index.json").read_text())
    assert found["train"]["height"][2] == 300  # upright
    assert found["train"]["classes"] == {"ant": 4, "bee": 4}
    assert found["val"]["images"] == 6
    assert list(found["train"]["broken"]) == [f"{odd}/train/ant/x.jpg"]


def test_a_run_reads_no_header_again(
    odd: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["index", str(odd)]) == 0
    capsys.readouterr()
    read: list[str] = []
    original = header_index.read_header
    monkeypatch.setattr(
        header_index, "read_header", lambda path: read.append(path.name) or original(path)
    )
    open_split(odd, "train")
    assert read == ["x.jpg"]  # that failed; the reason may be gone


def test_shards_without_labels_and_other_validation_images(
    class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shards(class_folders, tmp_path / "shards", label="")
    assert main(["index", str(data / "train"), "--val", str(data / "val")]) == 0
    told = capsys.readouterr().out
    assert f"train: 96 images, 0.3 MB, in {data}/train\n" in told
    assert "  no labels\n" in told
    assert f"val: 24 images, 0.1 MB, in {data}/val\n" in told


def test_what_is_no_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", str(tmp_path / "none")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "none does not exist: pass another" in error
