"""Parts of figures: lines, axes and the bare figure. Backgrounds are transparent, the page colours text and grid."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import plotly.graph_objects as go

from raybrew.records.lines import Evaluation, LogLine

__all__ = [
    "COLORS",
    "INK",
    "MAX_POINTS",
    "LegendEntry",
    "Plot",
    "Points",
    "add_lines",
    "finish",
    "log_axis",
    "new_figure",
    "plain_number",
    "safe",
    "sample",
    "series",
    "thin",
    "trace",
]

#: Order is by how well neighbours tell apart; the tests check the contrast with both cards.
COLORS = ("#3b82f6", "#d97706", "#0f9d76", "#c04fa5", "#7c6cf0", "#d94f4f", "#5f8a1e", "#138fae")
#: More points than this per line are thinned out: nobody sees them, and the page has to carry them.
MAX_POINTS = 400

#: Readable on white and near-black alike.
INK, GRID = "#6b7280", "rgba(128,132,140,0.25)"
Points = list[tuple[float, float]]
Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class LegendEntry:
    """One line of a legend kept beside the figure: text, colour and dash or symbol."""

    text: str
    color: str
    mark: str
    group: str


@dataclasses.dataclass(frozen=True)
class Plot:
    """A figure with what stands around it. `legend` repeats the figure's own, for pages that lay it out themselves."""

    name: str
    title: str
    caption: str
    figure: go.Figure
    legend: tuple[LegendEntry, ...]
    height: int


def finish(
    name: str, title: str, caption: str, figure: go.Figure, legend: Sequence[LegendEntry] = (), height: int = 320
) -> Plot:
    figure.update_layout(height=height)
    return Plot(name, title, caption, figure, tuple(legend), height)


def trace(group: str, points: Sequence[tuple[Any, Any]], texts: Sequence[str] = (), **looks: Any) -> go.Scatter:
    """Points or a line of one group of the legend, each point with its text under the pointer, if there are texts."""
    hover = {"text": list(texts), "hovertemplate": "%{text}<extra></extra>"} if texts else {"hoverinfo": "skip"}
    x, y = [x for x, _ in points], [y for _, y in points]
    return go.Scatter(x=x, y=y, name=safe(group), legendgroup=group, **hover, **looks)


def series(lines: Sequence[LogLine] | Sequence[Evaluation], name: str) -> Points:
    """(step, value) of the finite values under `name`."""
    found = [(line.step, line.value(name)) for line in lines]
    return [(float(x), y) for x, y in found if x is not None and y is not None]


def thin(points: Points) -> Points:
    """At most about MAX_POINTS of `points`, the first and the last among them."""
    step = math.ceil(len(points) / MAX_POINTS)
    return points if step <= 1 else [*points[:-1:step], points[-1]]


def sample(items: Sequence[Item], limit: int) -> list[Item]:
    """At most `limit` of `items`, evenly chosen, the first and the last among them."""
    if len(items) <= limit:
        return list(items)
    return [items[round(place * (len(items) - 1) / (limit - 1))] for place in range(limit)]


def _mean_line(lines: Sequence[Points]) -> Points:
    """Mean over lines at the steps that all of them have."""
    shared = set.intersection(*({x for x, _ in line} for line in lines)) if lines else set()
    by_step = [dict(line) for line in lines]
    return [(x, sum(values[x] for values in by_step) / len(by_step)) for x in sorted(shared)]


def add_lines(
    figure: go.Figure, lines: Sequence[Points], name: str, color: str, dash: str, show: Callable[[float], str]
) -> bool:
    """One line per seed and, for several, their mean; False if there was nothing to draw."""
    seeds = [line for line in lines if line]
    mean = _mean_line(seeds) if len(seeds) > 1 else []
    drawn = [(line, False) for line in seeds] + ([(mean, True)] if mean else [])
    for index, (line, is_mean) in enumerate(drawn):
        shown = thin(line)
        main = is_mean or not mean
        figure.add_trace(
            go.Scatter(
                x=[x for x, _ in shown],
                y=[y for _, y in shown],
                mode="lines+markers" if len(shown) == 1 else "lines",
                line={"color": color, "dash": dash, "width": 2.4 if main else 1},
                opacity=1 if main else 0.4,
                name=safe(name),
                legendgroup=name,
                showlegend=index == len(drawn) - 1,
                text=[show(y) for _, y in shown],
                hovertemplate="step %{x}: %{text}<extra></extra>" if main else None,
                hoverinfo=None if main else "skip",
            )
        )
    return bool(drawn)


def new_figure(x_title: str, y_title: str | None) -> go.Figure:
    """An empty figure without zoom or pan, its y title above the axis."""
    figure = go.Figure()
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 12, "color": INK},
        margin={"l": 8, "r": 12, "t": 28, "b": 8},
        hovermode="closest",
        legend={"orientation": "h", "yanchor": "top", "y": -0.22, "x": 0},
        dragmode=False,
    )
    figure.update_xaxes(**_axis(), title={"text": x_title, "standoff": 8})
    figure.update_yaxes(**_axis())
    if y_title:
        # Above the axis: a title turned on its side costs width that phones do not have.
        figure.add_annotation(
            text=safe(y_title),
            xref="paper",
            yref="paper",
            x=0,
            y=1,
            yshift=16,
            xanchor="left",
            showarrow=False,
            font={"size": 12, "color": INK},
        )
    return figure


def _axis() -> dict[str, Any]:
    return {
        "automargin": True,
        "gridcolor": GRID,
        "zeroline": False,
        "linecolor": GRID,
        "nticks": 6,
        "ticks": "",
        "fixedrange": True,
        "separatethousands": True,
    }


def log_axis(values: Sequence[float], show: Callable[[float], str]) -> dict[str, Any]:
    """A logarithmic axis over `values` with a handful of round ticks written by `show`."""
    low, high = min(values), max(values)
    pad = 0.06 * max(math.log10(high / low), 0.2)
    start, end = math.log10(low) - pad, math.log10(high) + pad
    ticks: list[float] = []
    for mantissas in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), tuple(n / 10 for n in range(10, 100, 2))):
        decades = range(math.floor(start), math.ceil(end) + 1)
        found = [m * 10.0**e for e in decades for m in mantissas if start <= math.log10(m * 10.0**e) <= end]
        ticks = found[:: math.ceil(len(found) / 6)] if found else []
        if len(ticks) >= 3:
            break
    else:
        ticks = [low, high] if high > low else [low]
    return {
        "type": "log",
        "range": [start, end],
        "tickmode": "array",
        "tickvals": ticks,
        "ticktext": [show(tick).replace(".0 ", " ") for tick in ticks],
    }


def plain_number(value: float) -> str:
    return f"{value:g}" if value >= 1e-4 else f"{value:.0e}"


def safe(text: str) -> str:
    """Names are user text, and plotly reads some HTML in labels."""
    return html.escape(text, quote=False)
