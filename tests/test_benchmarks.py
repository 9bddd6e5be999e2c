"""The benchmarks' commands, paths and result files are those that the documents name."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import benchmarks
from benchmarks import certainty, compare, few_labels, loader, loss_curves, render
from benchmarks.harness import read_result
from benchmarks.peers import lightly_training
from fastsimsiam.commands.pretrain import _arguments
from fastsimsiam.config.run import require_schedule_within
from fastsimsiam.train.checks import require_possible

FOLDER = Path(benchmarks.__file__).parent
ROOT = FOLDER.parent
RESULTS = sorted((FOLDER / "results").glob("*.json"))
COMMANDS = {
    "ablations",
    "augment",
    "batch_norm",
    "certainty",
    "crops",
    "decode",
    "few_labels",
    "forecast",
    "gpu",
    "loader",
    "loss_curves",
    "compare",
    "conv1x1",
    "multi_crop",
    "render",
    "scale",
    "small_maps",
    "stem",
    "step",
    "storages",
    "suite",
    "train",
    "training",
}
# The entries of LOG.md name files as they were called when they were written.
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "Makefile",
    FOLDER / "README.md",
    *FOLDER.rglob("*.py"),
    *(ROOT / "fastsimsiam").rglob("*.py"),
]


def test_documented_commands_exist() -> None:
    named = {
        name
        for document in DOCUMENTS
        for name in re.findall(r"-m benchmarks\.(\w+)", document.read_text())
    }
    assert named - {"MODULE"} == COMMANDS
    for name in COMMANDS:
        spec = importlib.util.find_spec(f"benchmarks.{name}")
        if spec is not None and spec.submodule_search_locations:
            spec = importlib.util.find_spec(f"benchmarks.{name}.__main__")
        assert spec is not None, name
        assert spec.origin is not None
        assert "def main()" in Path(spec.origin).read_text(), name


@pytest.mark.parametrize("name", ["stem", "training"])
def test_a_command_has_help(name: str) -> None:
    argv = [sys.executable, "-m", f"benchmarks.{name}", "--help"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: ")


def test_documented_paths_exist() -> None:
    for document in DOCUMENTS:
        for path in re.findall(r"benchmarks/[\w/]+\.py", document.read_text()):
            assert (ROOT / path).is_file(), f"{document}: {path}"


def test_a_module_has_one_name() -> None:
    modules = [
        path.stem
        for folder in (".", *benchmarks.FOLDERS)
        for path in (FOLDER / folder).glob("*.py")
        if path.stem != "__init__"
    ]
    assert len(modules) == len(set(modules))
    # A module imported by its folder as well would exist twice, with two states.
    by_folder = re.compile(rf"benchmarks\.({'|'.join(benchmarks.FOLDERS)})\b")
    for path in (*FOLDER.rglob("*.py"), *(ROOT / "tests").glob("*.py")):
        assert not by_folder.search(path.read_text()), path


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_committed_results_are_read_with_current_names(path: Path) -> None:
    raw, result = json.loads(path.read_text()), read_result(path)
    if result.get("regime") == "loader":
        for key in ("samples", "summary", "memory"):
            assert set(result[key]) <= set(loader.CONFIGURATIONS)
        assert result["ratios"].keys() <= {"/".join(pair) for pair in loader.RATIOS}
        assert result["summary"]["cpu"] == raw["summary"]["folder"]
        assert result["summary"]["cpu-color"] == raw["summary"]["folder-colour"]
        assert result["ratios"]["cpu/decode"] == raw["ratios"]["folder/decode"]
    elif result.get("regime") == "train":
        assert result["loader"] == "cpu"
        assert "decoder" not in result
    elif result.get("regime") == "loss-curves":
        assert result["curves"].keys() == loss_curves.RUNS.keys()
        distances = loss_curves.distances(result["curves"])
        assert distances == pytest.approx(result["mean_difference_to_cpu"])
    else:
        assert result == raw
    if result.get("regime") in render.TABLES and path.stem not in ("loader-colour", "storages"):
        assert "folder" not in render.TABLES[result["regime"]](result)


def test_nvjpeg_was_a_decoder_of_the_loader_folder(tmp_path: Path) -> None:
    file = tmp_path / "train.json"
    file.write_text('{"regime": "train", "loader": "folder", "decoder": "nvjpeg"}')
    assert read_result(file) == {"regime": "train", "loader": "nvjpeg"}
    file.write_text('{"regime": "train", "loader": "dali", "decoder": "cpu"}')
    assert read_result(file) == {"regime": "train", "loader": "dali"}


def test_the_loss_curves_of_the_committed_result_are_drawn(tmp_path: Path) -> None:
    result = read_result(FOLDER / "results" / "loss-by-loader.json")
    loss_curves.draw(result["curves"], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


@pytest.mark.parametrize("setting", compare.SETTINGS)
@pytest.mark.parametrize("name", compare.RUNS)
@pytest.mark.parametrize("epochs", [1, 6])
def test_runs_of_all_methods_are_accepted(name: str, setting: str, epochs: int) -> None:
    flags = compare.flags_of(name, compare.SETTINGS[setting], epochs, seed=3)
    parsed = _arguments([compare.RUNS[name].recipe, *flags])
    assert parsed
    config = parsed.config
    require_schedule_within(config)
    require_possible(config, torch.device("cpu"), 1)
    assert (config.epochs, config.seed) == (epochs, 3)
    assert config.optimizer.lr == compare.RUNS[name].lr
    sides = {view.size or config.image_size for view in config.views}
    side = compare.SETTINGS[setting].side
    assert sides == ({side, side // 2} if name == "swav" else {side})


def test_epochs_fit_into_the_minutes() -> None:
    """100 images/s, 9,469 images: 95 seconds an epoch, and three evaluations of 22 seconds."""
    setting = compare.SETTINGS["imagenette"]
    assert compare.epochs_within(14, 100, 1.0, setting) == 8
    assert compare.epochs_within(0.1, 100, 1.0, setting) == 1


def test_the_peer_trains_for_its_time(class_folders: Path, tmp_path: Path) -> None:
    result = lightly_training.train(
        class_folders, tmp_path, side=32, crop_fraction=1.0, minutes=0.02, seed=0, batch_size=32
    )
    steps = [line["step"] for line in result["metrics"]]
    assert steps[0] == 0 < steps[-1]
    assert result["config"]["epochs"] == pytest.approx(steps[-1] * 32 / 96, abs=0.1)
    assert 1 < result["seconds"] < 120
    assert [set(line) >= {"knn_top1_k20"} for line in (result["metrics"][0], result["metrics"][-1])]


def test_the_table_and_the_picture_of_all_methods(tmp_path: Path) -> None:
    metrics = [
        {"step": 0, "knn_top1_k20": 30.0},
        {"step": 5, "loss": 1.0, "collapse_std": 0.9, "images_per_second": 50.0},
        {"step": 10, "loss": 0.5, "collapse_std": 0.8, "images_per_second": 60.0},
        {"step": 10, "knn_top1_k20": 41.5},
    ]
    result = {"metrics": metrics, "seconds": 120, "minutes": 2.0, "config": {"epochs": 3}}
    better = json.loads(json.dumps(result).replace("41.5", "43.5"))
    folder = tmp_path / "results"
    folder.mkdir()
    for name, seed, run in (("byol", 0, result), ("byol", 1, better), ("lightly", 0, result)):
        (folder / f"cifar10-{name}-seed{seed}.json").write_text(json.dumps(run))
    results = dict(compare.finished(folder, "cifar10"))
    assert list(results) == ["byol", "lightly"]
    text = compare.table(results)
    assert "| BYOL | 30.0 % | 42.5 % (41.5, 43.5) | 3 | 55 | 2.0 |" in text
    assert "| lightly's SimSiam, as documented | 30.0 % | 41.5 % | 3 | 55 | 2.0 |" in text
    compare.draw(results, tmp_path / "methods.png")
    assert (tmp_path / "methods.png").stat().st_size > 10_000


def test_the_tables_of_few_labels_and_of_certainty() -> None:
    scores = {"top1": 51.234, "top5": 90.0, "seconds": 90}
    linear = {f"linear, lr {lr}": scores | {"top1": top1} for lr, top1 in ((0.1, 30.0), (1, 40.0))}
    text = few_labels.table({"labels": "10%", "results": {**linear, "finetune": scores}})
    assert "10% of the labels" in text
    assert "| linear, best of 2 learning rates | 40.00 % |" in text
    assert "| finetune | 51.23 % | 90.00 % | 1.5 |" in text
    measure = {
        "accuracy": [0.1, 0.95],
        "aurc": 0.2,
        "auroc_errors": 0.8,
        "auroc_corrupted": {"blur": 0.75},
        "auroc_ood": None,
    }
    result = {"measures": {"kappa": measure}, "k": 20, "top1": 50.0, "queries": 3925, "ood": None}
    text = certainty.table(result)
    assert "top-1 50.00 % of 3,925 images" in text
    assert "| kappa | 10.0 % | 95.0 % | 0.200 | 0.800 | 0.750 |" in text
