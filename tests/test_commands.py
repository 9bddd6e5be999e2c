"""What all commands share: advice that works, results that can be written, and interruptions."""

import ast
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout, suppress
from dataclasses import replace
from functools import cache
from io import StringIO
from pathlib import Path

import pytest
import torch
from conftest import save_run

from fastsimsiam.cli import COMMANDS, main
from fastsimsiam.config.run import Config
from fastsimsiam.errors import BadImageError, UserError
from fastsimsiam.evaluate import knn as module
from fastsimsiam.recipes import catalogue
from fastsimsiam.system.files import require_replaceable, require_writable, written_whole
from fastsimsiam.system.json_text import to_json

PACKAGE = Path(__file__).parent.parent / "fastsimsiam"
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9.-]*[a-z0-9]|(?<![\w-])--k\b")
OF_OTHER_PROGRAMS = {"--always", "--dirty", "--query-gpu", "--nproc-per-node", "--version"}
"""Options of git, nvidia-smi and torchrun, and of fastsimsiam itself."""


@cache
def options(command: str) -> frozenset[str]:
    """Every option of a command, as its help lists them; of pretrain, those of all methods."""
    # A recipe of each method.
    recipes = {type(recipe.make().method): name for name, recipe in catalogue.RECIPES.items()}
    names = [[name] for name in recipes.values()] if command == "pretrain" else [[]]
    printed = StringIO()
    with redirect_stdout(printed):
        for name in names:
            with suppress(SystemExit):
                main([command, *name, "--help"])
    return frozenset(OPTION.findall(printed.getvalue())) | {"--recipe"}


def named_options(path: Path) -> set[str]:
    """Options in the strings of a module, docstrings of functions and modules aside."""
    tree = ast.parse(path.read_text())
    documented = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    texts = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and id(node) not in documented
    ]
    return {option for text in texts for option in OPTION.findall(text)} - OF_OTHER_PROGRAMS


def test_every_option_in_a_message_exists() -> None:
    known = set[str]().union(*(options(command) for command in COMMANDS))
    assert "--on-bad-image" in known
    for path in PACKAGE.rglob("*.py"):
        if path.name not in ("renamed.py", "parse.py"):  # which know what options were called
            for option in named_options(path) - known:
                # The beginning of an option with a number in its name: `--views.0.size`.
                assert any(name.startswith(f"{option}.") for name in known), (path, option)


# Modules whose messages reach the user of a command, and of which commands.
EVALUATIONS = ("knn", "linear", "finetune", "distill", "uncertainty", "inspect", "embed")
REACHED_FROM = {
    "evaluate/context.py": (*EVALUATIONS, "report"),
    "evaluate/features.py": (*EVALUATIONS, "report"),
    "evaluate/finite.py": (*EVALUATIONS, "report", "export"),
    "evaluate/foreign.py": (*EVALUATIONS, "export"),
    "evaluate/pretrained.py": (*EVALUATIONS, "export"),
    "evaluate/weights_file.py": (*EVALUATIONS, "export", "report"),
    "evaluate/recorded.py": (*EVALUATIONS, "export"),
    "evaluate/knn.py": ("knn",),
    "evaluate/linear.py": ("linear",),
    "evaluate/linear_probe.py": ("linear",),
    "evaluate/supervised.py": ("finetune", "distill"),
    "evaluate/training_file.py": ("linear", "finetune", "distill"),
    "evaluate/labels.py": ("linear", "finetune"),
    "evaluate/classifier.py": ("finetune", "distill"),
    "evaluate/classifier_training.py": ("finetune", "distill"),
    "evaluate/finetune.py": ("finetune",),
    "evaluate/distill.py": ("distill",),
    "evaluate/uncertainty.py": ("uncertainty",),
    "evaluate/uncertainty_picture.py": ("uncertainty",),
    "evaluate/inspect.py": ("inspect",),
    "tools/embed.py": ("embed",),
    "tools/export.py": ("export",),
    "tools/views.py": ("views",),
    "tools/index.py": ("index",),
    "report/report.py": ("report",),
    "report/neighbors.py": ("report",),
    "loaders/bad_images.py": (*EVALUATIONS, "report", "pretrain", "doctor", "pack"),
    "loaders/resident_loader.py": (*EVALUATIONS, "report", "pretrain", "doctor"),
    "loaders/frame_threads.py": (*EVALUATIONS, "report", "pretrain", "doctor"),
    "system/device.py": (*EVALUATIONS, "report", "pretrain", "doctor"),
    "system/resources.py": (*EVALUATIONS, "report", "pretrain", "doctor", "pack"),
}


@pytest.mark.parametrize("module", REACHED_FROM)
def test_a_command_is_advised_options_that_it_has(module: str) -> None:
    named = named_options(PACKAGE / module)
    for command in REACHED_FROM[module]:
        assert not named - options(command), command


def test_views_passes_over_broken_images(
    tmp_path: Path, class_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has no --on-bad-image that a message could advise."""
    folder = tmp_path / "data" / "ant"
    folder.mkdir(parents=True)
    for number, file in enumerate(sorted((class_folders / "train" / "ant").iterdir())[:3]):
        (folder / f"{number}.jpg").write_bytes(file.read_bytes()[: 200 if number == 1 else None])
    out = tmp_path / "views.png"
    assert main(["views", str(folder.parent), "--out", str(out), "--image-size", "32"]) == 0
    assert "1 broken images passed over" in capsys.readouterr().err
    assert out.is_file()
    for file in folder.iterdir():
        file.write_bytes(b"no image")
    assert main(["views", str(folder.parent), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "has no intact image" in error
    assert error.count("\n") == 1
    assert "--on-bad-image" not in error


def test_no_message_holds_a_memory_address() -> None:
    text = "a.jpg cannot be decoded (cannot identify image file <_io.BytesIO object at 0x7fe1>)"
    assert str(BadImageError(text)) == "a.jpg cannot be decoded (cannot identify image file)"
    assert "0x" not in str(UserError("<data at 0x7f00AB>"))
    assert str(UserError("a < b, c > d at 0x10")) == "a < b, c > d at 0x10"


def test_names_of_files_do_not_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["knn", "a\x1b[2J\nb\u202e\udce9.pt", "--data", "x"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "\x1b" not in error
    assert "\u202e" not in error
    assert "a\\x1b[2J b" in error


def test_json_has_no_numbers_that_are_none() -> None:
    content = {"a": [math.nan, (1.5, -math.inf)], "b": {"c": math.inf}, "d": [True, None, "NaN"]}
    assert json.loads(to_json(content), parse_constant=pytest.fail) == {
        "a": [None, [1.5, None]],
        "b": {"c": None},
        "d": [True, None, "NaN"],
    }


WITH_RESULT = {
    "knn": ("--json", ["x.pt", "--data", "x"]),
    "linear": ("--json", ["x.pt", "--data", "x"]),
    "inspect": ("--json", ["x.pt", "--data", "x"]),
    "uncertainty": ("--png", ["x.pt", "--data", "x"]),
    "finetune": ("--json", ["x.pt", "--data", "x", "--out", "x"]),
    "distill": ("--json", ["x.pt", "--data", "x", "--out", "x"]),
    "doctor": ("--json", []),
    "embed": ("--out", ["x.pt", "--data", "x"]),
    "views": ("--out", ["x"]),
}


@pytest.mark.parametrize("command", [*WITH_RESULT, "export", "linear --out"])
def test_a_result_that_cannot_be_written_is_noticed_before_the_work(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The checkpoint is missing, too: its message would come after the check of the result."""
    suffix = ".npz" if command == "embed" else ".onnx"
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"folder{suffix}").mkdir()
    (tmp_path / "file").touch()
    for name, message in (
        (f"pipe{suffix}", "is a named pipe, not a file"),
        (f"folder{suffix}", "is a folder, not a file"),
        (f"file/x{suffix}", "file"),
    ):
        target = str(tmp_path / name)
        if command == "export":
            argv = ["export", "x.pt", target, "--format", "onnx"]
        elif command == "linear --out":
            argv = ["linear", "x.pt", "--data", "x", "--out", str(tmp_path / "file")]
            message = "--out .*file is a file: pass a folder"
        else:
            option, rest = WITH_RESULT[command]
            argv = [command, *rest, option, target]
        assert main(argv) == 2
        error = capsys.readouterr().err
        assert re.search(message, error), error
        assert error.count("\n") == 1
        assert not list(tmp_path.glob("*.partial"))


def test_devices_and_links_of_the_system_are_never_replaced(tmp_path: Path) -> None:
    """Only asked, never tried: a user with all rights would lose /dev/null."""
    for target in ("/dev/null", "/dev/stdout", "/proc/self/fd/1", "/dev/new", "/dev/zero"):
        with pytest.raises(UserError, match=f"--json {target} is .*: pass the name of a file"):
            require_replaceable(Path(target), "--json")
    require_replaceable(Path("/dev/shm/x.json"), "--json")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match="is a named pipe"), written_whole(pipe, "--json") as file:
        file.touch()
    assert pipe.is_fifo()


def test_a_full_disk_is_noticed_before_the_work(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk."""
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from fastsimsiam.cli import main\n"
        "sys.exit(main(['knn', 'x.pt', '--data', 'x', '--json', 'scores.json']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "cannot write --json scores.json (File too large)" in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_check_of_a_result_leaves_an_older_one_as_it_is(tmp_path: Path) -> None:
    target = tmp_path / "scores.json"
    target.write_text("old")
    require_writable(target, "--json")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


_SLOW = """
import sys, time
from fastsimsiam import cli
from fastsimsiam.system.files import written_whole
from pathlib import Path

def work(argv):
    with written_whole(Path("result.json"), "--json") as file:
        file.write_text("half")
        print("working", flush=True)
        time.sleep(60)

cli._dispatch = work
sys.exit(cli.main(["knn"]))
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_interrupted_command_leaves_nothing_half_written(name: str, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _SLOW],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n"
        started = time.monotonic()
        process.send_signal(signal.Signals[name])
        _, error = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.Signals[name]
    assert error == f"fastsimsiam: interrupted by {name}\n"
    assert time.monotonic() - started < 10
    assert not list(tmp_path.iterdir())


def test_main_restores_the_handlers_of_its_caller() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert main(["--version"]) == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_score_is_printed_before_its_file_is_written(
    tiny_config: Config,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The folder of --json is gone when the score is there."""
    save_run(replace(tiny_config, out=tmp_path / "run"))
    folder = tmp_path / "gone"
    folder.mkdir()
    argv = ["knn", str(tmp_path / "run"), "--data", str(tiny_config.data), "--device", "cpu"]
    scored = module.knn

    def and_break(*args: object, **options: object) -> module.KnnResult:
        result = scored(*args, **options)
        folder.rmdir()
        folder.touch()
        return result

    monkeypatch.setattr(module, "knn", and_break)
    assert main([*argv, "--json", str(folder / "x.json")]) == 2
    printed = capsys.readouterr()
    assert "kNN top-1" in printed.out
    assert "cannot write --json" in printed.err


def test_a_folder_given_as_a_file_is_called_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"conv1.weight": torch.ones(1)}, tmp_path / "weights.pth")
    assert main(["report", str(tmp_path / "weights.pth"), "--out", str(tmp_path / "x.html")]) == 2
    assert "weights.pth is a file: pass the folder of a run" in capsys.readouterr().err
