"""The command line: help, errors in one line, and the commands from end to end."""

import contextlib
import json
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest
from PIL import Image
from throwaway_method import ThrowawayConfig

from fastsimsiam.cli import COMMANDS, main
from fastsimsiam.config.evaluation import EvalOptions
from fastsimsiam.config.run import Config
from fastsimsiam.config.stored import differing_keys, from_dict, to_dict
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.knn import knn
from fastsimsiam.recipes import catalogue
from fastsimsiam.recipes.base import IMAGENET, Recipe
from fastsimsiam.train.pretrain import pretrain


def fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Runs a command that must end in one line on stderr and code 2."""
    assert main(argv) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("fastsimsiam: error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["pretrian"], "no command 'pretrian': choose one of pretrain, knn, linear,"),
        (
            ["pretrain"],
            "needs a recipe first, such as imagenet-100ep: fastsimsiam recipes lists all",
        ),
        (["recipes", "imagenett"], "no recipe 'imagenett': did you mean imagenette"),
        (["recipes", "x"], "no recipe 'x': fastsimsiam recipes lists all"),
        (["pretrain", "imagenette", "--profile", "-1"], "--profile is -1: give 0 or more"),
        (
            ["pretrain", "simsiam"],
            "no recipe 'simsiam': give one of imagenet-100ep, imagenet-100ep-bs256, cifar10-800ep,",
        ),
        (["pretrain", "moco"], "no recipe 'moco': give one of moco-v1-imagenet-200ep, moco-v2-"),
        (
            ["pretrain", "moco-v1"],
            "no recipe 'moco-v1': give one of moco-v1-imagenet-200ep, moco-v1-imagenette\n",
        ),
        (
            "pretrain byol-imagenette --method.tau 0.9".split(),
            "--method.tau, 0.9; the options of byol are --method.momentum, "
            "--method.momentum-schedule, --method.hidden-dim, --method.projection-dim; see ",
        ),
        (
            "pretrain byol-imagenette --method.momentun 0.9".split(),
            "--method.momentun, 0.9; did you mean --method.momentum?; see ",
        ),
        (
            "pretrain moco-v2-imagenette --method.symmetric on".split(),
            "error: --method.symmetric is on: give off, sum or mean; see ",
        ),
        (
            "pretrain imagenette --optimizer.trust 0.02".split(),
            "optimizer.trust is 0.02: optimizer sgd does not use it: give lars or larc, or leave it",
        ),
        (
            "pretrain moco-v1-imagenet-200ep --epochs 100".split(),
            "error: --optimizer.milestones 120 160 are not within --epochs 100: "
            "give --optimizer.milestones 60 80\n",
        ),
        (["pretrain", "imagenot"], "no recipe 'imagenot': did you mean imagenette"),
        (["pretrain", "imagenette", "--epoch", "5"], "Unrecognized options: --epoch"),
        (["pretrain", "imagenette", "--epochs", "five"], "--epochs"),
        (["pretrain", "imagenette", "--epochs", "0"], "--epochs is 0: give 1 or more"),
        (["pretrain", "imagenette", "--method.stop-gradient", "no"], "--method.stop-gradient"),
        (["pretrain", "imagenette", "--views.1.area", "0.5", "0.2"], "views.area is (0.5, 0.2)"),
        (["pretrain", "imagenette", "--data", "nowhere"], "data folder nowhere does not exist"),
        (
            "pretrain demo --data {images} --device cpu --loader nvjpeg".split(),
            "--loader nvjpeg needs a GPU: pass --loader cpu",
        ),
        (
            ["pretrain", "imagenette", "--device", "cuda"],
            "--device cuda: torch finds no CUDA device",
        ),
        (["pretrain", "imagenette", "--loader", "apex"], "--loader"),
        (["pretrain", "imagenette", "--batch-size", "9", "--accumulate", "2"], "give a divisor"),
        (["knn", "nowhere.pt", "--data", "x"], "there is no checkpoint nowhere.pt"),
        (["knn", "--data", "x"], "CHECKPOINT"),
        (["views", "nowhere", "--out", "x.png"], "data folder nowhere does not exist"),
        (["recipes", "--all"], "Unrecognized"),
    ],
)
def test_wrong_input_is_one_line(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    argv: list[str],
    message: str,
    class_folders: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = [argument.format(images=class_folders) for argument in argv]
    if "cuda" in argv:
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert message in f"{fails(capsys, *argv)}\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("pretrain demo --loader folder", "--loader folder is now --loader cpu"),
        ("pretrain demo --epochs 3 --loader=folder", "--loader folder is now --loader cpu"),
        ("knn run --data x --loader folder", "--loader folder is now --loader cpu"),
        ("doctor --recipe demo --loader folder", "--loader folder is now --loader cpu"),
        ("pretrain demo --compile colour", "--compile colour is now --compile color"),
        ("pretrain demo --compile=colour", "--compile colour is now --compile color"),
        ("pretrain demo --views.0.grey 0.2", "--views.0.grey is now --views.0.grayscale"),
        ("pretrain demo --views.1.grey=0.2", "--views.1.grey is now --views.1.grayscale"),
        (
            "pretrain demo --folder.decoder nvjpeg",
            "--folder.decoder is now --loader (cpu or nvjpeg)",
        ),
        ("pretrain demo --folder.crops=device", "--folder.crops is now --cpu.crops"),
    ],
)
def test_renamed_options_and_values_are_answered_with_their_new_name(
    capsys: pytest.CaptureFixture[str], argv: str, message: str
) -> None:
    assert f"error: {message}; see fastsimsiam " in fails(capsys, *argv.split())


def test_a_folder_may_have_the_name_of_a_renamed_loader(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "data folder folder does not exist" in fails(
        capsys, *"pretrain demo --data folder --out colour --loader cpu".split()
    )


def test_exit_code_reaches_the_shell() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastsimsiam", "pretrain", "imagenot"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def config_keys(kind: object, prefix: str = "") -> list[str]:
    """Every key of a config in the spelling of the command line."""
    keys = []
    for item in fields(kind):
        value = getattr(kind, item.name)
        name = prefix + item.name.replace("_", "-")
        if is_dataclass(value):
            keys += config_keys(value, name + ".")
        elif isinstance(value, tuple) and value and is_dataclass(value[0]):
            for number, member in enumerate(value):
                keys += config_keys(member, f"{name}.{number}.")
        else:
            keys.append(name)
    return keys


@pytest.mark.parametrize("name", catalogue.RECIPES)
def test_help_shows_every_key(capsys: pytest.CaptureFixture[str], name: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["pretrain", name, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for key in config_keys(catalogue.recipe(name)):
        if key != "recipe":
            assert f"--{key}" in text, key


@pytest.mark.parametrize(
    "argv", [["--help"], ["knn", "--help"], ["views", "--help"], ["pretrain", "--help"]]
)
def test_help_exits_with_code_0(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    with contextlib.suppress(SystemExit):  # code 0, or the next line fails
        assert main(argv) == 0
    assert "usage" in capsys.readouterr().out


REQUIRED = {
    "pretrain": ["demo"],
    "knn": ["run", "--data", "data"],
    "linear": ["run", "--data", "data"],
    "finetune": ["run", "--data", "data", "--out", "out"],
    "distill": ["out", "--data", "data", "--out", "student"],
    "uncertainty": ["run", "--data", "data"],
    "inspect": ["run", "--data", "data"],
    "embed": ["run", "--data", "data", "--out", "features.npz"],
    "export": ["run", "weights.safetensors"],
    "report": ["run"],
    "views": ["data", "--out", "views.png"],
    "pack": ["data", "data.beton"],
    "index": ["data"],
    "doctor": [],
    "recipes": [],
}
"""Command -> the required arguments."""
HELP_AND_TYPO = """
import sys
from fastsimsiam.cli import COMMANDS, main
command, *required = sys.argv[1:]
for argv in (["--help"], [command, "--help"], [command, *required, "--help"]):
    try:
        assert main(argv) == 0
    except SystemExit as stop:
        assert not stop.code
assert main([command, *required, "--mistyped", "1"]) == 2
loaded = {"torch", "numpy", "numba"} & set(sys.modules)
assert not loaded, loaded
"""


@pytest.mark.parametrize("command", COMMANDS)
def test_help_and_typos_load_no_torch(command: str, tmp_path: Path) -> None:
    """They answer within half a second; torch alone takes several, and a gigabyte."""
    done = subprocess.run(
        [sys.executable, "-c", HELP_AND_TYPO, command, *REQUIRED[command]],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout
    assert "--mistyped" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("argv", [["recipes"], ["pretrain", "--help"]])
def test_recipes_are_listed_by_method_with_their_data_set(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, argv: list[str]
) -> None:
    other = replace(catalogue.recipe("demo"), recipe="other-demo", method=ThrowawayConfig())
    monkeypatch.setitem(
        catalogue.RECIPES, "other-demo", Recipe(make=lambda: other, data_set=IMAGENET)
    )
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    methods = dict.fromkeys(r.make().method.name for r in catalogue.RECIPES.values())
    at = {method: lines.index(method) for method in methods}
    assert list(at.values()) == sorted(at.values())
    for name, recipe in catalogue.RECIPES.items():
        (number,) = (n for n, line in enumerate(lines) if line.split()[:1] == [name])
        head = max(place for place in at.values() if place < number)
        assert lines[head] == recipe.make().method.name
        assert f"  {recipe.data_set.name} " in lines[number]
        assert f"  {recipe.make().epochs} epochs" in lines[number]
        assert len(lines[number]) <= 100


def test_recipes_are_described_with_source_score_and_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for argv, names in (
        (["demo"], ["demo"]),
        (["demo", "imagewoof"], ["demo", "imagewoof"]),
        (
            ["simsiam"],
            [n for n, r in catalogue.RECIPES.items() if r.make().method.name == "simsiam"],
        ),
        (["moco-v1"], ["moco-v1-imagenet-200ep", "moco-v1-imagenette"]),
        (["imagenet-100ep"], ["imagenet-100ep"]),
        (list(catalogue.RECIPES), list(catalogue.RECIPES)),
    ):
        assert main(["recipes", *argv]) == 0
        text = capsys.readouterr().out
        assert [line for line in text.splitlines() if line and line[0] != " "] == names
        for word in ("Command:", "Source:", "Expected:", "Time:"):
            assert text.count(f"    {word}") == len(names)
        assert main(["recipes", *argv, "--names"]) == 0
        assert capsys.readouterr().out.splitlines() == names
    assert main(["recipes", "--names"]) == 0
    assert capsys.readouterr().out.splitlines() == list(catalogue.RECIPES)


@pytest.mark.parametrize("name", catalogue.RECIPES)
def test_configs_survive_json(name: str) -> None:
    config = catalogue.recipe(name)
    again = from_dict(json.loads(json.dumps(to_dict(config))))
    assert again == config
    assert differing_keys(config, again) == []
    with pytest.raises(UserError, match="unknown keys: epoch"):
        from_dict(to_dict(config) | {"epoch": 3})


def test_the_published_recipe_is_the_published_one() -> None:
    config = catalogue.recipe("imagenet-100ep")
    assert (config.epochs, config.batch_size, config.image_size, config.arch) == (
        100,
        512,
        224,
        "resnet50",
    )
    sgd = config.optimizer
    assert (sgd.lr, sgd.momentum, sgd.weight_decay, sgd.schedule, sgd.warmup_epochs) == (
        0.05,
        0.9,
        1e-4,
        "epoch",
        0,
    )
    head = config.method
    assert (head.projector_layers, head.projector_dim, head.predictor_dim) == (3, 2048, 512)
    assert (head.stop_gradient, head.predictor, head.predictor_lr, head.symmetric) == (
        True,
        "mlp",
        "constant",
        True,
    )
    view, other = config.views
    assert view == other
    assert (view.area, view.ratio, view.flip) == ((0.2, 1.0), (3 / 4, 4 / 3), 0.5)
    assert (view.jitter, view.brightness, view.contrast, view.saturation, view.hue) == (
        0.8,
        0.4,
        0.4,
        0.4,
        0.1,
    )
    assert (view.grayscale, view.blur, view.blur_sigma, view.solarize) == (
        0.2,
        0.5,
        (0.1, 2.0),
        0.0,
    )


def test_pretrain_then_knn(
    tiny_config: Config, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pretrain(tiny_config)
    capsys.readouterr()
    scores = tmp_path / "scores.json"
    argv = [
        "--data",
        str(tiny_config.data),
        "--k",
        "5",
        "20",
        "--device",
        "cpu",
        "--json",
        str(scores),
    ]
    assert main(["knn", str(tiny_config.out), *argv]) == 0
    table = capsys.readouterr().out
    assert "untrained" in table
    assert len(table.splitlines()) == 3
    stored = json.loads(scores.read_text())
    assert list(stored) == [
        *("untrained", "trained", "bad_images", "checkpoint", "step", "data"),
        *("temperature", "bank", "queries", "notes"),
    ]
    assert set(stored["trained"]) == {"5", "20"}
    assert (stored["checkpoint"], stored["data"]) == (str(tiny_config.out), str(tiny_config.data))
    assert stored["bank"] == 96
    assert all(0 <= value <= 100 for value in stored["trained"].values())
    assert "--k 500 is more than the 96 training images" in fails(
        capsys, "knn", str(tiny_config.out), "--data", str(tiny_config.data), "--k", "500"
    )


def test_knn_agrees_with_the_evaluation_during_training(
    tiny_config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = pretrain(replace(tiny_config, knn=replace(tiny_config.knn, every_epochs=2, k=(7,))))
    options = EvalOptions(device="cpu", precision="fp32")
    result = knn(tiny_config.out, tiny_config.data, k=(7,), options=options)
    assert result.untrained[7] == pytest.approx(summary.first["knn_top1_k7"])
    assert result.trained[7] == pytest.approx(summary.last["knn_top1_k7"])


@pytest.mark.parametrize("single", [False, True])
def test_views_draws_a_grid(class_folders: Path, tmp_path: Path, single: bool) -> None:
    out = tmp_path / "new" / "views.png"
    path = next((class_folders / "train" / "bee").iterdir()) if single else class_folders
    assert main(["views", str(path), "--out", str(out), "--images", "3", "--image-size", "48"]) == 0
    with Image.open(out) as grid:
        assert grid.size == (3 * 200 + 8, 24 + (1 if single else 3) * 200 + 8)
        assert len(grid.getcolors(1 << 20) or []) > 1000


def test_views_to_an_unwritable_file_is_one_line(
    capsys: pytest.CaptureFixture[str], class_folders: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for out in ("file/views.png", "views.unknown"):
        assert "cannot write --out" in fails(
            capsys, "views", str(class_folders), "--out", str(tmp_path / out)
        )


@pytest.mark.parametrize("command", ["knn", "linear", "inspect", "doctor"])
def test_a_json_that_cannot_be_written_is_refused_before_the_work(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    argv = [] if command == "doctor" else ["no-checkpoint.pt", "--data", "x"]
    argv += ["--json", "/no/such/folder/x.json"]
    assert "--json /no/such/folder/x.json: there is no folder" in fails(capsys, command, *argv)
