"""Figures from stored metrics. Readable on light and dark pages, in print, without colour vision and at 400 pixels.

Colours have a contrast of at least 3:1 against white and near-black alike; lines also differ by dash, points by
symbol. Backgrounds are transparent and the page sets the colour of text and grid, see `report.css.j2`.
"""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from raybrew.reports.collect import RunRecord, number
from raybrew.reports.compare import Comparison
from raybrew.reports.numbers import metric_scale, metric_title, show_count, show_ms, show_value
from raybrew.reports.rows import Row

__all__ = [
    "COLORS",
    "LegendEntry",
    "Plot",
    "all_plots",
    "learning_curves",
    "learning_rates",
    "loss_terms",
    "pareto",
    "pareto_front",
]

#: Order is by how well neighbours tell apart; the tests check the contrast with both cards.
COLORS = ("#3b82f6", "#d97706", "#0f9d76", "#c04fa5", "#7c6cf0", "#d94f4f", "#5f8a1e", "#138fae")
DASHES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = {"teacher": "square", "student": "circle", "control": "x"}
#: More points than this per line are thinned out: nobody sees them, and the page has to carry them.
MAX_POINTS = 400
#: More lines than this hide one another; captions say what is left out.
MAX_LINES = 16
MAX_LOSS_FIGURES = 6

_INK, _GRID = "#6b7280", "rgba(128,132,140,0.25)"
Points = list[tuple[float, float]]


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


def all_plots(comparison: Comparison) -> list[Plot]:
    """Every figure there is data for, the most telling first."""
    plots = [
        pareto(comparison, "parameters"),
        pareto(comparison, "batch_1"),
        pareto(comparison, "batch_32"),
        learning_curves(comparison),
        learning_rates(comparison),
        *loss_terms(comparison),
    ]
    return [plot for plot in plots if plot is not None]


def learning_curves(comparison: Comparison) -> Plot | None:
    """The evaluation metric over steps: one colour per configuration, seeds thin, their mean thick."""
    metric, scale = comparison.metric, metric_scale(comparison.metric)
    rows = [row for row in comparison.rows if row.runs]
    # A teacher's steps are not the students': beside them it is a level to reach, alone it is a curve.
    teachers = [row for row in rows if row.role == "teacher"] if any(row.role != "teacher" for row in rows) else []
    curves = [row for row in rows if row not in teachers]
    figure = _figure("step", metric_title(metric))
    legend: list[LegendEntry] = []
    for row in curves[:MAX_LINES]:
        color, dash = _look(row, comparison)
        lines = [[(x, y * scale) for x, y in _series(run.evals, f"eval/{metric}")] for run in row.runs]
        if _add_lines(figure, lines, _who(row), color, dash, lambda y: f"{y:.1f}"):
            legend.append(LegendEntry(_who(row), color, dash, _who(row)))
    if not legend:
        return None
    for row in (row for row in comparison.rows if row.role == "teacher"):
        if row in curves or row.quality is None or row.metric != metric:
            continue
        color, _ = _look(row, comparison)
        name = _who(row)
        steps = [x for trace in figure.data for x in trace.x]
        figure.add_trace(
            go.Scatter(
                x=[min(steps), max(steps)],
                y=[row.quality.mean * scale] * 2,
                mode="lines",
                line={"color": color, "width": 1.5, "dash": "dot"},
                name=_safe(name),
                legendgroup=name,
                hovertemplate=f"{show_value(metric, row.quality.mean)}<extra></extra>",
            )
        )
        legend.append(LegendEntry(name, color, "dot", name))
    caption = "Thick: mean over seeds; thin: single seeds." if any(len(row.runs) > 1 for row in curves) else ""
    return _finish("curves", "Learning curves", _join(caption, _left_out(len(curves), MAX_LINES)), figure, legend)


def loss_terms(comparison: Comparison) -> list[Plot]:
    """Loss and its terms over steps on a logarithmic axis, one figure per configuration (its first seed)."""
    rows = [row for row in comparison.rows if row.runs and _losses(row.runs[0])]
    terms = list(dict.fromkeys(["loss", *(name for row in rows for name in _losses(row.runs[0]))]))
    looks = {name: (COLORS[i % len(COLORS)], DASHES[i % len(DASHES)]) for i, name in enumerate(terms)}
    plots = []
    for index, row in enumerate(rows[:MAX_LOSS_FIGURES]):
        losses = _losses(row.runs[0])
        figure = _figure("step", None)
        legend: list[LegendEntry] = []
        values = [y for points in losses.values() for _, y in points]
        if min(values) > 0:
            figure.update_yaxes(**_log_axis(values, _plain_number))
        for name, points in losses.items():
            color, dash = looks[name]
            term = "total" if name == "loss" else name.removeprefix("loss/")
            _add_lines(figure, [points], term, color, dash, lambda y: f"{y:.4g}")
            legend.append(LegendEntry(term, color, dash, term))
        who = f"{_who(row)}, seed {row.runs[0].seed}" if len(row.runs) > 1 else _who(row)
        who = who[0].upper() + who[1:]
        last = index + 1 == MAX_LOSS_FIGURES
        caption = _join(
            f"{who}.",
            "Terms before weighting." if len(losses) > 1 else "",
            _left_out(len(rows), MAX_LOSS_FIGURES, "configurations") if last else "",
        )
        plots.append(_finish(f"loss-{index + 1}", "Training loss", caption, figure, legend, height=270))
    return plots


def learning_rates(comparison: Comparison) -> Plot | None:
    """Learning rate over steps; configurations with the same one share a line."""
    groups: dict[tuple[tuple[float, float], ...], list[Row]] = {}
    for row in comparison.rows:
        line = _thin(_series(row.runs[0].train, "learning_rate")) if row.runs else []
        if line:
            groups.setdefault(tuple(line), []).append(row)
    if not groups:
        return None
    figure = _figure("step", None)
    legend: list[LegendEntry] = []
    for points, rows in list(groups.items())[:MAX_LINES]:
        color, dash = _look(rows[0], comparison)
        name = _who(rows[0]) if len(rows) == 1 else f"{_who(rows[0])} and {len(rows) - 1} more"
        _add_lines(figure, [list(points)], name, color, dash, lambda y: f"{y:.2e}")
        legend.append(LegendEntry(name, color, dash, name))
    top = max(y for points in groups for _, y in points)
    ticks = [top * quarter / 4 for quarter in range(5)]
    figure.update_yaxes(rangemode="tozero", tickvals=ticks, ticktext=[f"{tick:.2g}" for tick in ticks])
    return _finish("rates", "Learning rate", _left_out(len(groups), MAX_LINES), figure, legend)


def pareto(comparison: Comparison, against: str) -> Plot | None:
    """Quality against `parameters`, or against ms per example at `batch_1` or `batch_32`; the Pareto front is drawn.

    Points on the front are those that no other one beats in quality without costing more. None for fewer than 2 points.
    """
    metric, scale = comparison.metric, metric_scale(comparison.metric)
    points = []
    for row in comparison.rows:
        cost = _cost(row, against)
        if row.done and row.metric == metric and row.quality is not None and cost is not None and cost > 0:
            points.append((row, cost, row.quality.mean))
    if len(points) < 2:
        return None
    show: Callable[[float], str] = show_count if against == "parameters" else show_ms
    title = "parameters" if against == "parameters" else f"ms per example, batch {against.removeprefix('batch_')}"
    figure = _figure(title, metric_title(metric))
    legend: list[LegendEntry] = []
    figure.update_xaxes(**_log_axis([cost for _, cost, _ in points], show))
    front = pareto_front([(cost, value) for _, cost, value in points])
    figure.add_trace(
        go.Scatter(
            x=[points[index][1] for index in front],
            y=[points[index][2] * scale for index in front],
            mode="lines",
            line={"color": _INK, "width": 1.5, "dash": "dot", "shape": "hv"},
            name="Pareto front",
            legendgroup="Pareto front",
            hoverinfo="skip",
        )
    )
    for index, (row, cost, value) in enumerate(points):
        color, _ = _look(row, comparison)
        spread = row.quality.sd if row.quality else None
        figure.add_trace(
            go.Scatter(
                x=[cost],
                y=[value * scale],
                error_y={"array": [spread * scale], "thickness": 1.2, "width": 4} if spread else None,
                mode="markers",
                marker={
                    "color": color,
                    "size": 13 if index in front else 10,
                    "symbol": SYMBOLS[row.role],
                    "line": {"width": 2 if index in front else 0, "color": _INK},
                },
                name=_safe(_who(row)),
                legendgroup=_who(row),
                text=[_safe(f"{_who(row)}: {show_value(metric, value, spread, rows=row.eval_rows)}, {show(cost)}")],
                hovertemplate="%{text}<extra></extra>",
            )
        )
        legend.append(LegendEntry(_who(row), color, SYMBOLS[row.role], _who(row)))
    legend.append(LegendEntry("Pareto front", _INK, "dot", "Pareto front"))
    name = {"parameters": "Quality against size"}.get(against, f"Quality against time, batch {against[6:]}")
    caption = "Up and to the left is better. Ringed: nothing else is better at no more cost."
    return _finish(f"pareto-{against}", name, caption, figure, legend)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (cost, quality) points that no other dominates, by rising cost. Equal points both stay."""
    front = []
    for index, (cost, value) in enumerate(points):
        dominated = any(
            other_cost <= cost and other >= value and (other_cost < cost or other > value)
            for other_cost, other in points
        )
        if not dominated:
            front.append(index)
    return sorted(front, key=lambda index: points[index])


def _who(row: Row) -> str:
    """Name in legends: a control is the same model as its student and must say so."""
    return row.name if row.role == "student" else f"{row.role} {row.name}"


def _cost(row: Row, against: str) -> float | None:
    if against == "parameters":
        return None if row.parameters is None else float(row.parameters)
    stat = row.latency_ms.get(against)
    return None if stat is None else stat.mean


def _series(records: Sequence[Mapping[str, Any]], name: str) -> Points:
    """(step, value) of the finite values under `name`."""
    found = []
    for record in records:
        x, y = number(record.get("step")), number(record.get(name))
        if x is not None and y is not None:
            found.append((x, y))
    return found


def _losses(run: RunRecord) -> dict[str, Points]:
    names = dict.fromkeys(name for record in run.train for name in record if name == "loss" or name.startswith("loss/"))
    if len(names) == 2:
        # A total of one term is that term.
        names = dict.fromkeys(name for name in names if name != "loss")
    series = {name: _thin(_series(run.train, name)) for name in names}
    return {name: points for name, points in series.items() if points}


def _thin(points: Points) -> Points:
    """At most about MAX_POINTS of `points`, the first and the last among them."""
    step = math.ceil(len(points) / MAX_POINTS)
    return points if step <= 1 else [*points[:-1:step], points[-1]]


def _mean_line(lines: Sequence[Points]) -> Points:
    """Mean over lines at the steps that all of them have."""
    shared = set.intersection(*({x for x, _ in line} for line in lines)) if lines else set()
    by_step = [dict(line) for line in lines]
    return [(x, sum(values[x] for values in by_step) / len(by_step)) for x in sorted(shared)]


def _add_lines(
    figure: go.Figure, lines: Sequence[Points], name: str, color: str, dash: str, show: Callable[[float], str]
) -> bool:
    """One line per seed and, for several, their mean; False if there was nothing to draw."""
    lines = [line for line in lines if line]
    mean = _mean_line(lines) if len(lines) > 1 else []
    drawn = [(line, False) for line in lines] + ([(mean, True)] if mean else [])
    for index, (line, is_mean) in enumerate(drawn):
        thin = _thin(line)
        main = is_mean or not mean
        figure.add_trace(
            go.Scatter(
                x=[x for x, _ in thin],
                y=[y for _, y in thin],
                mode="lines+markers" if len(thin) == 1 else "lines",
                line={"color": color, "dash": dash, "width": 2.4 if main else 1},
                opacity=1 if main else 0.4,
                name=_safe(name),
                legendgroup=name,
                showlegend=index == len(drawn) - 1,
                text=[show(y) for _, y in thin],
                hovertemplate="step %{x}: %{text}<extra></extra>" if main else None,
                hoverinfo=None if main else "skip",
            )
        )
    return bool(drawn)


def _look(row: Row, comparison: Comparison) -> tuple[str, str]:
    """Colour and dash of a row, the same in every figure. Controls are dashed."""
    index = comparison.rows.index(row)
    color = COLORS[index % len(COLORS)]
    if row.role == "control":
        return color, "dash"
    return color, "solid" if index < len(COLORS) else "dashdot"


def _figure(x_title: str, y_title: str | None) -> go.Figure:
    figure = go.Figure()
    figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 12, "color": _INK},
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
            text=_safe(y_title),
            xref="paper",
            yref="paper",
            x=0,
            y=1,
            yshift=16,
            xanchor="left",
            showarrow=False,
            font={"size": 12, "color": _INK},
        )
    return figure


def _axis() -> dict[str, Any]:
    return {
        "automargin": True,
        "gridcolor": _GRID,
        "zeroline": False,
        "linecolor": _GRID,
        "nticks": 6,
        "ticks": "",
        "fixedrange": True,
        "separatethousands": True,
    }


def _log_axis(values: Sequence[float], show: Callable[[float], str]) -> dict[str, Any]:
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
    return {
        "type": "log",
        "range": [start, end],
        "tickmode": "array",
        "tickvals": ticks,
        "ticktext": [show(tick).replace(".0 ", " ") for tick in ticks],
    }


def _plain_number(value: float) -> str:
    return f"{value:g}" if value >= 1e-4 else f"{value:.0e}"


def _left_out(count: int, limit: int, what: str = "lines") -> str:
    return f"{count - limit} further {what} are left out." if count > limit else ""


def _join(*sentences: str) -> str:
    return " ".join(sentence for sentence in sentences if sentence)


def _safe(text: str) -> str:
    """Names are user text, and plotly reads some HTML in labels."""
    return html.escape(text, quote=False)


def _finish(
    name: str, title: str, caption: str, figure: go.Figure, legend: Sequence[LegendEntry], height: int = 340
) -> Plot:
    figure.update_layout(height=height)
    return Plot(name, title, caption, figure, tuple(legend), height)
