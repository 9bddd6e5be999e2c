"""`embed` writes the features of the evaluation, image by image, in both formats."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import CPU
from pyarrow import parquet
from small_places import exit_code, files_of_at_most

from fastsimsiam import embed
from fastsimsiam.cli import main
from fastsimsiam.config.evaluation import EvalOptions
from fastsimsiam.config.run import Config
from fastsimsiam.evaluate import context
from fastsimsiam.evaluate.features import center_plan, extract
from fastsimsiam.evaluate.pretrained import load_pretrained
from fastsimsiam.loaders.base import Loader, LoaderOptions
from fastsimsiam.loaders.registry import build_loader
from fastsimsiam.storage.base import Storage
from fastsimsiam.storage.class_folder import open_split
from fastsimsiam.train.pretrain import pretrain

ON_CPU = EvalOptions(device="cpu", precision="fp32", workers=1)


@pytest.fixture
def run(tiny_config: Config) -> Config:
    """A short run."""
    pretrain(replace(tiny_config, max_steps=2))
    return tiny_config


def test_features_are_those_of_the_evaluation(run: Config, tmp_path: Path) -> None:
    npz, table = tmp_path / "a.npz", tmp_path / "a.parquet"
    argv = ["--data", str(run.data), "--split", "val", "--device", "cpu", "--precision", "fp32"]
    assert main(["embed", str(run.out), "--out", str(npz), *argv]) == 0
    assert embed(run.out, run.data, table, split="val", options=ON_CPU) == 24
    stored = np.load(npz)
    val = open_split(run.data, "val")
    loader = build_loader("cpu", val, LoaderOptions(device=CPU, workers=1, on_bad_image="error"))
    found = extract(
        load_pretrained(run.out).backbone,
        loader,
        center_plan(val, run.image_size, run.knn.crop_fraction),
        constants=run.normalize,
        device=CPU,
        dtype=torch.float32,
    )
    loader.close()
    embedded = F.normalize(torch.from_numpy(stored["features"]), dim=1)
    torch.testing.assert_close(embedded, found.unit, atol=1e-5, rtol=1e-4)
    assert stored["label"].tolist() == found.label.tolist()
    assert stored["path"].tolist() == list(val.paths)
    assert stored["classes"].tolist() == ["ant", "bee", "cow"]
    rows = parquet.read_table(table)
    assert rows["path"].to_pylist() == list(val.paths)
    assert rows["class"].to_pylist() == [val.classes[number] for number in val.label]
    np.testing.assert_array_equal(np.array(rows["features"].to_pylist()), stored["features"])
    assert sorted(path.name for path in tmp_path.glob("a*")) == ["a.npz", "a.parquet"]


def test_broken_images_are_left_out(run: Config, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(run.data / "train", data)
    broken = data / "bee" / "02.JPEG"
    broken.write_bytes(broken.read_bytes()[:400])
    with pytest.raises(Exception, match=r"02\.JPEG"):
        embed(run.out, data, tmp_path / "a.npz", options=ON_CPU)
    assert not list(tmp_path.glob("a*"))
    skipping = replace(ON_CPU, on_bad_image="skip")
    for name in ("a.npz", "a.parquet"):
        assert embed(run.out, data, tmp_path / name, options=skipping) == 95
    assert "bee/02.JPEG" not in np.load(tmp_path / "a.npz")["path"]
    assert len(np.load(tmp_path / "a.npz")["features"]) == 95


def test_wrong_input_is_one_line(run: Config, capsys: pytest.CaptureFixture[str]) -> None:
    for out, message in (("x.csv", "name it .npz or .parquet"), ("/no/x.npz", "no folder /no")):
        assert main(["embed", str(run.out), "--data", str(run.data), "--out", out]) == 2
        assert message in capsys.readouterr().err


def test_only_the_requested_split_is_opened(
    run: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loader `resident` decodes all of a split when it is opened."""
    opened: list[int] = []

    def counting(name: str, storage: Storage, options: LoaderOptions) -> Loader:
        opened.append(len(storage))
        return build_loader(name, storage, options)

    monkeypatch.setattr(context, "build_loader", counting)
    embed(run.out, run.data, tmp_path / "a.npz", split="val", options=ON_CPU)
    assert opened == [24]


@pytest.mark.parametrize(
    ("name", "size"), [("a.npz", 2_000), ("a.npz", 52_000), ("a.parquet", 2_000)]
)
def test_a_full_disk_is_one_line(
    run: Config, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, size: int
) -> None:
    """Full while the features are made, and full while the file is put together."""
    argv = ["embed", str(run.out), "--data", str(run.data), "--out", str(tmp_path / name)]
    with files_of_at_most(size):
        assert main([*argv, "--device", "cpu", "--precision", "fp32", "--workers", "1"]) == 2
    error = capfd.readouterr().err
    assert f"cannot write --out {tmp_path / name} (" in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("a*"))


def test_a_full_disk_does_not_kill_the_process(run: Config, tmp_path: Path) -> None:
    """Memory mapped from a file on a full disk ends a process by SIGBUS."""
    small = tmp_path / "small"
    small.mkdir()
    argv = ["embed", str(run.out), "--data", str(run.data), "--out", str(small / "a.npz")]

    def embed_here() -> int:
        code = main([*argv, "--device", "cpu", "--precision", "fp32", "--workers", "1"])
        return code if not list(small.iterdir()) else 3  # nothing is left behind

    assert exit_code(embed_here, tmpfs=small, size="32k") == 2
