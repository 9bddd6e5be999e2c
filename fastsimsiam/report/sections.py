"""The parts of the page as HTML. Whatever a user wrote passes through `escape`."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from fastsimsiam.report.repeat import changed_keys, command, flat
from fastsimsiam.report.runs import Run, diagnosis, facts
from fastsimsiam.report.thumbnails import JPEG

_MARKS = {"healthy": "✓", "half collapsed": "!", "collapsed": "✗", "warning": "!", "unknown": "?"}
_NONE = "-"
_MARKED = ' class="changed"'


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image with its class.

    Attributes:
        jpeg: base64 text.
        name: of its class.
        remark: below the name.
        right: of a neighbor, whether the class is that of the image asked about.
    """

    jpeg: str
    name: str
    remark: str = ""
    right: bool | None = None


def section(name: str, title: str, body: str) -> str:
    """A part of the page with its heading; empty where there is nothing to show."""
    return f'<section id="{name}"><h2>{escape(title)}</h2>{body}</section>' if body else ""


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph of plain text."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def heading(run: Run) -> str:
    """What was trained, and whether it is well."""
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
    """A table of several runs, a row each."""
    if len(runs) < 2:
        return ""
    scores = list(dict.fromkeys(name for run in runs for name in run.scores))
    rows = [
        [
            run.name,
            diagnosis(run)[0],
            *(_last(run, name, ".1f") for name in scores),
            _last(run, "loss", ".4f"),
        ]
        for run in runs
    ]
    ks = [f"kNN, k {name.removeprefix('knn_top1_k')}, %" for name in scores]
    return _table(["run", "state", *ks, "last loss"], rows)


def _last(run: Run, name: str, digits: str) -> str:
    values = run.values(name)
    return format(values[-1][1], digits) if values else _NONE


def chart(name: str, caption: str, least_width: int = 0) -> str:
    """The place of a chart; wider than a phone where it has to be, and then it scrolls by itself."""
    style = f' style="min-width:{least_width}px"' if least_width else ""
    return (
        f'<figure class="chart"><figcaption>{escape(caption)}</figcaption><div class="scroll">'
        f'<div id="chart-{escape(name)}" class="plot" role="img" aria-label="{escape(caption)}"'
        f"{style}></div>"
        f"</div></figure>"
    )


def charts(places: Sequence[tuple[str, str]], kind: str = "") -> str:
    """The places of charts, (id, caption) each, in a grid; empty without charts.

    Args:
        places: ids and captions.
        kind: further CSS class of the grid.
    """
    if not places:
        return ""
    body = "".join(chart(name, caption) for name, caption in places)
    return f'<div class="{f"charts {kind}".strip()}">{body}</div>'


def views(jpeg: str) -> str:
    """The grid of views."""
    return f'<img class="views" src="{JPEG}{jpeg}" alt="Training images, each beside its random views">'


def gallery(rows: Sequence[tuple[Picture, Sequence[Picture]]]) -> str:
    """Images, each with its neighbors."""
    return f'<div class="gallery">{"".join(_asked(image, near) for image, near in rows)}</div>'


def _asked(image: Picture, near: Sequence[Picture]) -> str:
    pictures = "".join(map(_figure, near))
    return f'<div class="asked">{_figure(image)}<div class="near">{pictures}</div></div>'


def _figure(picture: Picture) -> str:
    frame = {None: "query", True: "right", False: "wrong"}[picture.right]
    mark = {None: "", True: "✓ ", False: "✗ "}[picture.right]
    remark = f"<small>{escape(picture.remark)}</small>" if picture.remark else ""
    return (
        f'<figure class="{frame}"><img src="{JPEG}{picture.jpeg}" alt="{escape(picture.name)}">'
        f"<figcaption>{mark}{escape(picture.name)}{remark}</figcaption></figure>"
    )


def repeat(run: Run) -> str:
    """The command that repeats a run."""
    words, remark = command(run.config)
    shown = f"<pre><code>{escape(words)}</code></pre>" if words else ""
    return shown + paragraph(remark)


def configs(runs: Sequence[Run]) -> str:
    """Every key; marked are values that are not the recipe's, and keys in which runs differ."""
    values = [flat(run.config) for run in runs]
    changed = [changed_keys(run.config) for run in runs]
    keys = list(dict.fromkeys(key for found in values for key in found))
    rows = []
    for key in keys:
        cells = "".join(
            f"<td{_MARKED if key in own else ''}>{escape(' '.join(found.get(key, [_NONE])))}</td>"
            for found, own in zip(values, changed, strict=True)
        )
        differs = len({tuple(found.get(key, ())) for found in values}) > 1
        rows.append(
            f'<tr class="{"differs" if differs else ""}"><th>{escape(key)}</th>{cells}</tr>'
        )
    head = "".join(f"<th>{escape(run.name)}</th>" for run in runs)
    remark = "Bold: not the recipe's value."
    if len(runs) > 1:
        remark += " Shaded: the runs differ."
    return (
        f"{paragraph(remark)}<details><summary>All {len(keys)} keys</summary>"
        f'<div class="scroll"><table><thead><tr><th>key</th>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></details>"
    )


def environment(run: Run) -> str:
    """Versions, what `auto` chose, and what the run warned of."""
    versions = run.summary.get("versions", {})
    rows = [[name, str(version)] for name, version in versions.items()]
    if run.log:
        rows.append(["chosen", run.log[0]])
    rows.append(["checkpoint", "none" if run.step is None else f"of step {run.step}"])
    rows += [["warning", line] for line in run.log if line.startswith("WARNING")]
    bad: dict[str, Any] = run.summary.get("bad_images", {})
    if bad:
        rows.append(["broken images", f"{len(bad)} were replaced, see summary.json"])
    return _table(["", ""], rows)


def footer(version: str) -> str:
    """Who wrote the page."""
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
