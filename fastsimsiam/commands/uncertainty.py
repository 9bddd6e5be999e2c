"""`fastsimsiam uncertainty CHECKPOINT`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from fastsimsiam.commands.parse import parse, write_json
from fastsimsiam.config.evaluation import EvalOptions
from fastsimsiam.system.files import require_writable
from fastsimsiam.system.optional import require

if TYPE_CHECKING:
    from fastsimsiam.evaluate.uncertainty import UncertaintyResult


@dataclass(frozen=True, kw_only=True)
class _Uncertainty:
    """Arguments of `uncertainty`."""

    checkpoint: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CHECKPOINT")]
    """A checkpoint or the folder of a run; or weights of torchvision, timm or official codes."""
    data: Path
    """Data set of any form: its training split is the bank, its validation split (or --val) the
    queries."""
    ood: Path | None = None
    """Another data set, of other classes, which should look less certain."""
    k: int | None = None
    """Number of neighbors; None: 20, or as many as there are training images."""
    options: Annotated[EvalOptions, tyro.conf.arg(name="")] = EvalOptions()
    json: Path | None = None
    """JSON file for the result."""
    png: Path | None = None
    """PNG file for the picture."""


def run(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    about = (
        "Whether a network knows which images it gets wrong: its kappa (VI-SimSiam), the length of "
        "its features and the margin of its neighbors, against errors and damaged images."
    )
    arguments = parse(_Uncertainty, argv, "fastsimsiam uncertainty", about=about)
    if arguments.png:
        require("matplotlib", f"--png {arguments.png}", "pip install 'fastsimsiam[demo]'")
        require_writable(arguments.png, "--png")
    from fastsimsiam.evaluate.uncertainty import uncertainty

    result = uncertainty(
        arguments.checkpoint,
        arguments.data,
        ood=arguments.ood,
        k=arguments.k,
        options=arguments.options,
    )
    print(format_table(result))
    if result.bad_images:
        print(f"{len(result.bad_images)} broken images were left out")
    if arguments.json:
        write_json(arguments.json, result.as_dict())
    if arguments.png:
        from fastsimsiam.evaluate.uncertainty_picture import draw_uncertainty

        draw_uncertainty(result, arguments.png)
        print(f"picture: {arguments.png}")
    return 0


def format_table(result: "UncertaintyResult") -> str:
    """The measures as a table, a line each."""
    corruptions = list(next(iter(result.measures.values())).auroc_corrupted)
    titles = ["least", "most", "AURC", "errors", *corruptions]
    titles += ["other data"] if result.ood is not None else []
    parts = len(next(iter(result.measures.values())).accuracy)
    lines = [
        f"{result.queries} images, kNN (k {result.k}) {result.top1:.2f} %; least and most certain "
        f"1/{parts} in %, AURC (at best {result.least_aurc:.3f}), AUROC of the rest (chance 0.5)",
        f"{'':8}" + "".join(f"{title:>11}" for title in titles),
    ]
    for name, measure in result.measures.items():
        cells = [f"{100 * measure.accuracy[0]:.1f}", f"{100 * measure.accuracy[-1]:.1f}"]
        cells.append(f"{measure.aurc:.3f}")
        aurocs = [measure.auroc_errors, *(measure.auroc_corrupted[key] for key in corruptions)]
        aurocs += [measure.auroc_ood] if result.ood is not None else []
        cells += ["-" if value is None else f"{value:.3f}" for value in aurocs]
        lines.append(f"{name:8}" + "".join(f"{cell:>11}" for cell in cells))
    return "\n".join(lines)
