"""Absurd values of every option: one line each, before anything is opened."""

import dataclasses
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastsimsiam.cli import main
from fastsimsiam.config.evaluation import EvalOptions, LinearConfig
from fastsimsiam.config.methods import MethodConfig
from fastsimsiam.config.run import Config
from fastsimsiam.errors import UserError
from fastsimsiam.recipes import catalogue

ABSURD = ("nan", "inf", "-inf", "1e300", "-1", str(10**30), str(2**70), "9" * 500, "", "x")
# What is not absurd everywhere: any name of a folder, and 0, which some options take.
TEXTS = ("data", "out", "recipe", "arch")


def numbers(config: object, prefix: str = "--") -> Iterator[tuple[str, int]]:
    """Every option of a number, as the command line names it, and how many numbers it takes."""
    hints = typing.get_type_hints(type(config))
    for item in dataclasses.fields(config):  # type: ignore[arg-type]
        value, hint = getattr(config, item.name), hints[item.name]
        option = prefix + item.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            yield from numbers(value, f"{option}.")
        elif item.name == "views":
            yield from numbers(value[1], "--views.1.")
        elif hint in (int, float, int | None, float | None):
            yield option, 1
        elif typing.get_origin(hint) is tuple:
            yield option, 2


OPTIONS = sorted(numbers(catalogue.recipe("imagenette")))


def test_all_numbers_are_tried() -> None:
    assert len(OPTIONS) > 35
    assert {"--seed", "--optimizer.lr", "--knn.k", "--views.1.area", "--method.projector-dim"} <= {
        option for option, _ in OPTIONS
    }


@pytest.mark.parametrize(("option", "count"), OPTIONS, ids=lambda value: str(value))
def test_an_absurd_number_is_one_line(
    option: str, count: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for value in ABSURD:
        argv = ["pretrain", "imagenette", "--out", str(tmp_path / "run"), "--data", str(tmp_path)]
        assert main([*argv, option, *[value] * count]) == 2, value
        (line,) = capsys.readouterr().err.splitlines()
        name = option.removeprefix("--").rpartition(".")[2]
        assert name.replace("-", "_") in line.replace("-", "_"), line
        assert "did you mean" not in line
    assert not (tmp_path / "run").exists()


def test_the_largest_learning_rate_is_one_that_float32_holds() -> None:
    config = catalogue.recipe("imagenette")
    with pytest.raises(UserError, match=r"optimizer\.lr is 1e\+300: give 1e\+06 or less"):
        dataclasses.replace(config.optimizer, lr=1e300)
    with pytest.raises(UserError, match=r"optimizer\.lr is nan"):
        dataclasses.replace(config.optimizer, lr=float("nan"))
    with pytest.raises(UserError, match="--epochs is a number of more than 30 digits"):
        dataclasses.replace(config, epochs=10**5000)
    with pytest.raises(UserError, match=r"--seed is .*: give 0 to 9223372036854775807"):
        dataclasses.replace(config, seed=2**200)


@pytest.mark.parametrize("kind", [LinearConfig, EvalOptions])
def test_options_of_evaluations_have_limits_too(kind: type) -> None:
    for option, _ in numbers(kind()):
        name = option.removeprefix("--").replace("-", "_")
        for value in (float("nan"), float("inf"), 1e300, -1, 10**30):
            with pytest.raises(UserError, match=option):
                kind(**{name: value})


def test_what_is_usual_is_within_all_limits() -> None:
    for name in catalogue.RECIPES:
        config = catalogue.recipe(name)
        assert isinstance(config, Config)
        assert isinstance(config.method, MethodConfig)
