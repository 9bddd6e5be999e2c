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
from benchmarks import loader, loss_curves, methods, render
from benchmarks.harness import read_result
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
    "decode",
    "forecast",
    "loader",
    "loss_curves",
    "methods",
    "render",
    "small_maps",
    "stem",
    "step",
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
    if result.get("regime") in render.TABLES and path.stem != "loader-colour":
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


@pytest.mark.parametrize("name", methods.RUNS)
def test_runs_of_all_methods_are_accepted(name: str) -> None:
    run = methods.RUNS[name]
    parsed = _arguments([run.recipe, *methods.flags_of(run, 6)])
    assert parsed
    require_schedule_within(parsed.config)
    require_possible(parsed.config, torch.device("cpu"), 1)
    assert parsed.config.epochs == round(6 / run.work)


def test_the_table_and_the_picture_of_all_methods(tmp_path: Path) -> None:
    metrics = [
        {"step": 0, "knn_top1_k20": 30.0},
        {"step": 5, "loss": 1.0, "collapse_std": 0.9, "images_per_second": 50.0},
        {"step": 10, "loss": 0.5, "collapse_std": 0.8, "images_per_second": 60.0},
        {"step": 10, "knn_top1_k20": 41.5},
    ]
    result = {"metrics": metrics, "seconds": 120, "minutes": 2.0, "config": {"epochs": 3}}
    results = dict.fromkeys(("simsiam", "byol"), result)
    assert "| BYOL | 30.0 % | 41.5 % | 3 | 55 | 2.0 |" in methods.table(results)
    methods.draw(results, tmp_path / "methods.png")
    assert (tmp_path / "methods.png").stat().st_size > 10_000
