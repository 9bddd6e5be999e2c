"""`fastsimsiam pretrain RECIPE`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from fastsimsiam.commands.parse import parse
from fastsimsiam.config.run import Config
from fastsimsiam.errors import UserError
from fastsimsiam.recipes import catalogue
from fastsimsiam.recipes.listing import listing
from fastsimsiam.system.launcher import told_by_the_first

_MEANINGS: Mapping[tuple[str, ...], bool | Literal["auto"]] = {
    (): True,
    ("auto",): "auto",
    ("no",): False,
}


def _resume(words: list[str]) -> bool | Literal["auto"]:
    """What stands behind `--resume`."""
    if tuple(words) not in _MEANINGS:
        raise ValueError(f"--resume is {' '.join(words)}: give --resume or --resume auto")
    return _MEANINGS[tuple(words)]


_Resume = Annotated[
    bool | Literal["auto"],
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="[auto]",
        instance_from_str=_resume,
        is_instance=lambda value: value in _MEANINGS.values(),
        str_from_instance=lambda value: {False: ["no"], True: [], "auto": ["auto"]}[value],
    ),
]


@dataclass(frozen=True, kw_only=True)
class _Pretrain:
    """Arguments of `pretrain`."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    resume: _Resume = False
    """Continue from the newest good checkpoint in --out; auto: if there is one, else start."""
    profile: int = 0
    """Steps to profile with torch: writes OUT/trace.json and prints the most expensive kernels."""


def run(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    with told_by_the_first():
        arguments = _arguments(argv)
    if arguments is None:
        return 0
    from fastsimsiam.train.pretrain import pretrain

    summary = pretrain(arguments.config, resume=arguments.resume, profile=arguments.profile)
    return 128 + summary.signal if summary.signal else 0


def _arguments(argv: list[str]) -> _Pretrain | None:
    """The arguments; None after --help."""
    if not argv or argv[0].startswith("-"):
        usage = "usage: fastsimsiam pretrain RECIPE --data PATH --out DIR [options]"
        if argv and argv[0] in ("-h", "--help"):
            print(
                f"{usage}\n\nrecipes, by method:\n\n{listing(catalogue.RECIPES)}\n\n"
                "fastsimsiam recipes RECIPE describes one: source, score, time; "
                "fastsimsiam pretrain RECIPE --help lists all options."
            )
            return None
        raise UserError(
            f"pretrain needs a recipe first, such as {next(iter(catalogue.RECIPES))}: "
            "fastsimsiam recipes lists all"
        )
    name = argv[0]
    config = catalogue.recipe(name)
    arguments = parse(
        _Pretrain,
        ["--resume=no" if word == "--no-resume" else word for word in argv[1:]],
        f"fastsimsiam pretrain {name}",
        default=_Pretrain(config=config),
        about=catalogue.find(name).description,
    )
    if arguments.profile < 0:
        raise UserError(f"--profile is {arguments.profile}: give 0 or more")
    return arguments
