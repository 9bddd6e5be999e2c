"""What configs refuse: wrong choices, options without effect, schedules beyond the run."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import pytest

import fastsimsiam
from fastsimsiam.commands.pretrain import _arguments
from fastsimsiam.config.evaluation import EvalOptions, LinearConfig
from fastsimsiam.config.fields import require_choices
from fastsimsiam.config.methods import (
    BYOLConfig,
    MethodConfig,
    MoCoConfig,
    MoCoV3Config,
    SimCLRConfig,
    SimSiamConfig,
    SupConConfig,
)
from fastsimsiam.config.optimizer import OptimizerConfig
from fastsimsiam.config.run import Config, CpuConfig, DaliConfig, require_schedule_within
from fastsimsiam.config.stored import from_dict, to_dict
from fastsimsiam.config.views import ViewSpec
from fastsimsiam.errors import UserError
from fastsimsiam.recipes import catalogue
from fastsimsiam.train.pretrain import pretrain


def refusal(make: Callable[[], object]) -> str:
    """The one line with which something is refused."""
    with pytest.raises(UserError) as caught:
        make()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@dataclass(frozen=True, kw_only=True)
class OfAUser(MethodConfig):
    """A method without a check of its own."""

    name: ClassVar[str] = "of-a-user"

    kind: Literal["a", "b"] | None = None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: OptimizerConfig(name="LARS"),
            "optimizer.name is 'LARS': give 'sgd', 'lars', 'larc' or 'adamw'",
        ),
        (
            lambda: OptimizerConfig(lr_scaling="square"),
            "optimizer.lr_scaling is 'square': give 'linear', 'sqrt' or 'none'",
        ),
        (
            lambda: OptimizerConfig(exclude_bias_and_norm="off"),
            "optimizer.exclude_bias_and_norm is 'off': give True or False",
        ),
        (
            lambda: MoCoConfig(symmetric=False),
            "method.symmetric is False: give 'off', 'sum' or 'mean'",
        ),
        (
            lambda: BYOLConfig(momentum_schedule="Cosine"),
            "method.momentum_schedule is 'Cosine': give 'cosine' or 'constant'",
        ),
        (lambda: MoCoV3Config(momentum_schedule="no"), "method.momentum_schedule is 'no': give"),
        (lambda: SimSiamConfig(predictor=None), "method.predictor is None: give 'mlp', 'none' or"),
        (lambda: SimSiamConfig(symmetric=1), "method.symmetric is 1: give True or False"),
        (lambda: OfAUser(kind="c"), "method.kind is 'c': give 'a', 'b' or None"),
        (
            lambda: ViewSpec(interpolation="cubic"),
            "views.interpolation is 'cubic': give 'bilinear' or 'bicubic'",
        ),
        (lambda: ViewSpec(grayscale_first=[]), "views.grayscale_first is []: give True or False"),
        (lambda: CpuConfig(crops="gpu"), "cpu.crops is 'gpu': give 'host' or 'device'"),
        (lambda: DaliConfig(decoder="gpu"), "dali.decoder is 'gpu': give 'auto', 'cpu' or 'mixed'"),
        (lambda: EvalOptions(stem="cfar"), "--stem is 'cfar': give 'imagenet', 'cifar' or None"),
        (lambda: LinearConfig(optimizer="adam"), "--optimizer is 'adam': give 'lars' or 'sgd'"),
        (
            lambda: catalogue.recipe("demo", on_bad_image="ignore"),
            "--on-bad-image is 'ignore': give 'error', 'skip', 'error-strict' or 'skip-strict'",
        ),
        (
            lambda: catalogue.recipe("demo", zero_init_residual=None),
            "--zero-init-residual is None: give True or False",
        ),
    ],
)
def test_a_wrong_choice_is_refused_with_the_choices(
    make: Callable[[], object], message: str
) -> None:
    assert refusal(make).startswith(message)


def test_choices_that_exist_pass_and_are_looked_up_once() -> None:
    assert OfAUser(kind="b").kind == "b"
    assert EvalOptions(stem=None).stem is None
    ViewSpec()
    before = ViewSpec.__annotations__
    try:
        ViewSpec.__annotations__ = {}
        require_choices("views.", ViewSpec())
    finally:
        ViewSpec.__annotations__ = before


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OptimizerConfig(trust=0.02), "optimizer.trust is 0.02: optimizer sgd does not"),
        (lambda: OptimizerConfig(name="adamw", trust=0.02), "optimizer.trust is 0.02: optimizer a"),
        (
            lambda: OptimizerConfig(name="lars", beta2=0.95),
            "optimizer.beta2 is 0.95: optimizer lars does not use it: give adamw, or leave it out",
        ),
        *(
            (
                lambda kind=kind: kind(projector_layers=1, hidden_dim=64),
                "method.hidden_dim is 64: a projector of 1 layer has no hidden one: "
                "give projector_layers 2 or more, or leave it out",
            )
            for kind in (MoCoConfig, SimCLRConfig, SupConConfig)
        ),
    ],
)
def test_an_option_that_nothing_reads_is_refused(make: Callable[[], object], message: str) -> None:
    assert refusal(make).startswith(message)


def test_options_that_are_read_pass() -> None:
    OptimizerConfig(name="lars", trust=0.02)
    OptimizerConfig(name="larc", trust=0.02)
    OptimizerConfig(name="adamw", beta2=0.95)
    MoCoConfig(projector_layers=2, hidden_dim=64)
    MoCoConfig(projector_layers=1)


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        (
            "moco-v1-imagenet-200ep",
            {"epochs": 160},
            "--optimizer.milestones 120 160 are not within --epochs 160: "
            "give --optimizer.milestones 96 128",
        ),
        (
            "moco-v1-imagenette",
            {"epochs": 2},
            "--optimizer.milestones 480 640 are not within --epochs 2: "
            "give --optimizer.milestones 1",
        ),
        (
            "moco-v1-imagenette",
            {"epochs": 1},
            "--optimizer.milestones 480 640 are not within --epochs 1: "
            "give --optimizer.decay cosine --optimizer.milestones",
        ),
        (
            "simclr-imagenet-100ep",
            {"epochs": 5},
            "--optimizer.warmup-epochs 10 is not within --epochs 5: "
            "give --optimizer.warmup-epochs 0.5",
        ),
        (
            "simclr-imagenet-100ep",
            {"epochs": 10},
            "--optimizer.warmup-epochs 10 is not within --epochs 10: "
            "give --optimizer.warmup-epochs 1",
        ),
    ],
)
def test_a_schedule_beyond_the_run_is_refused_with_one_that_fits(
    recipe: str, changes: dict[str, Any], message: str
) -> None:
    config = catalogue.recipe(recipe, **changes)  # may be changed further
    assert refusal(lambda: require_schedule_within(config)) == message
    assert refusal(lambda: pretrain(replace(config, device="cpu"))) == message
    # What is stored is read.
    assert from_dict(to_dict(config)) == config
    # The advice works.
    argv = re.findall(r"--\S+|[\d.]+|cosine", message.partition("give ")[2])
    parsed = _arguments([recipe, "--epochs", str(config.epochs), *argv])
    assert parsed
    require_schedule_within(parsed.config)


def test_schedules_of_all_recipes_are_within() -> None:
    for name in catalogue.RECIPES:
        require_schedule_within(catalogue.recipe(name))
    require_schedule_within(catalogue.recipe("moco-v1-imagenet-200ep", epochs=161))
    require_schedule_within(catalogue.recipe("simclr-imagenet-100ep", epochs=11))


def test_a_run_that_was_begun_with_such_a_schedule_goes_on(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(tiny_config, optimizer=OptimizerConfig(warmup_epochs=3.0), max_steps=2)
    assert "warmup-epochs 3 is not within --epochs 2" in refusal(lambda: pretrain(config))
    assert "warmup-epochs 3" in refusal(lambda: pretrain(config, resume="auto"))
    with monkeypatch.context() as patch:
        patch.setattr("fastsimsiam.train.pretrain.require_schedule_within", lambda config: None)
        assert pretrain(config).steps == 2
    assert pretrain(replace(config, max_steps=4), resume=True).steps == 4
    assert fastsimsiam.knn(config.out, config.data, k=(3,)).trained
