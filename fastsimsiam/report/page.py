"""One self-contained HTML file from sections, charts and thumbnails."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Any

from fastsimsiam.report.charts import script_json
from fastsimsiam.system.json_text import to_json


@dataclass(frozen=True, kw_only=True)
class MapImages:
    """The images of the map, one entry per point.

    Attributes:
        jpegs: base64 texts of thumbnails.
        names: file names.
        label: true class numbers.
        predicted: class numbers that the neighbors voted for.
        classes: class names.
    """

    jpegs: Sequence[str]
    names: Sequence[str]
    label: Sequence[int]
    predicted: Sequence[int]
    classes: Sequence[str]


def assemble(title: str, body: str, charts: Mapping[str, Any], images: MapImages | None) -> str:
    """Returns the page as HTML; a browser loads nothing else.

    Args:
        title: plain text.
        body: HTML with an element `chart-<id>` for each chart.
        charts: id -> plotly figure.
        images: images of the chart `map`.
    """
    # Imported here: plotly is optional.
    from plotly.offline import get_plotlyjs

    here = files("fastsimsiam.report")
    chart_json = ",".join(f"{_json(name)}:{script_json(chart)}" for name, chart in charts.items())
    stored = _json(vars(images) if images else None)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n"
        f"<style>{(here / 'page.css').read_text()}</style></head>\n"
        f"<body><main>{body}</main>\n"
        "<noscript><p>The charts need JavaScript.</p></noscript>\n"
        '<div id="tip" hidden><img alt=""><p></p></div>\n'
        f'<script type="application/json" id="charts">{{{chart_json}}}</script>\n'
        f'<script type="application/json" id="images">{stored}</script>\n'
        f"<script>{get_plotlyjs()}</script>\n"
        f"<script>{(here / 'page.js').read_text()}</script></body></html>\n"
    )


def _json(value: Any) -> str:
    """Returns JSON that is safe within a script element."""
    return to_json(value).replace("<", "\\u003c")
