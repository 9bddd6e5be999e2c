"""`fastsimsiam report`: from runs and their data to the file."""

import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastsimsiam.config.evaluation import EvalOptions
from fastsimsiam.config.run import Config
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.context import EvalContext, open_eval_context
from fastsimsiam.plan.order import epoch_order
from fastsimsiam.report import figures, sections
from fastsimsiam.report.flat_map import MOST, flat_map
from fastsimsiam.report.neighbors import NEIGHBORS, Neighborhood, examine, shown_neighbors
from fastsimsiam.report.page import MapImages, assemble
from fastsimsiam.report.runs import Run, read_runs
from fastsimsiam.report.thumbnails import center, jpeg, thumbnails
from fastsimsiam.storage.base import Storage, fingerprint
from fastsimsiam.storage.open import open_split
from fastsimsiam.system.files import written_whole
from fastsimsiam.system.optional import require
from fastsimsiam.tools.views import draw_views_grid
from fastsimsiam.version import __version__

_VIEWS_ROWS = 4
_GALLERY = 12
_GALLERY_SIDE = 112
_MAP_SIDE = 56
# Of all thumbnails: with plotly.js (4.8 MB) and the rest the page stays below 10 MB.
_MAP_LETTERS = 3_600_000
_CONFUSION_CLASSES = 30
_MOST_REASONS = 10


@dataclass(kw_only=True)
class _Page:
    """The page as it grows."""

    body: list[str] = field(default_factory=list)
    charts: dict[str, Any] = field(default_factory=dict)
    images: MapImages | None = None


def report(
    runs: Sequence[Path],
    *,
    data: Path | None = None,
    out: Path | None = None,
    options: EvalOptions | None = None,
) -> Path:
    """Writes one HTML file on some runs.

    Args:
        runs: their folders; curves are of all, pictures of the first.
        data: the data set's folder; None: that of the first run's config, if it is there.
        out: file to write; None: report.html in the first folder.
        options: for the features.

    Returns:
        The file.

    Raises:
        UserError: something in the arguments, the runs or the data has to be mended.
    """
    for module, name in (("plotly", "plotly"), ("sklearn", "scikit-learn")):
        require(module, "report", "pip install 'fastsimsiam[report]'", name=name)
    if not 1 <= len(runs) <= figures.MOST_RUNS:
        raise UserError(
            f"{len(runs)} runs are more than colors can tell apart: give 1 to {figures.MOST_RUNS}"
        )
    read = read_runs(runs)
    run = read[0]
    target = out or run.path / "report.html"
    _require_writable(target)
    page = _Page(body=[sections.heading(run)])
    _add_curves(page, read)
    why_not = _why_no_pictures(run, data)
    if why_not:
        _add_note(page, "pictures", "Views, neighbors and map", f"left out: {why_not}")
    else:
        place = data or run.config.data
        with open_eval_context(
            run.path, place, options or EvalOptions(), need_val=False
        ) as session:
            _add_pictures(page, run, session)
    page.body += [
        sections.section("repeat", "Repeat the run", sections.repeat(run)),
        sections.section("config", "Configuration", sections.configs(read)),
        sections.section("environment", "Environment", sections.environment(run)),
        sections.footer(__version__),
    ]
    title = f"{run.config.recipe}: {', '.join(one.name for one in read)}"
    with written_whole(target, "--out") as file:
        file.write_text(
            assemble(title, "".join(page.body), page.charts, page.images), encoding="utf-8"
        )
    return target


def _require_writable(target: Path) -> None:
    """Before minutes of work, not after."""
    if target.is_dir():
        raise UserError(f"--out {target} is a folder: give a file, {target}/report.html say")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write --out {target} ({error.strerror})") from error
    if not os.access(target.parent, os.W_OK):
        raise UserError(f"cannot write --out {target} (no permission): give another --out")


def _add_note(page: _Page, name: str, title: str, *texts: str) -> None:
    """What the reader has to know, on the page and at once."""
    for text in texts:
        print(f"{title}: {text}", file=sys.stderr)
    body = "".join(sections.paragraph(f"{text[0].upper()}{text[1:]}.", "note") for text in texts)
    page.body.append(sections.section(name, title, body))


def _add_curves(page: _Page, runs: Sequence[Run]) -> None:
    drawn = figures.curves(runs)
    page.charts |= {name: figure for name, _, figure in drawn}
    places = "".join(sections.chart(name, caption) for name, caption, _ in drawn)
    thinned = (
        "Each point is the mean of several log lines." if any(r.is_thinned for r in runs) else ""
    )
    page.body.append(
        sections.section(
            "training",
            "Training",
            sections.comparison(runs)
            + (sections.paragraph(thinned) if thinned else "")
            + (f'<div class="charts">{places}</div>' if places else ""),
        )
    )


def _why_no_pictures(run: Run, data: Path | None) -> str:
    """What pictures would need and is not there; empty where all is."""
    if run.step is None:
        return f"{run.path} has no checkpoint, so there is no network to look into"
    if data is None and not run.config.data.exists():
        return f"there is no data set at {run.config.data}; pass --data PATH"
    if data is None:
        try:
            open_split(run.config.data, "train")
        except UserError as error:
            return str(error)
    return ""


def _add_pictures(page: _Page, run: Run, session: EvalContext) -> None:
    """What needs the data and the network."""
    found = examine(session)
    if run.fingerprint and run.fingerprint != fingerprint(session.train):
        text = f"the network was not trained on the images of {session.config.data}"
        _add_note(page, "other-data", "Other data", text)
    if broken := list(session.bad_images.values()):
        more = len(broken) - _MOST_REASONS
        left_out = [f"left out: {reason}" for reason in broken[:_MOST_REASONS]]
        _add_note(
            page, "broken", "Broken images", *left_out, *([f"and {more} more"] if more > 0 else [])
        )
    fraction = session.pretrained.crop_fraction
    _add_views(page, session.config, session.train, found)
    _add_gallery(page, fraction, found)
    _add_map(page, fraction, found)
    _add_confusion(page, found)


def _add_views(page: _Page, config: Config, train: Storage, found: Neighborhood) -> None:
    good = found.bank.index
    shown = good[epoch_order(len(good), config.seed, 0)[:_VIEWS_ROWS]].tolist()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "views.png"
        draw_views_grid(train, shown, config, seed=config.seed, out=file)
        with Image.open(file) as grid:
            text = jpeg(grid.convert("RGB"), 85)
    about = (
        "Training images with the boxes of their views, then the views as the network gets them."
    )
    body = sections.paragraph(about) + sections.views(text)
    page.body.append(sections.section("views", "What the network sees", body))


def _add_gallery(page: _Page, fraction: float, found: Neighborhood) -> None:
    classes = found.bank.storage.classes

    def picture(storage: Storage, index: int) -> str:
        return jpeg(center(storage, index, side=_GALLERY_SIDE, fraction=fraction))

    rows = []
    for row in found.one_of_each_class(_GALLERY):
        own = int(found.label[row])
        near = [
            sections.Picture(
                jpeg=picture(found.bank.storage, index),
                name=classes[name],
                remark=f"{similarity:.2f}",
                right=name == own,
            )
            for index, name, similarity in shown_neighbors(found, row)
        ]
        asked = picture(found.asked.storage, int(found.asked.index[row]))
        rows.append((sections.Picture(jpeg=asked, name=classes[own]), near))
    right = sum(bool(picture.right) for _, near in rows for picture in near)
    number = sum(len(near) for _, near in rows)
    split = "training images (there is no val/)" if found.of_training else "validation images"
    about = (
        f"{len(rows)} {split}, each with the {NEIGHBORS} training images whose features are nearest "
        f"by cosine similarity; {right} of {number} are of the same class (✓, solid frame)."
    )
    body = sections.paragraph(about) + sections.gallery(rows)
    page.body.append(sections.section("neighbors", "Nearest neighbors", body))


def _add_map(page: _Page, fraction: float, found: Neighborhood) -> None:
    title = "Map of features"
    rows = epoch_order(len(found.label), 0, 0)[:MOST].copy()
    asked = found.asked.pick(rows)
    print(f"map: placing {len(rows)} images", file=sys.stderr)
    position, why_not = flat_map(asked.features.float().cpu().numpy())
    if position is None:
        _add_note(page, "map", title, f"left out: {why_not}")
        return
    classes = found.bank.storage.classes
    page.charts["map"] = figures.class_map(position, classes, found.label[rows])
    page.images = MapImages(
        jpegs=thumbnails(
            asked.storage,
            asked.index.tolist(),
            side=_MAP_SIDE,
            fraction=fraction,
            most_letters=_MAP_LETTERS,
        ),
        names=[Path(asked.storage.paths[index]).name[-40:] for index in asked.index.tolist()],
        label=found.label[rows].tolist(),
        taken=found.predicted[rows].tolist(),
        classes=[name[:60] for name in classes],
    )
    about = (
        f"{len(rows):,} images placed by t-SNE of their features' principal components: near means "
        "alike, distances across the map mean little. Point at one to see it."
    )
    body = sections.paragraph(about) + sections.chart("map", "Features, colored by class")
    page.body.append(sections.section("map", title, body))


def _add_confusion(page: _Page, found: Neighborhood) -> None:
    counts, classes = found.counts(), found.bank.storage.classes
    total = counts.sum(axis=1)
    shown = np.arange(len(classes))
    what = "training images, each without itself," if found.of_training else "validation images"
    about = f"{found.accuracy:.1%} of {len(found.label):,} {what} are right with k {found.k}."
    if len(classes) > _CONFUSION_CLASSES:
        wrong = total - counts.diagonal()
        shown = np.sort(np.argsort(-wrong, kind="stable")[:_CONFUSION_CLASSES])
        about += f" Shown are the {len(shown)} classes with the most errors."
    names = [classes[number] for number in shown.tolist()]
    page.charts["confusion"] = figures.confusion(counts[np.ix_(shown, shown)], total[shown], names)
    body = sections.paragraph(about) + sections.chart(
        "confusion",
        "Rows: the class; columns: what it was taken for; shade: share of the class",
        100 + 26 * len(names),
    )
    page.body.append(sections.section("confusion", "What is taken for what", body))
