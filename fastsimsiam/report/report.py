"""`fastsimsiam report`: writes the page of runs and their data."""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fastsimsiam.config.evaluation import EvalOptions
from fastsimsiam.config.location import spelled, url_of
from fastsimsiam.config.run import Config
from fastsimsiam.errors import UserError
from fastsimsiam.evaluate.context import EvalContext, open_eval_context
from fastsimsiam.plan.order import epoch_order
from fastsimsiam.report import charts, sections
from fastsimsiam.report.flat_map import MOST, flat_map
from fastsimsiam.report.neighbors import NEIGHBORS, Neighborhood, find_neighbors, shown_neighbors
from fastsimsiam.report.page import MapImages, assemble
from fastsimsiam.report.runs import Run, read_runs
from fastsimsiam.report.thumbnails import center, jpeg, thumbnails
from fastsimsiam.storage.base import Storage, fingerprint
from fastsimsiam.storage.open import open_split
from fastsimsiam.system.files import require_writable, written_whole
from fastsimsiam.system.optional import require
from fastsimsiam.system.text import printable
from fastsimsiam.tools.views import draw_views_grid
from fastsimsiam.version import __version__

_VIEWS_ROWS = 4
_GALLERY = 12
_GALLERY_SIDE = 112
_CERTAIN = 12
"""Images of the largest and of the smallest certainty."""
_MAP_SIDE = 56
# Length of all thumbnails: with plotly.js (4.8 MB) and the rest the page stays below 10 MB.
_MAP_LETTERS = 3_600_000
_CONFUSION_CLASSES = 30
_MOST_REASONS = 10


@dataclass(kw_only=True)
class _Page:
    """The page under construction.

    Attributes:
        body: HTML of the sections so far.
        charts: id -> plotly figure.
        images: images of the map; None without a map.
    """

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
    """Writes one HTML file about runs.

    Args:
        runs: folders of the runs; curves show all of them, pictures the first one.
        data: folder of the data set; None: that of the first run's config, if it exists.
        out: file to write; None: report.html in the first folder.
        options: options of the feature extraction.

    Returns:
        The written file.

    Raises:
        UserError: an argument, a run or the data cannot be used.
    """
    for module, name in (("plotly", "plotly"), ("sklearn", "scikit-learn")):
        require(module, "report", "pip install 'fastsimsiam[report]'", name=name)
    if not 1 <= len(runs) <= charts.MOST_RUNS:
        raise UserError(
            f"the report has colors for 1 to {charts.MOST_RUNS} runs, not for {len(runs)}: pass fewer"
        )
    read = read_runs(runs)
    run = read[0]
    target = out or run.path / "report.html"
    if target.is_dir():
        raise UserError(f"--out {target} is a folder: pass a file such as {target}/report.html")
    require_writable(target, "--out", make_folder=True)
    page = _Page(body=[sections.heading(run)])
    _add_curves(page, read)
    why_not = _why_no_pictures(run, data)
    if why_not:
        _add_note(page, "pictures", "Views, neighbors and map", f"left out: {why_not}")
    else:
        place = data or run.config.data
        options = options or EvalOptions()
        if data is None and options.val is None:
            options = replace(options, val=run.config.val)
        with open_eval_context(run.path, place, options, need_val=False) as session:
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
            assemble(title, "".join(page.body), page.charts, page.images),
            encoding="utf-8",
            errors="backslashreplace",  # names that are not UTF-8
        )
    return target


def _add_note(page: _Page, name: str, title: str, *texts: str) -> None:
    """Adds a section of notes to the page, and prints them."""
    for text in texts:
        print(printable(f"{title}: {text}"), file=sys.stderr)
    body = "".join(sections.paragraph(f"{text[0].upper()}{text[1:]}.", "note") for text in texts)
    page.body.append(sections.section(name, title, body))


def _add_curves(page: _Page, runs: Sequence[Run]) -> None:
    body = sections.comparison(runs)
    if any(run.is_thinned for run in runs):
        body += sections.paragraph("Each point is the mean of several log lines.")
    for kind, drawn in (("", charts.curves(runs)), ("small", charts.further_curves(runs))):
        page.charts |= {chart.id: chart.figure for chart in drawn}
        body += sections.charts([(chart.id, chart.caption) for chart in drawn], kind)
    page.body.append(sections.section("training", "Training", body))


def _why_no_pictures(run: Run, data: Path | None) -> str:
    """Returns why views, neighbors and map have to be left out; empty if nothing is missing."""
    if run.step is None:
        return f"{run.path} has no checkpoint, which pictures need"
    if data is None:
        if url := url_of(run.config.data):  # it may have to be fetched first
            return f"the data set is at {url}; pass --data {url}"
        try:
            open_split(run.config.data, "train")
        except UserError as error:
            if run.config.data.exists():
                return str(error)
            return f"there is no data set at {run.config.data}; pass --data PATH"
    return ""


def _add_pictures(page: _Page, run: Run, session: EvalContext) -> None:
    """Adds the sections that need the data and the network."""
    neighborhood = find_neighbors(session)
    if run.fingerprint and run.fingerprint != fingerprint(session.train):
        text = f"the network was not trained on the images of {spelled(session.config.data)}"
        _add_note(page, "other-data", "Other data", text)
    if broken := list(session.bad_images.values()):
        more = len(broken) - _MOST_REASONS
        left_out = [f"left out: {reason}" for reason in broken[:_MOST_REASONS]]
        _add_note(
            page, "broken", "Broken images", *left_out, *([f"and {more} more"] if more > 0 else [])
        )
    fraction = session.pretrained.crop_fraction
    _add_views(page, session.config, session.train, neighborhood)
    gray16_max = session.config.gray16_max
    _add_gallery(page, fraction, gray16_max, neighborhood)
    _add_certainty(page, fraction, gray16_max, neighborhood)
    _add_map(page, fraction, gray16_max, neighborhood)
    _add_confusion(page, neighborhood)


def _add_views(page: _Page, config: Config, train: Storage, neighborhood: Neighborhood) -> None:
    readable = neighborhood.bank.index
    shown = readable[epoch_order(len(readable), config.seed, 0)[:_VIEWS_ROWS]].tolist()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "views.png"
        draw_views_grid(train, shown, config, seed=config.seed, out=file)
        with Image.open(file) as grid:
            text = jpeg(grid.convert("RGB"), 85)
    about = (
        "Training images with the boxes of their crops, then the views as the network sees them."
    )
    body = sections.paragraph(about) + sections.views(text)
    page.body.append(sections.section("views", "Views", body))


def _add_gallery(page: _Page, fraction: float, gray16_max: int, neighborhood: Neighborhood) -> None:
    classes = neighborhood.bank.storage.classes

    def picture(storage: Storage, index: int) -> str:
        side = _GALLERY_SIDE
        return jpeg(center(storage, index, side=side, fraction=fraction, gray16_max=gray16_max))

    rows = []
    for row in neighborhood.one_of_each_class(_GALLERY):
        label = int(neighborhood.label[row])
        near = [
            sections.Picture(
                jpeg=picture(neighborhood.bank.storage, index),
                name=classes[neighbor],
                remark=f"{similarity:.2f}",
                right=neighbor == label,
            )
            for index, neighbor, similarity in shown_neighbors(neighborhood, row)
        ]
        query = picture(neighborhood.queries.storage, int(neighborhood.queries.index[row]))
        rows.append((sections.Picture(jpeg=query, name=classes[label]), near))
    right = sum(bool(picture.right) for _, near in rows for picture in near)
    number = sum(len(near) for _, near in rows)
    split = (
        "training images (there is no val/)" if neighborhood.of_training else "validation images"
    )
    about = (
        f"{len(rows)} {split}, each with its {NEIGHBORS} nearest training images by cosine similarity "
        f"of the features; {right} of {number} are of the same class (✓, solid frame)."
    )
    body = sections.paragraph(about) + sections.gallery(rows)
    page.body.append(sections.section("neighbors", "Nearest neighbors", body))


def _add_certainty(
    page: _Page, fraction: float, gray16_max: int, neighborhood: Neighborhood
) -> None:
    """Adds the images of the largest and the smallest kappa, for methods that have it."""
    queries, kappa = neighborhood.queries, neighborhood.queries.kappa
    if kappa is None:
        return
    classes = neighborhood.bank.storage.classes
    right = neighborhood.predicted == neighborhood.label
    order = np.argsort(-kappa, kind="stable")
    body = sections.paragraph(
        "Kappa is how certain the method is of an image: the concentration of the distribution that it "
        "predicts. The mark says whether the nearest neighbors vote for the image's class."
    )
    for title, rows in (
        ("Most certain", order[:_CERTAIN]),
        ("Least certain", order[::-1][:_CERTAIN]),
    ):
        pictures = [
            sections.Picture(
                jpeg=jpeg(
                    center(
                        queries.storage,
                        int(queries.index[row]),
                        side=_GALLERY_SIDE,
                        fraction=fraction,
                        gray16_max=gray16_max,
                    )
                ),
                name=classes[int(neighborhood.label[row])],
                remark=f"{kappa[row]:,.0f}" if kappa[row] >= 1000 else f"{kappa[row]:.4g}",
                right=bool(right[row]),
            )
            for row in rows.tolist()
        ]
        body += sections.paragraph(f"{title}:") + sections.strip(pictures)
    page.body.append(sections.section("certainty", "Certainty", body))


def _add_map(page: _Page, fraction: float, gray16_max: int, neighborhood: Neighborhood) -> None:
    title = "Map of features"
    rows = epoch_order(len(neighborhood.label), 0, 0)[:MOST].copy()
    queries = neighborhood.queries.pick(rows)
    print(f"map: placing {len(rows)} images", file=sys.stderr)
    position, why_not = flat_map(queries.features.float().cpu().numpy())
    if position is None:
        _add_note(page, "map", title, f"left out: {why_not}")
        return
    classes = neighborhood.bank.storage.classes
    page.charts["map"] = charts.class_map(position, classes, neighborhood.label[rows])
    page.images = MapImages(
        jpegs=thumbnails(
            queries.storage,
            queries.index.tolist(),
            side=_MAP_SIDE,
            fraction=fraction,
            gray16_max=gray16_max,
            most_letters=_MAP_LETTERS,
        ),
        names=[Path(queries.storage.paths[index]).name[-40:] for index in queries.index.tolist()],
        label=neighborhood.label[rows].tolist(),
        predicted=neighborhood.predicted[rows].tolist(),
        classes=[name[:60] for name in classes],
    )
    about = (
        f"{len(rows):,} images, placed by t-SNE of their features' principal components: nearby images "
        "are similar, large distances mean little. Hover over a point to see its image."
    )
    body = sections.paragraph(about) + sections.chart("map", "Features, colored by class")
    page.body.append(sections.section("map", title, body))


def _add_confusion(page: _Page, neighborhood: Neighborhood) -> None:
    counts, classes = neighborhood.counts(), neighborhood.bank.storage.classes
    total = counts.sum(axis=1)
    shown = np.arange(len(classes))
    queries = (
        "training images, each excluded from its own neighbors"
        if neighborhood.of_training
        else "validation images"
    )
    about = (
        f"kNN with k {neighborhood.k} predicts {neighborhood.accuracy:.1%} of "
        f"{len(neighborhood.label):,} {queries} correctly."
    )
    if len(classes) > _CONFUSION_CLASSES:
        wrong = total - counts.diagonal()
        shown = np.sort(np.argsort(-wrong, kind="stable")[:_CONFUSION_CLASSES])
        about += f" The matrix shows the {len(shown)} classes with the most errors."
    names = [classes[number] for number in shown.tolist()]
    page.charts["confusion"] = charts.confusion(counts[np.ix_(shown, shown)], total[shown], names)
    body = sections.paragraph(about) + sections.chart(
        "confusion",
        "Rows: true class; columns: predicted class; shade: share of the true class",
        100 + 26 * len(names),
    )
    page.body.append(sections.section("confusion", "Confusion matrix", body))
