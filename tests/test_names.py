"""Names of any bytes: they pass through, and are escaped where people read them."""

import json
import os
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from pyarrow import parquet
from test_storage import save

from fastsimsiam import embed
from fastsimsiam.cli import main
from fastsimsiam.config.evaluation import EvalOptions
from fastsimsiam.config.run import Config
from fastsimsiam.runs.recorder import Recorder
from fastsimsiam.storage import header_index
from fastsimsiam.storage.base import fingerprint
from fastsimsiam.storage.class_folder import open_split
from fastsimsiam.system.text import as_bytes, printable, printable_lines
from fastsimsiam.train.pretrain import pretrain

NAMES = {
    "plain.png": "plain.png",
    "café ☕ 日本語.png": "café ☕ 日本語.png",
    os.fsdecode(b"Mu\xf1oz.png"): r"Mu\xf1oz.png",
    "two\nlines.png": r"two\nlines.png",
    "red\x1b[31m.png": r"red\x1b[31m.png",
    "bell\x07\x9b.png": r"bell\x07\x9b.png",
    "turned\u202egnp.png": r"turned\u202egnp.png",
    "a  b [bold]x.png": "a  b [bold]x.png",
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """An image of each name, twice, in train and val."""
    for split in ("train", "val"):
        for folder in ("k", os.fsdecode(b"cl\xe9")):
            for name in NAMES:
                save(tmp_path / "data" / split / folder / name)
    return tmp_path / "data"


def test_names_for_people() -> None:
    for name, shown in NAMES.items():
        assert printable(name) == shown
        shown.encode()
    assert printable("\ud800") == r"\ud800"
    assert (
        printable(Path("a/\udcff\udce2\udc98\udc95")) == r"a/\xff" + "☕"
    )  # an ASCII locale's name
    assert printable_lines("a\x1bb\nc") == "a\\x1bb\nc"


def test_bytes_of_names() -> None:
    for name in NAMES:
        assert as_bytes(name) == os.fsencode(name)
    assert as_bytes("\ud800")


def test_they_pass_through_the_index(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_split(data, "train")
    assert sorted(Path(path).name for path in first.paths) == sorted(2 * list(NAMES))
    val = open_split(data, "val", classes=first.classes)
    assert first.classes == [r"cl\xe9", "k"]
    assert val.label.tolist() == first.label.tolist()
    monkeypatch.setattr(header_index, "read_header", lambda path: pytest.fail(f"{path} is read"))
    again = open_split(data, "train")
    assert list(again.paths) == list(first.paths)
    assert fingerprint(again) == fingerprint(first)
    assert [printable(again.file_of(i)) for i in range(len(again))] == [
        again.name(i) for i in range(len(again))
    ]


def test_the_fingerprint_of_usual_names_is_that_of_earlier_versions(class_folders: Path) -> None:
    storage = open_split(class_folders, "train")
    digest = sha256("\n".join(storage.paths).encode())
    digest.update(storage.sizes.tobytes())
    assert fingerprint(storage) == f"96 images, {digest.hexdigest()[:12]}"


def test_a_run_and_its_evaluations(data: Path, tiny_config: Config, tmp_path: Path) -> None:
    bad = data / "train" / "k" / os.fsdecode(b"bad\xf1\x1b[31m\n.jpg")
    bad.write_text("no image")
    shown = rf"{data}/train/k/bad\xf1\x1b[31m\n.jpg"
    config = replace(tiny_config, data=data, max_steps=2, epochs=9, on_bad_image="skip")
    pretrain(replace(config, batch_size=17))
    log = (config.out / "log.txt").read_bytes()
    assert shown.encode() in log
    assert b"\x1b" not in log
    assert list(json.loads((config.out / "summary.json").read_text())["bad_images"]) == [shown]
    options = EvalOptions(device="cpu", precision="fp32", workers=1, on_bad_image="skip")
    table = tmp_path / "a.parquet"
    assert embed(config.out, data, table, options=options) == 16
    rows = parquet.read_table(table)
    assert set(rows["path"].to_pylist()) == {
        f"{folder}/{name}" for folder in ("k", r"cl\xe9") for name in NAMES.values()
    }
    assert set(rows["class"].to_pylist()) == {"k", r"cl\xe9"}


def test_a_packed_file_has_printable_names(data: Path, tmp_path: Path) -> None:
    assert main(["pack", str(data / "train"), str(tmp_path / "a.beton")]) == 0
    manifest = json.loads((tmp_path / "a.beton.json").read_text())
    assert manifest["classes"] == [r"cl\xe9", "k"]
    assert r"k/Mu\xf1oz.png" in manifest["images"]
    assert main(["pack", "--verify", str(tmp_path / "a.beton")]) == 0


def test_errors_do_not_reach_the_terminal_raw(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = data / os.fsdecode(b"bad\xf1\x1b[31m\n.jpg")
    bad.write_text("no image")
    assert main(["views", str(bad), "--out", "x.png"]) == 2
    assert r"bad\xf1\x1b[31m" in capsys.readouterr().err
    assert main(["views", str(data / "no\x1b[31m  such"), "--out", "x.png"]) == 2
    error = capsys.readouterr().err
    assert rf"{data}/no\x1b[31m  such does not exist" in error


def test_the_log_is_never_raw(tiny_config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    """Messages of libraries, and names from files of others, may hold anything."""
    with closing(Recorder(tiny_config)) as recorder:
        recorder.say("a table\nof lines \x1b]0;title\x07\udcf1")
    shown = "a table\nof lines \\x1b]0;title\\x07\\xf1\n"
    assert (tiny_config.out / "log.txt").read_text() == shown
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize("option", ["--out", "--json"])
def test_results_need_names_in_utf8(
    option: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """PyTorch, TensorBoard and Parquet refuse others, after the work."""
    target = str(tmp_path / os.fsdecode(b"\xf1.json"))
    command = ["pretrain", "demo"] if option == "--out" else ["knn", "x.pt"]
    assert main([*command, "--data", str(data), option, target]) == 2
    error = capsys.readouterr().err
    assert rf"cannot write to {tmp_path}/\xf1.json: give a name that is UTF-8" in error


def test_a_terminal_without_utf8(data: Path) -> None:
    """An output in ASCII is no reason for a traceback."""
    code = (
        "import sys; from fastsimsiam.cli import main\n"
        "main(['recipes']); print('\\u2603 \\udcf1')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.stdout.endswith("\\u2603 \\udcf1\n")
