"""The command line. Wrong input ends in one line on stderr and exit code 2."""

import contextlib
import inspect
import io
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from fastsimsiam import __version__, recipes
from fastsimsiam.config import Config, DeviceName, LoaderName, OnBadImage
from fastsimsiam.errors import UserError

_Args = TypeVar("_Args")
_HELP = """usage: fastsimsiam COMMAND ...

commands:
  pretrain RECIPE   pretrain a backbone on a folder of images
  knn CHECKPOINT    score a checkpoint by k nearest neighbours
  views PATH        draw what a recipe's views look like
  pack SRC DST      pack class folders into one file for FFCV
  recipes           list the recipes

fastsimsiam COMMAND --help tells more; fastsimsiam --version prints the version."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line and returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(words)
    except UserError as error:
        print(f"fastsimsiam: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, a pager say, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"fastsimsiam: error: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fastsimsiam: interrupted", file=sys.stderr)
        return 130


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(_HELP)
        return 0
    if words[0] == "--version":
        print(f"fastsimsiam {__version__}")
        return 0
    if words[0] not in _COMMANDS:
        raise UserError(f"there is no command {words[0]!r}: choose one of {', '.join(_COMMANDS)}")
    return _COMMANDS[words[0]](words[1:])


def _parse(
    kind: Callable[..., _Args], words: list[str], prog: str, *, default: Any = None, about: str
) -> _Args:
    """tyro, with its boxes of error text folded into one line."""
    printed = io.StringIO()
    options: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(printed):
            parsed: _Args = tyro.cli(kind, args=words, prog=prog, description=about, **options)
            return parsed
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(f"{_one_line(printed.getvalue())}; see {prog} --help") from None


def _one_line(box: str) -> str:
    """What a box of tyro's says: its first part, and the names of options it suggests."""
    lines = [line.strip("│ ") for line in box.splitlines() if not line.startswith(("╭", "╰"))]
    first, _, rest = "\n".join(lines).partition("\n───")
    text = " ".join(first.split())
    near = list(dict.fromkeys(re.findall(r"^--[\w.-]+", rest, flags=re.MULTILINE)))
    return f"{text}; did you mean {' or '.join(near[:3])}?" if near else text


@dataclass(frozen=True, kw_only=True)
class _Pretrain:
    """Arguments of `pretrain`."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    resume: bool = False
    """Continue from the newest checkpoint in --out."""
    profile: int = 0
    """Record so many steps with torch's profiler: OUT/trace.json, and the most expensive kernels."""


def _pretrain(words: list[str]) -> int:
    if not words or words[0].startswith("-"):
        usage = "usage: fastsimsiam pretrain RECIPE --data PATH --out DIR [options]"
        names = "\n".join(f"  {name}" for name in recipes.RECIPES)
        if words and words[0] in ("-h", "--help"):
            print(
                f"{usage}\n\nrecipes:\n{names}\n\nfastsimsiam pretrain RECIPE --help lists all options."
            )
            return 0
        raise UserError(f"pretrain needs a recipe first: one of {', '.join(recipes.RECIPES)}")
    name = words[0]
    config = recipes.get(name)
    arguments = _parse(
        _Pretrain,
        words[1:],
        f"fastsimsiam pretrain {name}",
        default=_Pretrain(config=config),
        about=inspect.getdoc(recipes.RECIPES[name]) or "",
    )
    if arguments.profile < 0:
        raise UserError(f"--profile is {arguments.profile}: give 0 or more")
    from fastsimsiam.pretrain import pretrain

    summary = pretrain(arguments.config, resume=arguments.resume, profile=arguments.profile)
    return 128 + summary.signal if summary.signal else 0


@dataclass(frozen=True, kw_only=True)
class _Knn:
    """Arguments of `knn`."""

    checkpoint: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CHECKPOINT")]
    """A checkpoint, or the folder of a run (its newest checkpoint)."""
    data: Path
    """Folder with train/ (the bank) and val/ (the queries)."""
    k: tuple[int, ...] = (10, 20, 100, 200)
    """Numbers of neighbours."""
    temperature: float = 0.1
    """Neighbours are weighted by exp(cosine similarity / temperature)."""
    image_size: int | None = None
    """Side of the crops in pixels; None: as in training."""
    loader: LoaderName = "auto"
    """Where images come from, see pretrain --help."""
    on_bad_image: OnBadImage = "error"
    """error: a broken image stops the command. skip: another image stands in."""
    device: DeviceName = "auto"
    """auto: cuda where there is one."""
    workers: int | None = None
    """Loader threads; None: one per CPU core of this process."""
    json: Path | None = None
    """File that receives the scores."""


def _knn(words: list[str]) -> int:
    about = "Weighted kNN top-1 of frozen features, beside the untrained network's."
    arguments = _parse(_Knn, words, "fastsimsiam knn", about=about)
    from fastsimsiam.score import knn_table

    scores = knn_table(
        arguments.checkpoint,
        arguments.data,
        k=arguments.k,
        temperature=arguments.temperature,
        image_size=arguments.image_size,
        loader=arguments.loader,
        on_bad_image=arguments.on_bad_image,
        device=arguments.device,
        workers=arguments.workers,
    )
    print(f"{'k':>6}  {'untrained':>9}  {'trained':>9}   (kNN top-1, %)")
    for k in scores["trained"]:
        print(f"{k:>6}  {scores['untrained'][k]:>9.2f}  {scores['trained'][k]:>9.2f}")
    if scores["bad_images"]:
        print(f"{len(scores['bad_images'])} broken images were replaced by others")
    if arguments.json:
        try:
            arguments.json.write_text(json.dumps(scores, indent=2) + "\n")
        except OSError as error:
            raise UserError(f"cannot write --json {arguments.json} ({error.strerror})") from error
    return 0


@dataclass(frozen=True, kw_only=True)
class _Views:
    """Arguments of `views`."""

    path: tyro.conf.Positional[Path]
    """An image, or a data set's folder."""
    out: Path
    """PNG file to write."""
    recipe: str = "imagenet-100ep"
    """Whose views to draw."""
    image_size: int | None = None
    """Side of the views in pixels; None: the recipe's."""
    images: int = 6
    """Rows of the grid (images drawn from a folder)."""
    seed: int = 0
    """Seed of the choice of images and of the views."""


def _views(words: list[str]) -> int:
    about = "Draws a grid: the original with the boxes of its views, then every view."
    arguments = _parse(_Views, words, "fastsimsiam views", about=about)
    from fastsimsiam.show import show_views

    show_views(
        arguments.path,
        arguments.out,
        recipe=arguments.recipe,
        image_size=arguments.image_size,
        num_images=arguments.images,
        seed=arguments.seed,
    )
    print(arguments.out)
    return 0


@dataclass(frozen=True, kw_only=True)
class _Pack:
    """Arguments of `pack`."""

    source: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="SRC")] = None
    """Folder with a folder of images for each class."""
    target: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="DST.beton")] = None
    """File to write, NAME.beton; name it train.beton or val.beton for --data FOLDER."""
    max_side: int | None = None
    """Make images smaller whose longest side is longer, in pixels."""
    short_side: int | None = None
    """Make images smaller whose shortest side is longer, in pixels."""
    quality: int = 90
    """JPEG quality, 1 to 100, of images that cannot keep their own bytes."""
    workers: int | None = None
    """Threads; None: one per CPU core of this process."""
    on_bad_image: OnBadImage = "error"
    """error: a broken image stops the command. skip: it is left out, and listed in the manifest."""
    verify: Path | None = None
    """Check this packed file against its manifest and decode all of it, instead of packing."""


def _pack(words: list[str]) -> int:
    about = "Packs class folders into one file for FFCV; every image is decoded on the way."
    arguments = _parse(_Pack, words, "fastsimsiam pack", about=about)
    from fastsimsiam.pack import PackOptions, pack, verify
    from fastsimsiam.progress import ImageProgress
    from fastsimsiam.storage.class_folder import has_split, open_split

    if arguments.verify:
        with ImageProgress("verifying") as progress:
            found = verify(arguments.verify, workers=arguments.workers, report=progress)
        print(f"{arguments.verify}: {len(found)} images, whole and as packed")
        return 0
    if arguments.source is None or arguments.target is None:
        raise UserError(
            "pack needs SRC and DST.beton, or --verify FILE; see fastsimsiam pack --help"
        )
    for split in ("train", "val"):
        if has_split(arguments.source, split):
            raise UserError(
                f"{arguments.source} has a folder {split}/: pack each split by itself, "
                f"{arguments.source / split} first"
            )
    options = PackOptions(
        max_side=arguments.max_side, short_side=arguments.short_side, quality=arguments.quality
    )
    with ImageProgress("reading headers") as progress:
        storage = open_split(arguments.source, "train", report=progress)
    with ImageProgress("packing") as progress:
        manifest = pack(
            storage, arguments.target, options, workers=arguments.workers,
            on_bad_image=arguments.on_bad_image, report=progress,
        )  # fmt: skip
    print(
        f"{arguments.target}: {manifest['images_total']} images of {len(manifest['classes'])} classes, "
        f"{manifest['bytes'] / 1e6:.1f} MB; {manifest['images_with_their_own_bytes']} kept their own "
        f"bytes, {len(manifest['left_out'])} broken ones left out"
    )
    return 0


@dataclass(frozen=True, kw_only=True)
class _Recipes:
    """Arguments of `recipes`."""

    names: bool = field(default=False)
    """Print the names alone."""


def _recipes(words: list[str]) -> int:
    arguments = _parse(_Recipes, words, "fastsimsiam recipes", about="Lists the recipes.")
    for name, make in recipes.RECIPES.items():
        print(name)
        if not arguments.names:
            print("\n".join(f"    {line}" for line in (inspect.getdoc(make) or "").splitlines()))
            print()
    return 0


_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "pretrain": _pretrain,
    "knn": _knn,
    "views": _views,
    "pack": _pack,
    "recipes": _recipes,
}
