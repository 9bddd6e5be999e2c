"""`fastsimsiam` alone is the public API: complete, sorted, and loaded on first use."""

import ast
import dataclasses
import inspect
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fastsimsiam

ROOT = Path(__file__).parents[1]
API = {name: getattr(fastsimsiam, name) for name in fastsimsiam.__all__ if name != "__version__"}


def named_types(annotation: Any) -> Iterator[type]:
    """All classes that an annotation mentions, within unions, tuples and callables too."""
    if isinstance(annotation, type):
        yield annotation
    for argument in typing.get_args(annotation):
        for part in argument if isinstance(argument, list) else [argument]:
            yield from named_types(part)


def annotations(item: Any) -> Iterator[tuple[str, Any]]:
    """Where and what: the annotations of a function, or of a class's fields and public methods."""
    hints = typing.get_type_hints(item)
    yield from ((name, hint) for name, hint in hints.items() if not name.startswith("_"))
    if not isinstance(item, type):
        return
    for kind in item.__mro__:
        if not kind.__module__.startswith("fastsimsiam"):
            continue
        for name, member in vars(kind).items():
            if name.startswith("_") and not name.startswith("__"):
                continue
            if isinstance(member, property):
                member = member.fget
            if isinstance(member, (classmethod, staticmethod)):
                member = member.__func__
            if inspect.isfunction(member):
                hints = typing.get_type_hints(member)
                yield from ((f"{name}.{part}", hint) for part, hint in hints.items())


def test_annotations_are_walked_to_their_ends() -> None:
    """Otherwise the next test would find nothing."""
    where = dict(annotations(fastsimsiam.Config))
    assert fastsimsiam.ViewSpec in set(named_types(where["views"]))
    where = dict(annotations(fastsimsiam.Method))
    assert fastsimsiam.ParameterGroup in set(named_types(where["parameter_groups.return"]))
    assert where["before_step.at"] is fastsimsiam.Progress
    assert "metrics.return" in dict(annotations(fastsimsiam.InspectResult))
    nested = typing.Callable[[dict[str, fastsimsiam.Loader | None]], None]
    assert fastsimsiam.Loader in set(named_types(nested))


@pytest.mark.parametrize("name", API)
def test_every_type_of_a_public_signature_is_public(name: str) -> None:
    public = set(API.values())
    for where, annotation in annotations(API[name]):
        for kind in named_types(annotation):
            if kind.__module__.startswith("fastsimsiam"):
                assert kind in public, f"{name}.{where} needs {kind.__qualname__}"


@pytest.mark.parametrize("name", API)
def test_everything_public_says_what_it_is(name: str) -> None:
    assert inspect.getdoc(API[name])
    if dataclasses.is_dataclass(API[name]):
        assert not (API[name].__doc__ or "").startswith(f"{name}("), "only what dataclass writes"


def test_names_are_sorted_and_listed_alike_everywhere() -> None:
    """For the type checker, for `import *` and for the lazy import."""
    names = fastsimsiam.__all__
    assert [name for name in dir(fastsimsiam) if name in names] == sorted(names)
    assert names == sorted(names)
    tree = ast.parse((ROOT / "fastsimsiam" / "__init__.py").read_text())
    (checked,) = [node for node in tree.body if isinstance(node, ast.If)]
    imported = {
        alias.name: node.module.removeprefix("fastsimsiam.")
        for node in checked.body
        for alias in node.names
    }
    assert imported == fastsimsiam._MODULE_OF
    assert set(imported) == set(API)
    with pytest.raises(AttributeError, match="no attribute 'apex'"):
        fastsimsiam.apex  # noqa: B018


def test_options_load_no_torch() -> None:
    code = (
        "import sys, fastsimsiam\n"
        "fastsimsiam.Config, fastsimsiam.ViewSpec, fastsimsiam.recipe('demo', epochs=2)\n"
        "fastsimsiam.EvalOptions(), fastsimsiam.LinearConfig(), fastsimsiam.UserError\n"
        "loaded = {'torch', 'numpy', 'numba'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_examples_need_the_public_api_alone(path: Path) -> None:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            modules.add(node.module or "")
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    assert "fastsimsiam" in modules
    assert not [module for module in modules if module.startswith("fastsimsiam.")]
