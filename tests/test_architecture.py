"""What keeps the package readable: import direction, optional parts, size of files."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fastsimsiam"
MODULES = sorted(PACKAGE.rglob("*.py"))
# What a part may import, besides itself, `config` and `errors`: what lies before it on the way.
MAY_IMPORT = {
    "plan": set(),
    "storage": {"scratch", "optional"},
    "loaders": {"cores", "freed_memory", "optional", "plan", "scratch", "storage"},
    "cores": set(),
    "freed_memory": set(),
    "scratch": set(),
    "optional": set(),
    "augment": {"plan", "loaders"},
    "methods": {"heads", "losses", "backbones"},
    "evaluate": {"augment", "loaders", "losses", "plan", "methods"},
    "losses": set(),
    "heads": set(),
    "backbones": set(),
    "schedule": set(),
    "optim": {"methods"},
    "checkpoint": {"config_io"},
    "config_io": set(),
    "trainer": {
        "checkpoint", "distributed", "evaluate", "interrupt", "loaders", "losses", "methods", "optim",
        "plan", "recorder", "schedule",
    },
}  # fmt: skip


def imports(path: Path) -> set[str]:
    """Dotted names of everything a module imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def part(path: Path) -> str:
    """The part of the package that a module belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    own = part(path)
    if own not in MAY_IMPORT:
        return
    used = {name.split(".")[1] for name in imports(path) if name.startswith("fastsimsiam.")}
    assert used - {own, "config", "errors"} <= MAY_IMPORT[own]


def test_the_trainer_names_no_method_and_no_loader() -> None:
    text = (PACKAGE / "trainer.py").read_text().lower()
    for name in (
        "simsiam(",
        "simsiamconfig",
        "folder_loader",
        "resident",
        "reference",
        "dali",
        "ffcv",
    ):
        assert name not in text
    assert not any("methods.simsiam" in name for name in imports(PACKAGE / "trainer.py"))


def test_only_build_and_the_doctor_know_the_trainer() -> None:
    users = {path.name for path in MODULES if "fastsimsiam.trainer" in imports(path)}
    assert users == {"build.py", "trial.py"}


def test_importing_loads_no_optional_dependency() -> None:
    code = (
        "import sys, pkgutil, fastsimsiam\n"
        "for module in pkgutil.walk_packages(fastsimsiam.__path__, 'fastsimsiam.'):\n"
        "    own = module.name.rpartition('.')[2]\n"
        "    if own not in ('__main__', 'ffcv_pipeline', 'dali_pipeline'):\n"
        "        __import__(module.name)\n"
        "bad = {'ffcv', 'nvidia.dali', 'matplotlib', 'sklearn', 'tensorboard', 'safetensors', 'onnx',\n"
        "       'onnxruntime', 'pyarrow', 'plotly', 'timm', 'lightly'}\n"
        "assert not bad & set(sys.modules), bad & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 350
    assert path.stem not in ("utils", "common", "helpers", "misc")


def test_tables_of_the_documents_are_those_of_their_result_files() -> None:
    root = PACKAGE.parent
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.render", "--check"], cwd=root, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
