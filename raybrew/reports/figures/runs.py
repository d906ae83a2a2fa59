"""Figures from stored metrics. Readable on light and dark pages, in print, without colour vision and at 400 pixels.

Colours have a contrast of at least 3:1 against white and near-black alike; lines also differ by dash, points by
symbol. Backgrounds are transparent and the page sets the colour of text and grid, see `templates/report.css.j2`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence, Set
from typing import Any

from raybrew.records.runs import RunRecord
from raybrew.reports.comparison import Comparison
from raybrew.reports.figures.parts import (
    COLORS,
    INK,
    LegendEntry,
    Plot,
    Points,
    add_lines,
    finish,
    log_axis,
    new_figure,
    plain_number,
    safe,
    series,
    thin,
    trace,
)
from raybrew.reports.numbers import metric_scale, metric_title, show_bytes, show_count, show_ms, show_value
from raybrew.reports.rows import Row
from raybrew.reports.statistics.evidence import Split
from raybrew.reports.words import show_measured

__all__ = [
    "all_plots",
    "cost_of_row",
    "learning_curves",
    "learning_rates",
    "loss_terms",
    "pareto",
    "pareto_front",
]

DASHES = ("solid", "dash", "dot", "dashdot")
#: Of points, by role; students whose colours repeat take the next one.
SYMBOLS = {
    "teacher": ("square",),
    "student": ("circle", "diamond", "triangle-up", "triangle-down", "star", "pentagon", "hexagon", "cross"),
    "control": ("x",),
}
#: More lines than this hide one another; captions say what is left out.
MAX_LINES = 16
MAX_LOSS_FIGURES = 6
#: More points than this have no name of their own in a legend, unless they are on the front.
MAX_NAMED = 64


def all_plots(comparison: Comparison, of_sweep: bool = False) -> list[Plot]:
    """Every figure there is data for, the most telling first. Of a sweep: bytes, no rates and losses."""
    plots = [
        pareto(comparison, "parameters"),
        pareto(comparison, "batch_1"),
        pareto(comparison, "batch_32"),
        pareto(comparison, "megabytes") if of_sweep else None,
        learning_curves(comparison),
        *(() if of_sweep else (learning_rates(comparison), *loss_terms(comparison))),
    ]
    return [plot for plot in plots if plot is not None]


def learning_curves(comparison: Comparison) -> Plot | None:
    """The evaluation metric over steps: one colour per configuration, seeds thin, their mean thick."""
    metric, scale = comparison.metric, metric_scale(comparison.metric)
    rows = [row for row in comparison.rows if row.runs]
    # A teacher's steps are not the students': beside them it is a level to reach, alone it is a curve.
    teachers = [row for row in rows if row.role == "teacher"] if any(row.role != "teacher" for row in rows) else []
    curves = [row for row in rows if row not in teachers]
    figure = new_figure("step", metric_title(metric))
    legend: list[LegendEntry] = []
    for row in curves[:MAX_LINES]:
        color, dash = _look(row, comparison)
        lines = [[(x, y * scale) for x, y in series(run.evals, metric)] for run in row.runs]
        # One evaluation is a point, not a curve.
        lines = [line for line in lines if len(line) > 1]
        if add_lines(figure, lines, _who(row), color, dash, lambda y: f"{y:.1f}"):
            legend.append(LegendEntry(_who(row), color, dash, _who(row)))
    if not legend:
        return None
    for row in (row for row in comparison.rows if row.role == "teacher"):
        if row in curves or row.quality is None or row.metric != metric:
            continue
        color, _ = _look(row, comparison)
        name = _who(row)
        steps = [x for trace in figure.data for x in trace.x]
        level = [(step, row.quality.mean * scale) for step in (min(steps), max(steps))]
        text = show_value(metric, row.quality.mean)
        figure.add_trace(
            trace(name, level, [text] * 2, mode="lines", line={"color": color, "width": 1.5, "dash": "dot"})
        )
        legend.append(LegendEntry(name, color, "dot", name))
    caption = "Thick: mean over seeds; thin: single seeds." if any(len(row.runs) > 1 for row in curves) else ""
    caption = _join(caption, _left_out(len(curves), MAX_LINES))
    return finish("curves", "Learning curves", caption, figure, legend, height=340)


def loss_terms(comparison: Comparison) -> list[Plot]:
    """Loss and its terms over steps on a logarithmic axis, one figure per configuration (its first seed)."""
    rows = [row for row in comparison.rows if row.runs and _losses(row.runs[0])]
    terms = list(dict.fromkeys(["loss", *(name for row in rows for name in _losses(row.runs[0]))]))
    looks = {name: (COLORS[i % len(COLORS)], DASHES[i % len(DASHES)]) for i, name in enumerate(terms)}
    plots = []
    for index, row in enumerate(rows[:MAX_LOSS_FIGURES]):
        losses = _losses(row.runs[0])
        figure = new_figure("step", None)
        legend: list[LegendEntry] = []
        values = [y for points in losses.values() for _, y in points]
        if min(values) > 0:
            figure.update_yaxes(**log_axis(values, plain_number))
        for name, points in losses.items():
            color, dash = looks[name]
            term = "total" if name == "loss" else name.removeprefix("loss/")
            add_lines(figure, [points], term, color, dash, lambda y: f"{y:.4g}")
            legend.append(LegendEntry(term, color, dash, term))
        who = f"{_who(row)}, seed {row.runs[0].seed}" if len(row.runs) > 1 else _who(row)
        who = who[0].upper() + who[1:]
        last = index + 1 == MAX_LOSS_FIGURES
        caption = _join(
            f"{who}.",
            "Terms before weighting." if len(losses) > 1 else "",
            _left_out(len(rows), MAX_LOSS_FIGURES, "configurations") if last else "",
        )
        plots.append(finish(f"loss-{index + 1}", "Training loss", caption, figure, legend, height=270))
    return plots


def learning_rates(comparison: Comparison) -> Plot | None:
    """Learning rate over steps; configurations with the same one share a line."""
    groups: dict[tuple[tuple[float, float], ...], list[Row]] = {}
    for row in comparison.rows:
        line = thin(series(row.runs[0].train, "learning_rate")) if row.runs else []
        if line:
            groups.setdefault(tuple(line), []).append(row)
    if not groups:
        return None
    figure = new_figure("step", None)
    legend: list[LegendEntry] = []
    for points, rows in list(groups.items())[:MAX_LINES]:
        color, dash = _look(rows[0], comparison)
        name = _who(rows[0]) if len(rows) == 1 else f"{_who(rows[0])} and {len(rows) - 1} more"
        add_lines(figure, [list(points)], name, color, dash, lambda y: f"{y:.2e}")
        legend.append(LegendEntry(name, color, dash, name))
    top = max(y for points in groups for _, y in points)
    ticks = [top * quarter / 4 for quarter in range(5)]
    figure.update_yaxes(rangemode="tozero", tickvals=ticks, ticktext=[f"{tick:.2g}" for tick in ticks])
    return finish("rates", "Learning rate", _left_out(len(groups), MAX_LINES), figure, legend, height=340)


def pareto(comparison: Comparison, against: str, most_named: int = MAX_NAMED) -> Plot | None:
    """Quality against `parameters`, or against ms per example at `batch_1` or `batch_32`; the Pareto front is drawn.

    Points on the front are those that no other one beats in quality without costing more. None where costs are equal.
    """
    metric, scale = comparison.metric, metric_scale(comparison.metric)
    judged = [row for row in comparison.rows if row.done and row.metric == metric and row.quality is not None]
    # One figure shows values of the same rows.
    split: Split = "test" if judged and all(row.test is not None for row in judged) else "eval"
    measured = [(row, cost_of_row(row, against), row.on(split)) for row in judged]
    points = [
        (row, cost, stat.mean) for row, cost, stat in measured if stat is not None and cost is not None and cost > 0
    ]
    costs = [cost for _, cost, _ in points]
    if not costs or max(costs) < 1.02 * min(costs):
        return None
    batch = against.removeprefix("batch_")
    show, title, name = {
        "parameters": (show_count, "parameters", "parameters"),
        "megabytes": (show_bytes, "size of the weights", "bytes"),
    }.get(against, (show_ms, f"ms per example, batch {batch}", f"time, batch {batch}"))
    figure = new_figure(title, f"{'test ' if split == 'test' else ''}{metric_title(metric)}")
    figure.update_xaxes(**log_axis(costs, show))
    front = pareto_front([(cost, value) for _, cost, value in points])
    line = {"color": INK, "width": 1.5, "dash": "dot", "shape": "hv"}
    ends = [(points[index][1], points[index][2] * scale) for index in front]
    traces = [trace("Pareto front", ends, mode="lines", line=line)]
    legend: list[LegendEntry] = []
    for group, color, symbol, ringed, members in _groups(comparison, points, set(front), most_named):
        row, spread = members[0][0], None
        marker: dict[str, Any]
        if len(members) == 1 and group == _who(row):
            interval = row.intervals[split]
            spread = interval.half if interval is not None else None
            marker = {"color": color, "size": 13 if ringed else 10, "symbol": symbol,
                      "line": {"width": 2 if ringed else 0, "color": INK}}  # fmt: skip
        else:
            marker = {"color": color, "size": 7, "opacity": 0.45, "symbol": symbol}
        texts = [safe(f"{_who(row)}: {show_measured(row, split)}, {show(cost)}") for row, cost, _ in members]
        bars = {"error_y": {"array": [spread * scale], "thickness": 1.2, "width": 4}} if spread else {}
        places = [(cost, value * scale) for _, cost, value in members]
        traces.append(trace(group, places, texts, mode="markers", marker=marker, **bars))
        legend.append(LegendEntry(group, color, symbol, group))
    # All at once: each call looks at what is there already.
    figure.add_traces(traces)
    legend.append(LegendEntry("Pareto front", INK, "dot", "Pareto front"))
    where = "data.test" if split == "test" else "data.eval, used for choosing"
    caption = f"On {where}; bars: 95 % intervals. Ringed points: no other model is better at the same or a lower cost."
    return finish(f"pareto-{against}", f"Quality against {name}", caption, figure, legend, height=340)


Point = tuple[Row, float, float]


def _groups(
    comparison: Comparison, points: Sequence[Point], ringed: Set[int], most_named: int
) -> Iterator[tuple[str, str, str, bool, list[Point]]]:
    """Name, colour, symbol, whether it is on the front, and points: of many points the others of a role together."""
    many = len(points) > most_named
    for index, point in enumerate(points):
        if index in ringed or not many:
            row = point[0]
            yield _who(row), _look(row, comparison)[0], _symbol(row, comparison), index in ringed, [point]
    for role in SYMBOLS if many else ():
        others = [point for index, point in enumerate(points) if index not in ringed and point[0].role == role]
        if others:
            yield f"{len(others)} further {role}s", COLORS[0], SYMBOLS[role][0], False, others


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (cost, quality) points that no other dominates, by rising cost. Equal points both stay."""
    front: list[int] = []
    best = float("-inf")
    order = sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1]))
    for _, same_cost in itertools.groupby(order, key=lambda index: points[index][0]):
        indices = list(same_cost)
        value = points[indices[0]][1]
        if value > best:
            front += sorted(index for index in indices if points[index][1] == value)
            best = value
    return front


def _who(row: Row) -> str:
    """Name in legends: a control is the same model as its student and must say so."""
    return row.name if row.role == "student" else f"{row.role} {row.name}"


def cost_of_row(row: Row, against: str) -> float | None:
    """Parameters, megabytes, or ms per example at `batch_1` or `batch_32`; None where it was not measured, or under
    other conditions than most rows."""
    if against in ("parameters", "megabytes"):
        found: float | None = getattr(row, against)
        return None if found is None else float(found)
    stat = row.latency_ms.get(against) if row.timed_alike else None
    return None if stat is None else stat.mean


def _losses(run: RunRecord) -> dict[str, Points]:
    names = dict.fromkeys(name for line in run.train for name in line.losses)
    if len(names) == 2:
        # A total of one term is that term.
        names = dict.fromkeys(name for name in names if name != "loss")
    lines = {name: thin(series(run.train, name)) for name in names}
    return {name: line for name, line in lines.items() if line}


def _look(row: Row, comparison: Comparison) -> tuple[str, str]:
    """Colour and dash of a row, the same in every figure. Controls are dashed."""
    index = comparison.place_of(row)
    color = COLORS[index % len(COLORS)]
    if row.role == "control":
        return color, "dash"
    return color, ("solid", "dashdot", "longdash")[index // len(COLORS) % 3]


def _symbol(row: Row, comparison: Comparison) -> str:
    """Symbol of a row's point: with its colour it is that of no other row of its role, up to 64."""
    symbols = SYMBOLS[row.role]
    return symbols[comparison.place_of(row) // len(COLORS) % len(symbols)]


def _left_out(count: int, limit: int, what: str = "lines") -> str:
    return f"{count - limit} further {what} are left out." if count > limit else ""


def _join(*sentences: str) -> str:
    return " ".join(sentence for sentence in sentences if sentence)
