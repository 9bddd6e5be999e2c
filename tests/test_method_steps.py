"""`benchmarks.step --method`: the network work is counted, the steps are those of the recipes."""

import argparse
import copy
import json
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import tiny_backbone  # noqa: F401
import torch
from conftest import CPU
from throwaway_method import Throwaway, throwaway

from benchmarks import method_steps, render, step
from benchmarks.method_steps import Passes, analyze, count_passes, measure, recipe_of, table
from benchmarks.step_variants import VARIANTS, Step
from fastsimsiam.config.run import Config
from fastsimsiam.config.views import ViewSpec
from fastsimsiam.methods.base import Method
from fastsimsiam.methods.registry import METHODS
from fastsimsiam.recipes import catalogue
from fastsimsiam.recipes.base import DIGITS, IMAGENET, Recipe

WORK = {
    "simsiam": (2, 2),
    "throwaway": (2, 1),
    "simclr": (2, 2),
    "supcon": (2, 2),
    "byol": (4, 2),
    "byol-no-momentum": (2, 2),
    "moco": (2, 1),
    "moco-v3": (4, 2),
    "swav": (2 + 6 * (14 / 32) ** 2,) * 2,
    "vi-simsiam": (2, 2),
}
"""Method -> forward and backward passes of an image: a backward pass costs as much as two forward."""
SMALL = argparse.Namespace(arch="tiny_resnet", image_size=32, batch_size=16)


@pytest.mark.parametrize("name", [config.name for config in METHODS if config.name in WORK])
def test_the_network_work_of_each_method(name: str) -> None:
    passes = count_passes(recipe_of(name, "tiny_resnet", 32, 64))
    assert (passes.forward, passes.backward) == pytest.approx(WORK[name])
    assert passes.work == passes.forward + 2 * passes.backward


def test_every_method_of_the_package_has_its_work_here() -> None:
    own = {c.name for c in METHODS if c.__module__.startswith("fastsimsiam.")}
    assert own <= WORK.keys()


def test_the_published_shares() -> None:
    assert Passes(forward=2, backward=1).work == 4
    assert Passes(forward=4, backward=2).work == 8


def test_small_views_count_by_their_pixels() -> None:
    config = recipe_of("simsiam", "tiny_resnet", 32, 4)
    views = (ViewSpec(), ViewSpec(), *[ViewSpec(size=16)] * 4)
    passes = count_passes(replace(config, views=views))
    assert passes == Passes(forward=3, backward=3)


def test_a_joint_forward_counts_its_images(monkeypatch: pytest.MonkeyPatch) -> None:
    def joint(self: Throwaway, views: tuple[torch.Tensor, ...], labels: torch.Tensor) -> object:
        first, second = self.projector(self.backbone(torch.cat(views))).chunk(2)
        return (first - second).square().mean(), {}

    monkeypatch.setattr(Throwaway, "forward", joint)
    assert count_passes(recipe_of("throwaway", "tiny_resnet", 32, 4)) == Passes(
        forward=2, backward=2
    )


def test_a_method_has_the_recipe_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(throwaway(), recipe="small", accumulate=1)
    multi = replace(
        throwaway(),
        recipe="large",
        image_size=224,
        stem="cifar",
        batch_size=4096,
        views=(ViewSpec(), ViewSpec(size=96)),
    )
    for config, data_set in ((small, DIGITS), (multi, IMAGENET)):
        recipe = Recipe(make=lambda config=config: config, data_set=data_set)
        monkeypatch.setitem(catalogue.RECIPES, config.recipe, recipe)
    config = recipe_of("throwaway", "tiny_resnet", 64, 16)
    assert (config.recipe, config.stem, config.batch_size) == ("large", "imagenet", 16)
    assert config.optimizer == multi.optimizer
    assert [view.size for view in config.views] == [None, 27]
    views = Step(config, replace(VARIANTS["eager"], dtype=torch.float32), CPU).views(config, 0)
    assert [tuple(view.shape) for view in views] == [(16, 3, 64, 64), (16, 3, 27, 27)]
    monkeypatch.undo()
    plain = recipe_of("throwaway", "tiny_resnet", 64, 16)
    assert (plain.recipe, plain.method.name) == ("imagenet-100ep", "throwaway")


def test_the_cost_outside_of_the_networks_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of 4/6 of the work, and what its hook takes beyond it."""
    runs = {"throwaway": [measure("throwaway", SMALL, 3, "eager", CPU)]}
    before = analyze(["throwaway", "simsiam"], SMALL, runs)["throwaway"]
    assert (before["work"], before["baseline_work"]) == (4, 6)
    assert before["over_share"] == pytest.approx(before["ratio"] / (4 / 6) - 1)
    after_step = Throwaway.after_step

    def slow(self: Throwaway) -> None:
        after_step(self)
        time.sleep(max(0.5, 2 * before["step_ms"] / 1e3))

    monkeypatch.setattr(Throwaway, "after_step", slow)
    (run,) = [measure("throwaway", SMALL, 3, "eager", CPU)]
    after = analyze(["throwaway"], SMALL, {"throwaway": [run]})["throwaway"]
    assert after["ratio"] > before["ratio"] + 0.5
    assert after["part_ms"]["update"] > 400
    assert len(run["step_seconds"]) == len(run["baseline_seconds"]) == 3
    best = min(run["step_seconds"]) / min(run["baseline_seconds"])
    assert run["ratio"] == pytest.approx(best, rel=0.05)


def test_the_table_is_rendered() -> None:
    run = {
        "ratio": 0.68,
        "dtype": "float32",
        "step_seconds": [0.1, 0.2, 0.3],
        "baseline_seconds": [0.3, 0.3, 0.3],
        "part_seconds": [{"forward": 0.1, "backward": 0.05, "update": 0.01}],
    }
    other = copy.deepcopy(run) | {"ratio": 0.72}
    methods = analyze(["throwaway"], SMALL, {"throwaway": [run, run, other]})
    assert methods["throwaway"]["spread"] == pytest.approx(0.04 / 0.68)
    result = {
        "regime": "step-methods",
        **vars(SMALL),
        "variant": "eager",
        "dtype": "float32",
        "methods": methods,
    }
    text = render.TABLES["step-methods"](result)
    assert text == table(result)
    assert "tiny_resnet, 32 pixels, batch 16, float32, eager:" in text
    row = "| throwaway | imagenet-100ep | sgd | 4/6 | 200.0 | 80 | 0.680 | 0.667 | +2.0% |"
    assert row in text


def test_the_command_measures_a_method(tmp_path: object) -> None:
    file = f"{tmp_path}/methods.json"
    argv = (
        "-m benchmarks.step --method simsiam --arch resnet18 --image-size 32 --batch-size 4".split()
    )
    argv += ["--steps", "2", "--repeats", "1", "--json", file]
    done = subprocess.run([sys.executable, *argv], capture_output=True, text=True, check=True)
    assert "| simsiam | imagenet-100ep | sgd | 6/6 |" in done.stdout
    with open(file) as opened:
        result = json.load(opened)
    assert result["regime"] == "step-methods"
    assert result["methods"]["simsiam"]["share"] == 1
    assert len(result["samples"]["simsiam"][0]["step_seconds"]) == 2


def test_passes_are_counted_of_no_more_images_than_the_method_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counted: list[int] = []
    built = method_steps.build_method

    def build(config: Config) -> Method:
        method = built(config)
        method.register_forward_pre_hook(lambda _, inputs: counted.append(len(inputs[1])))
        return method

    monkeypatch.setattr(method_steps, "build_method", build)
    for name in ("simsiam", "moco"):
        count_passes(recipe_of(name, "two_layers", 32, 256))
    assert counted == [16, 64]  # MoCo needs two groups of 32


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--method", "nope"], "invalid choice: 'nope'"),
        (
            ["--method", "all", "--only", "eager", "compiled"],
            "--method takes one variant by --only",
        ),
        (["--method", "all", "--only", "textbook-fp32"], "eager or compiled, and no --add"),
    ],
)
def test_wrong_arguments_are_refused(
    argv: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["step", *argv])
    with pytest.raises(SystemExit):
        step.main()
    assert message in capsys.readouterr().err


def test_a_batch_that_a_method_cannot_use_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", "step --method simsiam moco --batch-size 32".split())
    with pytest.raises(
        SystemExit, match="--batch-size 32 is none that moco can use: give a larger"
    ):
        step.main()


def test_all_methods_are_listed_with_the_baseline_first() -> None:
    names = method_steps.method_names()
    assert names[0] == "simsiam"
    assert sorted(names) == sorted(config.name for config in METHODS)
