"""Evaluations count each intact image once, and refuse features that are no numbers."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CPU, require, save_run
from torch import nn

from fastsimsiam import embed
from fastsimsiam.cli import main
from fastsimsiam.config.evaluation import EvalOptions, LinearConfig
from fastsimsiam.config.run import Config, KnnConfig
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.context import open_eval_context
from fastsimsiam.evaluate.features import center_plan, extract, intact_batches
from fastsimsiam.evaluate.finite import NotFiniteError
from fastsimsiam.evaluate.inspect import inspect
from fastsimsiam.evaluate.knn import KnnEvaluator, build_knn, knn
from fastsimsiam.evaluate.linear_probe import linear
from fastsimsiam.evaluate.pretrained import load_pretrained
from fastsimsiam.loaders.base import LoaderOptions
from fastsimsiam.loaders.registry import build_loader
from fastsimsiam.methods.registry import build_method
from fastsimsiam.plan.batches import CenterPlan
from fastsimsiam.report.neighbors import find_neighbors
from fastsimsiam.runs.checkpoint import load, save
from fastsimsiam.storage.class_folder import open_split

SKIP = EvalOptions(device="cpu", precision="fp32", workers=1, loader="cpu", on_bad_image="skip")
BROKEN = 9
"""Images of the set that are broken: five of the training split, four of the validation split."""


@pytest.fixture
def run(tiny_config: Config) -> Config:
    """A run that was never trained."""
    save_run(tiny_config)
    return tiny_config


@pytest.fixture
def data(class_folders: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A data set with broken images, among them a whole class of val/, and its intact part.

    Headers are readable, so that the loaders find the damage.
    """
    broken, intact = tmp_path / "broken", tmp_path / "intact"
    for split, number in (("train", 8), ("val", 4)):
        for name in ("ant", "bee", "cow"):
            files = sorted((class_folders / split / name).glob("*.JPEG"))[:number]
            for position, file in enumerate(files):
                bad = (split == "val" and name == "bee") or (
                    split == "train" and position in ((0, 1, 5) if name == "ant" else (3,))
                )
                for root in (broken, *(() if bad else (intact,))):
                    (root / split / name).mkdir(parents=True, exist_ok=True)
                    shutil.copy(file, root / split / name)
                if bad:
                    copy = broken / split / name / file.name
                    copy.write_bytes(copy.read_bytes()[: copy.stat().st_size * 2 // 3])
    return broken, intact


@pytest.mark.parametrize("loader", ["cpu", "resident", "reference", "dali"])
def test_knn_scores_the_intact_images_alone(
    loader: str, run: Config, data: tuple[Path, Path]
) -> None:
    if loader == "dali":
        require("dali")
    broken, intact = data
    options = replace(SKIP, loader=loader)
    result = knn(run.out, broken, k=(1, 5), options=options)
    expected = knn(run.out, intact, k=(1, 5), options=options)
    assert (result.bank, result.queries) == (expected.bank, expected.queries) == (19, 8)
    assert len(result.bad_images) == BROKEN
    assert not expected.bad_images
    assert result.trained == expected.trained
    assert result.untrained == expected.untrained


def test_every_evaluation_leaves_broken_images_out(
    run: Config, data: tuple[Path, Path], tmp_path: Path
) -> None:
    broken, intact = data
    config = LinearConfig(epochs=3, batch_size=8, optimizer="sgd", lr=1.0)
    scores = [
        linear(run.out, root, config=config, cached=True, options=SKIP) for root in (broken, intact)
    ]
    assert scores[0].losses == scores[1].losses
    assert scores[0].top1 == scores[1].top1
    for result in (scores[0], linear(run.out, broken, config=config, options=SKIP)):
        assert (result.train_images, result.val_images) == (19, 8)
        assert len(result.bad_images) == BROKEN
    assert inspect(run.out, broken, options=SKIP).h.images == 8
    for root in (broken, intact):
        embed(run.out, root, tmp_path / f"{root.name}.npz", options=SKIP)
    stored = [np.load(tmp_path / f"{root.name}.npz") for root in (broken, intact)]
    assert stored[0]["path"].tolist() == stored[1]["path"].tolist()
    np.testing.assert_array_equal(stored[0]["features"], stored[1]["features"])
    for root in (broken, intact):
        with open_eval_context(run.out, root, SKIP) as context:
            found = find_neighbors(context)
            assert (len(found.bank.index), len(found.queries.index)) == (19, 8)
            if root == broken:
                accuracy = found.accuracy
    assert accuracy == found.accuracy


def test_the_evaluation_of_training_leaves_them_out_too(
    run: Config, data: tuple[Path, Path]
) -> None:
    method = build_method(run)
    scores = []
    for root in data:
        train, val = (
            open_split(root, "train"),
            open_split(root, "val", classes=("ant", "bee", "cow")),
        )
        options = LoaderOptions(device=CPU, workers=1, on_bad_image="skip")
        evaluator = build_knn(
            (build_loader("cpu", train, options), train),
            (build_loader("cpu", val, options), val),
            knn=KnnConfig(k=(200, 3)),
            image_size=32,
            constants=run.normalize,
            device=CPU,
            dtype=torch.float32,
        )
        scores.append(dict(evaluator(method)))
    assert scores[0] == scores[1]
    assert list(scores[0]) == ["knn_top1_k3"]


def test_a_batch_of_broken_images_is_left_out(run: Config, data: tuple[Path, Path]) -> None:
    storage = open_split(data[0], "train")
    loader = build_loader("cpu", storage, LoaderOptions(device=CPU, workers=1, on_bad_image="skip"))
    small = replace(center_plan(storage, 16, 1.0), batch_size=2)
    shown = [batch.index.tolist() for batch in intact_batches(loader, small)]
    rows = [row for batch in shown for row in batch]
    assert rows == [row for row in range(24) if row not in (0, 1, 5, 11, 19)]
    assert [0, 1] not in shown
    assert len(shown) == 11
    assert min(map(len, shown)) == 1


def test_a_set_of_broken_images_is_one_line(
    run: Config, data: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for file in (data[0] / "val").rglob("*.JPEG"):
        file.write_bytes(file.read_bytes()[:-200])
    argv = ["--data", str(data[0]), "--on-bad-image", "skip", "--device", "cpu", "--loader", "cpu"]
    for command in ("knn", "inspect"):
        assert main([command, str(run.out), *argv]) == 2
        error = capsys.readouterr().err
        assert "check the data set" in error
        assert error.count("\n") == 1


def test_replacements_of_an_evaluation_have_readable_headers() -> None:
    """Otherwise twenty attempts in a row would fail in a set of which most is unreadable."""
    sizes = np.zeros((500, 2), np.int32)
    sizes[123] = 20, 30
    plan = CenterPlan(
        label=np.zeros(500, np.int64), sizes=sizes, image_size=8, batch_size=4, fraction=1.0
    )
    assert {int(plan.replacement(0, row, 0).index[0]) for row in range(500)} == {123}


def test_a_k_that_nobody_gave_is_cut_to_the_bank(
    run: Config, data: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["knn", str(run.out), "--data", str(data[1]), "--device", "cpu"]
    file = tmp_path / "scores.json"
    assert main([*argv, "--json", str(file)]) == 0
    note = "k 20, 100, 200 left out: the bank has 19 images"
    assert f"note: {note}\n" in capsys.readouterr().err
    stored = json.loads(file.read_text())
    assert list(stored["trained"]) == ["10"]
    assert stored["notes"] == [note]
    assert main([*argv, "--k", "200"]) == 2
    assert "--k 200 is more than the 19 training images" in capsys.readouterr().err
    # Nobody can know before the work that images are broken.
    result = knn(run.out, data[0], k=(20, 3), options=SKIP)
    assert list(result.trained) == [3]
    assert result.notes == ("k 20 left out: the bank has 19 images",)
    result = knn(run.out, data[0], k=(20,), options=SKIP)
    assert list(result.trained) == [19]
    assert result.notes == ("k 20 left out: the bank has 19 images; k 19 instead",)


def poison(run: Config, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Changes the weights of a run's checkpoints."""
    for file in (run.out / "checkpoints").iterdir():
        checkpoint = load(file)
        change(checkpoint.method)
        save(file, checkpoint)


def set_to(name: str, value: float) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda state: state[f"backbone.{name}"].view(-1)[:1].fill_(value)


COMMANDS = ("knn", "linear", "uncertainty", "inspect", "embed", "export", "report")


def call(command: str, run: Config, folder: Path) -> int:
    argv = [command, str(run.out), "--data", str(run.data), "--device", "cpu"]
    if command == "export":
        return main(["export", str(run.out), str(folder / "x.safetensors")])
    if command == "embed":
        argv += ["--out", str(folder / "x.npz")]
    if command == "linear":
        argv += ["--epochs", "1", "--batch-size", "16"]
    if command == "report":
        (run.out / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
        argv += ["--out", str(folder / "x.html")]
    return main(argv)


@pytest.mark.parametrize(
    ("command", "name", "value", "message"),
    [
        *((command, "conv1.weight", float("nan"), "NaN in conv1.weight") for command in COMMANDS),
        ("knn", "bn1.running_mean", float("-inf"), "infinity in bn1.running_mean"),
        ("knn", "bn1.running_var", -1.0, "negative values in bn1.running_var"),
        ("linear", "bn1.running_var", -1.0, "negative values in bn1.running_var"),
    ],
)
def test_weights_that_are_no_numbers_are_one_line(
    command: str,
    name: str,
    value: float,
    message: str,
    run: Config,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    poison(run, set_to(name, value))
    capsys.readouterr()
    folder = tmp_path / "results"
    folder.mkdir()
    assert call(command, run, folder) == 2
    lines = [x for x in capsys.readouterr().err.splitlines() if x.startswith("fastsimsiam: error")]
    assert len(lines) == 1
    assert f"not finite ({message})" in lines[0]
    assert "--lr" not in lines[0]
    assert not list(folder.iterdir())


def test_a_projector_that_is_no_number_is_named(run: Config) -> None:
    poison(run, lambda state: state["projector.0.weight"].fill_(float("nan")))
    with pytest.raises(NotFiniteError, match=r"projector in .* are not finite \(NaN in 0\.weight"):
        inspect(run.out, run.data, options=replace(SKIP, on_bad_image="error"))


def test_equal_features_are_scored_with_a_note(
    run: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last block adds a constant that outweighs all else."""

    def collapse(state: dict[str, torch.Tensor]) -> None:
        for name in ("layer4.0.bn2.weight", "layer4.0.downsample.1.weight"):
            state[f"backbone.{name}"].zero_()
        state["backbone.layer4.0.bn2.bias"].fill_(1.0)

    poison(run, collapse)
    result = knn(run.out, run.data, k=(5,), options=SKIP)
    assert any("all features of" in note and "are equal" in note for note in result.notes)
    assert 20 < result.trained[5] < 50
    linear_result = linear(
        run.out, run.data, config=LinearConfig(epochs=1, batch_size=32), options=SKIP
    )
    assert "are equal" in linear_result.notes[0]
    assert call("embed", run, tmp_path) == 0
    assert "note: all features of " in capsys.readouterr().err
    assert inspect(run.out, run.data, options=SKIP).diagnosis.startswith("collapsed")


def test_a_score_of_one_class_has_a_note(run: Config, tmp_path: Path) -> None:
    for split in ("train", "val"):
        shutil.copytree(run.data / split / "ant", tmp_path / "one" / split / "ant")
    result = knn(run.out, tmp_path / "one", k=(3,), options=SKIP)
    assert result.trained == {3: 100.0}
    assert result.notes == ("all training images are of the class ant: scores are 100",)


class _Broken(nn.Module):
    """A network whose features are not finite from some image on."""

    def __init__(self, intact: int) -> None:
        super().__init__()
        self.left = intact

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.left -= len(images)
        return images.mean(dim=(2, 3)) / (0.0 if self.left < 0 else 1.0)


def test_features_are_checked_to_the_last_image(run: Config) -> None:
    storage = open_split(run.data, "train")
    loader = build_loader("cpu", storage, LoaderOptions(device=CPU, workers=1))
    plan = replace(center_plan(storage, 16, 1.0), batch_size=40)
    told: dict[str, Any] = {"constants": run.normalize, "device": CPU, "dtype": torch.float32}
    for intact in (10, 85):
        with pytest.raises(NotFiniteError, match=r"features of x\.pth are not finite \(too large"):
            extract(_Broken(intact), loader, plan, **told, source="x.pth")
    found = extract(_Broken(96), loader, plan, **told)
    assert found.index.tolist() == list(range(96))


def test_training_goes_on_without_a_score_that_is_no_number(run: Config) -> None:
    storage = open_split(run.data, "train")
    loader = build_loader("cpu", storage, LoaderOptions(device=CPU, workers=1))
    plan = center_plan(storage, 16, 1.0)
    said: list[str] = []
    evaluator = KnnEvaluator(
        bank=(loader, plan),
        queries=(loader, plan),
        k=(3,),
        temperature=0.1,
        num_classes=3,
        constants=run.normalize,
        device=CPU,
        dtype=torch.float32,
        warn=said.append,
    )
    method = build_method(run)
    assert [name for name, _ in evaluator(method)] == ["knn_top1_k3"]
    method.backbone.bn1.running_var.fill_(-1.0)
    assert list(evaluator(method)) == []
    assert said == ["the features are not finite: no kNN score this time"]


def test_a_linear_evaluation_goes_on_when_its_layer_cannot_be_saved(
    run: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours of features are not lost for a full disk: the score is."""
    out = tmp_path / "linear"
    config = LinearConfig(epochs=2, batch_size=32)
    first = linear(run.out, run.data, config=config, out=out, options=SKIP)
    stored = torch.load(out / "linear.pt", weights_only=True)
    assert stored["classes"] == ["ant", "bee", "cow"]
    assert stored["weights"]["crop_fraction"] == run.knn.crop_fraction
    from fastsimsiam.evaluate import training_file

    def full(file: Path, content: object) -> None:
        raise UserError(f"cannot write checkpoint {file} (No space left on device): free some")

    monkeypatch.setattr(training_file, "write_atomically", full)
    again = linear(run.out, run.data, config=config, out=tmp_path / "b", options=SKIP)
    assert again.top1 == first.top1
    assert (
        "(No space left on device): epoch 1 is not saved, the linear evaluation goes on"
        in again.notes[0]
    )


def test_a_damaged_linear_evaluation_is_one_line(run: Config, tmp_path: Path) -> None:
    out = tmp_path / "linear"
    config = LinearConfig(epochs=1, batch_size=32)
    linear(run.out, run.data, config=config, out=out, options=SKIP)
    stored = torch.load(out / "linear.pt", weights_only=True)
    for change in ({"layer": {}}, {"optimizer": 3}, {"losses": 1}, {"identity": [1]}):
        torch.save({**stored, **change}, out / "linear.pt")
        with pytest.raises(UserError, match=r"linear\.pt is (damaged|not a linear evaluation)"):
            linear(run.out, run.data, config=config, out=out, resume=True, options=SKIP)
    torch.save(stored, out / "linear.pt")
    other = replace(SKIP, crop_fraction=0.5)
    with pytest.raises(UserError, match="was made with another crop_fraction"):
        linear(run.out, run.data, config=config, out=out, resume=True, options=other)
    assert load_pretrained(run.out).crop_fraction == run.knn.crop_fraction
