"""The sections of the page as HTML; all text that comes from users is escaped."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from fastsimsiam.report.repeat import changed_keys, command, flatten
from fastsimsiam.report.runs import Run, diagnosis, facts
from fastsimsiam.report.thumbnails import JPEG

_MARKS = {"healthy": "✓", "half collapsed": "!", "collapsed": "✗", "warning": "!", "unknown": "?"}
_NONE = "-"
_MARKED = ' class="changed"'


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image with its class.

    Attributes:
        jpeg: base64 text of the image.
        name: class name.
        remark: text below the class name.
        right: whether a neighbor has its query's class; None for a query.
    """

    jpeg: str
    name: str
    remark: str = ""
    right: bool | None = None


def section(name: str, title: str, body: str) -> str:
    """Returns a section with its heading; empty without a body."""
    return f'<section id="{name}"><h2>{escape(title)}</h2>{body}</section>' if body else ""


def paragraph(text: str, kind: str = "") -> str:
    """Returns a paragraph of plain text."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def heading(run: Run) -> str:
    """Returns the title, the diagnosis and the key facts of a run."""
    state, text = diagnosis(run)
    rows = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts(run)
    )
    return (
        f"<header><h1>{escape(run.config.recipe)} <small>{escape(run.name)}</small></h1>"
        f'<p class="diagnosis {state}"><span aria-hidden="true">{_MARKS[state]}</span> '
        f'{escape(text[0].upper() + text[1:])}.</p><dl class="facts">{rows}</dl></header>'
    )


def comparison(runs: Sequence[Run]) -> str:
    """Returns a table of several runs, a row each; empty for a single run."""
    if len(runs) < 2:
        return ""
    scores = list(dict.fromkeys(name for run in runs for name in run.scores))
    rows = [
        [
            run.name,
            run.method,
            diagnosis(run)[0],
            *(_last_value(run, name, ".1f") for name in scores),
            _last_value(run, "loss", ".4f"),
        ]
        for run in runs
    ]
    ks = [f"kNN, k {name.removeprefix('knn_top1_k')}, %" for name in scores]
    body = _table(["run", "method", "state", *ks, "last loss"], rows)
    if len({run.method for run in runs}) > 1:
        body += paragraph("Losses of different methods cannot be compared.")
    return body


def _last_value(run: Run, name: str, digits: str) -> str:
    values = run.values(name)
    return format(values[-1][1], digits) if values else _NONE


def chart(name: str, caption: str, least_width: int = 0) -> str:
    """Returns a chart's element; one with a `least_width` in pixels scrolls on a narrow screen."""
    style = f' style="min-width:{least_width}px"' if least_width else ""
    return (
        f'<figure class="chart"><figcaption>{escape(caption)}</figcaption><div class="scroll">'
        f'<div id="chart-{escape(name)}" class="plot" role="img" aria-label="{escape(caption)}"'
        f"{style}></div>"
        f"</div></figure>"
    )


def charts(places: Sequence[tuple[str, str]], kind: str = "") -> str:
    """Returns a grid of chart elements; empty without charts.

    Args:
        places: (id, caption) of each chart.
        kind: additional CSS class of the grid.
    """
    if not places:
        return ""
    body = "".join(chart(name, caption) for name, caption in places)
    return f'<div class="{f"charts {kind}".strip()}">{body}</div>'


def views(jpeg: str) -> str:
    """Returns the picture of the views."""
    return (
        f'<img class="views" src="{JPEG}{jpeg}" alt="Training images beside their augmented views">'
    )


def gallery(rows: Sequence[tuple[Picture, Sequence[Picture]]]) -> str:
    """Returns query images, each with its neighbors."""
    return (
        f'<div class="gallery">{"".join(_neighborhood(query, near) for query, near in rows)}</div>'
    )


def strip(pictures: Sequence[Picture]) -> str:
    """Returns images in a row that breaks where the page ends."""
    return f'<div class="strip">{"".join(map(_figure, pictures))}</div>'


def _neighborhood(query: Picture, near: Sequence[Picture]) -> str:
    pictures = "".join(map(_figure, near))
    return f'<div class="neighborhood">{_figure(query)}<div class="near">{pictures}</div></div>'


def _figure(picture: Picture) -> str:
    frame = {None: "query", True: "right", False: "wrong"}[picture.right]
    mark = {None: "", True: "✓ ", False: "✗ "}[picture.right]
    remark = f"<small>{escape(picture.remark)}</small>" if picture.remark else ""
    return (
        f'<figure class="{frame}"><img src="{JPEG}{picture.jpeg}" alt="{escape(picture.name)}">'
        f"<figcaption>{mark}{escape(picture.name)}{remark}</figcaption></figure>"
    )


def repeat(run: Run) -> str:
    """Returns the command that repeats a run."""
    lines, remark = command(run.config)
    code = f"<pre><code>{escape(lines)}</code></pre>" if lines else ""
    return code + paragraph(remark)


def configs(runs: Sequence[Run]) -> str:
    """Returns a table of every key; marks values unlike the recipe's, and keys in which runs differ."""
    options = [flatten(run.config) for run in runs]
    changed = [changed_keys(run.config) for run in runs]
    keys = list(dict.fromkeys(key for config in options for key in config))
    rows = []
    for key in keys:
        cells = "".join(
            f"<td{_MARKED if key in marked else ''}>{escape(' '.join(config.get(key, [_NONE])))}</td>"
            for config, marked in zip(options, changed, strict=True)
        )
        differs = len({tuple(config.get(key, ())) for config in options}) > 1
        rows.append(
            f'<tr class="{"differs" if differs else ""}"><th>{escape(key)}</th>{cells}</tr>'
        )
    head = "".join(f"<th>{escape(run.name)}</th>" for run in runs)
    remark = "Bold: differs from the recipe."
    if len(runs) > 1:
        remark += " Shaded: differs between the runs."
    return (
        f"{paragraph(remark)}<details><summary>All {len(keys)} keys</summary>"
        f'<div class="scroll"><table><thead><tr><th>key</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></details>"
    )


def environment(run: Run) -> str:
    """Returns a table of versions, the choices of `auto`, and the run's warnings."""
    versions = run.summary.get("versions", {})
    rows = [[name, str(version)] for name, version in versions.items()]
    if run.log:
        rows.append(["chosen", run.log[0]])
    rows.append(["checkpoint", "none" if run.step is None else f"step {run.step}"])
    rows += [["warning", line] for line in run.log if line.startswith("WARNING")]
    bad: dict[str, Any] = run.summary.get("bad_images", {})
    if bad:
        rows.append(["broken images", f"{len(bad)} were replaced, see summary.json"])
    warned: dict[str, Any] = run.summary.get("warned_images", {})
    if warned:
        rows.append(["warnings", f"the decoder warned of {len(warned)} images, see summary.json"])
    return _table(["", ""], rows)


def footer(version: str) -> str:
    """Returns the footer with the versions that wrote the page."""
    return (
        f"<footer>Written by <code>fastsimsiam report</code> {escape(version)}, Python "
        f"{escape(platform.python_version())}.</footer>"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    titles = "".join(f"<th>{escape(title)}</th>" for title in head)
    top = f"<thead><tr>{titles}</tr></thead>" if any(head) else ""
    body = "".join(
        f"<tr><th>{escape(row[0])}</th>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table>{top}<tbody>{body}</tbody></table></div>'
