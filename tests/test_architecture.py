"""What keeps the package readable: import direction, optional parts, size of files."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "fastsimsiam"
MODULES = sorted(PACKAGE.rglob("*.py"))
# What a part may import besides itself, `config`, `errors` and `version`: parts that stand above it.
MAY_IMPORT = {
    "system": set(),
    "models": set(),
    "recipes": set(),
    "plan": set(),
    "storage": {"system"},
    "methods": {"models"},
    "runs": {"system"},
    "optim": {"methods"},
    "loaders": {"plan", "storage", "system"},
    "augment": {"loaders", "plan"},
    "evaluate": {
        "augment",
        "loaders",
        "methods",
        "models",
        "optim",
        "plan",
        "recipes",
        "runs",
        "storage",
        "system",
    },
    "view_loader": {"augment", "loaders", "plan", "storage", "system"},
    "train": {
        "augment",
        "evaluate",
        "loaders",
        "methods",
        "models",
        "optim",
        "plan",
        "runs",
        "storage",
        "system",
    },
    "tools": {
        "augment",
        "evaluate",
        "loaders",
        "methods",
        "models",
        "plan",
        "recipes",
        "runs",
        "storage",
        "system",
    },
    "doctor": {
        "augment",
        "evaluate",
        "loaders",
        "methods",
        "optim",
        "plan",
        "recipes",
        "runs",
        "storage",
        "system",
        "train",
    },
    "report": {
        "evaluate",
        "loaders",
        "methods",
        "plan",
        "recipes",
        "runs",
        "storage",
        "system",
        "tools",
    },
}
GROUND = {"config", "errors", "version"}
FACES = {"__init__", "__main__", "cli", "commands"}
# Within a folder: what nothing else in it may import, since it knows all of them.
ON_TOP = {
    "storage": "open",
    "methods": "registry",
    "loaders": "registry",
    "recipes": "catalogue",
    "train": "pretrain",
    "doctor": "doctor",
    "report": "report",
}


def imports(path: Path) -> set[str]:
    """Dotted names of everything a module imports, also within functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            # A module taken from a package: `from fastsimsiam.methods import registry`.
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def module_name(path: Path) -> str:
    """The dotted name of a file of the package."""
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


def part(path: Path) -> str:
    """The part of the package that a module belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_part_has_its_row_below_what_it_imports() -> None:
    parts = {part(path) for path in MODULES}
    assert parts == set(MAY_IMPORT) | GROUND | FACES
    above: set[str] = set()
    for name, allowed in MAY_IMPORT.items():
        assert allowed <= above, name
        above.add(name)


def test_the_root_stays_small() -> None:
    entries = [entry for entry in PACKAGE.iterdir() if entry.name != "__pycache__"]
    assert len(entries) <= 24


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    own = part(path)
    if own in FACES:
        return
    used = {name.split(".")[1] for name in imports(path) if name.startswith("fastsimsiam.")}
    allowed = set() if own in GROUND else MAY_IMPORT[own]
    assert used - {own} - GROUND <= allowed


def test_no_circle() -> None:
    """Not among the modules of a folder either, and not by an import within a function."""
    known = {module_name(path): path for path in MODULES if path.name != "__init__.py"}
    graph = {name: imports(path) & set(known) for name, path in known.items()}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


@pytest.mark.parametrize(("folder", "top"), ON_TOP.items())
def test_within_a_folder_nothing_imports_what_knows_all_of_it(folder: str, top: str) -> None:
    name = f"fastsimsiam.{folder}.{top}"
    users = {path.name for path in (PACKAGE / folder).glob("*.py") if name in imports(path)}
    assert not users


def test_config_and_recipes_load_no_torch() -> None:
    code = (
        "import sys, fastsimsiam.recipes.catalogue, fastsimsiam.config.evaluation\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_evaluating_a_checkpoint_loads_no_trainer() -> None:
    code = (
        "import sys, fastsimsiam\n"
        "fastsimsiam.knn, fastsimsiam.linear, fastsimsiam.inspect, fastsimsiam.Loader\n"
        "loaded = [name for name in sys.modules if name.startswith('fastsimsiam.train')]\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_trainer_names_no_method_and_no_loader() -> None:
    for path in (PACKAGE / "train").glob("*.py"):
        text = path.read_text().lower()
        for name in ("simsiam(", "simsiamconfig", "resident", "daliloader", "ffcvloader"):
            assert name not in text, path
        assert not any("methods.simsiam" in name for name in imports(path))


def test_only_training_and_the_doctor_know_the_trainer() -> None:
    users = {path.name for path in MODULES if "fastsimsiam.train.trainer" in imports(path)}
    assert users == {"build.py", "measure.py", "pretrain.py", "summary.py"}


def test_importing_loads_no_optional_dependency() -> None:
    code = (
        "import sys, pkgutil, fastsimsiam\n"
        "for module in pkgutil.walk_packages(fastsimsiam.__path__, 'fastsimsiam.'):\n"
        "    own = module.name.rpartition('.')[2]\n"
        "    if own not in ('__main__', 'ffcv_decode', 'ffcv_pipeline', 'dali_pipeline'):\n"
        "        __import__(module.name)\n"
        "bad = {'ffcv', 'nvidia.dali', 'matplotlib', 'sklearn', 'tensorboard', 'safetensors', 'onnx',\n"
        "       'onnxruntime', 'obstore', 'pyarrow', 'plotly', 'timm', 'lightly', 'torchcodec'}\n"
        "assert not bad & set(sys.modules), bad & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_only_the_loader_ffcv_needs_ffcv() -> None:
    """Packed files are written, read and checked without it."""
    users = {path.name for path in MODULES if {"ffcv"} & {n.split(".")[0] for n in imports(path)}}
    assert users == {"ffcv_decode.py", "ffcv_pipeline.py"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 350
    assert path.stem not in ("utils", "common", "helpers", "misc")


def test_tables_of_the_documents_are_those_of_their_result_files() -> None:
    root = PACKAGE.parent
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.render", "--check"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
