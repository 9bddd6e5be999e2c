"""Charts as plotly figures. Plotly is imported when the first one is drawn."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

from fastsimsiam.report.runs import KNN_PREFIX, Run
from fastsimsiam.runs.curves import PALETTE

# Strongest contrast on white first; without yellow, which is too faint.
_COLORS = tuple(PALETTE[number] for number in (4, 5, 2, 6, 0, 1, 7))
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_SYMBOLS = ("circle", "diamond", "cross", "square", "triangle-up", "x")
MOST_RUNS = len(_COLORS)
"""Largest number of runs, one color each."""
_LEGEND_CLASSES = 24
_LABEL_LETTERS = 18
_GRID = "#e3e3e3"
_HEIGHT = 320
_SMALL_HEIGHT = 220
_CURVES: dict[str, tuple[str, dict[str, Any]]] = {
    "knn": ("kNN top-1 on the validation split, %; epoch 0 is untrained", {}),
    "collapse_std": (
        "Collapse metric: std of z/|z| times √D; 1 is healthy, 0 collapsed",
        {"range": [0, 1.1]},
    ),
    "lr": ("Learning rate", {"rangemode": "tozero"}),
    "images_per_second": ("Images per second, per device", {"rangemode": "tozero"}),
    "data_wait": (
        "Share of the training time spent waiting for data",
        {"range": [0, 1], "tickformat": ".0%"},
    ),
}
"""Metric -> caption and layout of the y axis; `knn` holds the scores of every k; after the loss."""


def short(text: str, letters: int = _LABEL_LETTERS) -> str:
    """Returns text for a chart: shortened, and escaped because plotly renders markup."""
    return escape(text if len(text) <= letters else text[: letters - 1] + "…")


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart of the page.

    Attributes:
        id: name that no other chart of the page has.
        caption: plain text.
        figure: plotly figure.
    """

    id: str
    caption: str
    figure: Any


def curves(runs: Sequence[Run]) -> list[Chart]:
    """Draws the metrics that every method logs over epochs; leaves out those without a value.

    Args:
        runs: at most `MOST_RUNS`.
    """
    drawn = _loss_curves(runs)
    for name, (caption, axis) in _CURVES.items():
        figure = _knn_curves(runs) if name == "knn" else _one_curve(runs, name)
        figure.update_yaxes(**axis)
        drawn.append(_over_epochs(name.replace("_", "-"), caption, figure, _HEIGHT))
    return [chart for chart in drawn if chart.figure.data]


def _loss_curves(runs: Sequence[Run]) -> list[Chart]:
    """One chart for each method: a contrastive loss of 9 and a cosine of -0.9 share no axis."""
    methods = list(dict.fromkeys(run.method for run in runs))
    drawn = []
    for method in methods:
        name, caption = (
            ("loss", "Loss") if len(methods) == 1 else (f"loss-{method}", f"Loss of {method}")
        )
        figure = _one_curve(runs, "loss", method)
        drawn.append(_over_epochs(name, caption, figure, _HEIGHT))
    return drawn


def further_curves(runs: Sequence[Run]) -> list[Chart]:
    """Draws the metrics that are logged beyond those of `curves`, under their names, smaller.

    Args:
        runs: at most `MOST_RUNS`.
    """
    names = dict.fromkeys(name for run in runs for name in run.metrics)
    drawn = []
    for name in names:
        if name in ("loss", *_CURVES) or name.startswith(KNN_PREFIX):
            continue
        figure = _one_curve(runs, name)
        values = [value for trace in figure.data for value in trace.y]
        if name.endswith("accuracy") and 0 <= min(values) <= max(values) <= 1:
            figure.update_yaxes(range=[0, 1], tickformat=".0%")
        drawn.append(_over_epochs(f"metric-{name}", name, figure, _SMALL_HEIGHT))
    return drawn


def _over_epochs(name: str, caption: str, figure: Any, height: int) -> Chart:
    figure.update_xaxes(title={"text": "epoch", "standoff": 6})
    # A legend grows downwards, two entries a row on a phone: the plot keeps its height.
    entries = sum(trace.showlegend is not False for trace in figure.data)
    figure.update_layout(hovermode="x unified", height=height + 11 * entries)
    return Chart(id=name, caption=caption, figure=figure)


def _one_curve(runs: Sequence[Run], name: str, method: str | None = None) -> Any:
    """A line for each run, or for each run of a method."""
    figure = _figure()
    for number, run in enumerate(runs):
        if method not in (None, run.method):
            continue
        epochs, values = run.curve(name)
        if values:
            figure.add_scatter(
                x=epochs,
                y=values,
                name=short(run.name, 28),
                showlegend=len(runs) > 1,
                mode="lines+markers" if len(values) < 3 else "lines",
                line={"color": _COLORS[number], "width": 2},
            )
    return figure


def _knn_curves(runs: Sequence[Run]) -> Any:
    """A line per k; with several runs, color tells the run and dashes tell k."""
    figure = _figure()
    for number, run in enumerate(runs):
        for rank, name in enumerate(run.scores):
            k = f"k {name.removeprefix(KNN_PREFIX)}"
            color = number if len(runs) > 1 else rank
            epochs, values = run.curve(name)
            figure.add_scatter(
                x=epochs,
                y=values,
                mode="lines+markers",
                name=f"{short(run.name, 28)}, {k}" if len(runs) > 1 else k,
                line={
                    "color": _COLORS[color % len(_COLORS)],
                    "dash": _DASHES[rank % len(_DASHES)],
                    "width": 2,
                },
                marker={"symbol": _SYMBOLS[rank % len(_SYMBOLS)], "size": 7},
            )
    return figure


def class_map(
    position: npt.NDArray[np.float32], classes: Sequence[str], label: npt.NDArray[np.int64]
) -> Any:
    """Draws a map of images, colored by class; point n carries n, the number of its thumbnail.

    Args:
        position: (N, 2).
        classes: class names.
        label: (N,) class numbers.
    """
    figure = _figure()
    present = np.unique(label)
    number = np.arange(len(label))
    common: dict[str, Any] = {"mode": "markers", "hoverinfo": "none"}
    if len(present) <= _LEGEND_CLASSES:
        for rank, class_number in enumerate(present.tolist()):
            rows = label == class_number
            figure.add_scatter(
                x=position[rows, 0].tolist(),
                y=position[rows, 1].tolist(),
                customdata=number[rows].tolist(),
                name=short(classes[class_number]),
                marker=_marker(_look(rank)),
                **common,
            )
    else:  # a legend of a thousand names is useless; hovering shows the class
        looks = [_look(int(rank)) for rank in np.searchsorted(present, label)]
        figure.add_scatter(
            x=position[:, 0].tolist(),
            y=position[:, 1].tolist(),
            customdata=number.tolist(),
            marker=_marker(([color for color, _ in looks], [symbol for _, symbol in looks])),
            showlegend=False,
            **common,
        )
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.update_layout(hovermode="closest", height=640)
    return figure


def _look(rank: int) -> tuple[str, str]:
    return (_COLORS[rank % len(_COLORS)], _SYMBOLS[(rank // len(_COLORS)) % len(_SYMBOLS)])


def _marker(look: tuple[Any, Any]) -> dict[str, Any]:
    edge = {"width": 0.5, "color": "#fff"}
    return {"color": look[0], "symbol": look[1], "size": 8, "opacity": 0.85, "line": edge}


def confusion(
    counts: npt.NDArray[np.int64], total: npt.NDArray[np.int64], classes: Sequence[str]
) -> Any:
    """Draws a confusion matrix: the shade is the share of the true class, the text the count.

    Args:
        counts: (C, C) images, true class by predicted class.
        total: (C,) images per true class, including predictions of classes that are not shown.
        classes: C names.
    """
    figure = _figure()
    share = counts / np.maximum(total[:, None], 1)
    ticks = list(range(len(classes)))
    full = [short(name, 60) for name in classes]
    figure.add_heatmap(
        z=share.round(4).tolist(),
        text=[[str(value) if value else "" for value in row] for row in counts.tolist()],
        customdata=[
            [[true, predicted, count] for predicted, count in zip(full, row, strict=True)]
            for true, row in zip(full, counts.tolist(), strict=True)
        ],
        texttemplate="%{text}",
        hovertemplate="%{customdata[2]} of class %{customdata[0]}<br>predicted %{customdata[1]}"
        "<br>%{z:.1%} of the class<extra></extra>",
        colorscale=[[0, "#ffffff"], [1, _COLORS[0]]],
        zmin=0,
        zmax=1,
        xgap=1,
        ygap=1,
        showscale=False,
    )
    names = [short(name) for name in classes]
    figure.update_xaxes(tickvals=ticks, ticktext=names, showgrid=False)
    figure.update_yaxes(tickvals=ticks, ticktext=names, showgrid=False, autorange="reversed")
    figure.update_layout(height=140 + 34 * len(classes), plot_bgcolor="#f2f2f2")
    return figure


def _figure() -> Any:
    """Returns an empty figure in the page's style."""
    from plotly.graph_objects import Figure

    figure = Figure(
        layout={
            "template": "none",
            "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#222"},
            "margin": {"l": 48, "r": 12, "t": 8, "b": 40},
            "height": _HEIGHT,
            # At the lower edge of the container: below the plot it would overlap the axis.
            "legend": {
                "orientation": "h",
                "yref": "container",
                "y": 0,
                "yanchor": "bottom",
                "x": 0,
            },
        }
    )
    figure.update_xaxes(gridcolor=_GRID, zeroline=False, automargin=True)
    figure.update_yaxes(gridcolor=_GRID, zeroline=False, automargin=True)
    return figure


def script_json(figure: Any) -> str:
    """Returns a figure as JSON that is safe within a script element."""
    text: str = figure.to_json()
    return text.replace("<", "\\u003c")
