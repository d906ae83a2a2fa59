"""Figures from stored metrics. Readable on light and dark pages, in print, without colour vision and at 400 pixels.

Colours have a contrast of at least 3:1 against white and near-black alike; lines also differ by dash, points by
symbol. Backgrounds are transparent and the page sets the colour of text and grid, see `templates/report.css.j2`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import plotly.graph_objects as go

from raybrew.records.runs import RunRecord
from raybrew.reports.comparison import Comparison
from raybrew.reports.figures.parts import INK, Points, add_lines, log_axis, new_figure, plain_number, safe, series, thin
from raybrew.reports.numbers import metric_scale, metric_title, show_bytes, show_count, show_ms, show_value
from raybrew.reports.rows import Row
from raybrew.reports.statistics.evidence import Split
from raybrew.reports.words import show_measured

__all__ = [
    "COLORS",
    "LegendEntry",
    "Plot",
    "all_plots",
    "cost_of_row",
    "learning_curves",
    "learning_rates",
    "loss_terms",
    "pareto",
    "pareto_front",
]

#: Order is by how well neighbours tell apart; the tests check the contrast with both cards.
COLORS = ("#3b82f6", "#d97706", "#0f9d76", "#c04fa5", "#7c6cf0", "#d94f4f", "#5f8a1e", "#138fae")
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
        figure.add_trace(
            go.Scatter(
                x=[min(steps), max(steps)],
                y=[row.quality.mean * scale] * 2,
                mode="lines",
                line={"color": color, "width": 1.5, "dash": "dot"},
                name=safe(name),
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
        plots.append(_finish(f"loss-{index + 1}", "Training loss", caption, figure, legend, height=270))
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
    return _finish("rates", "Learning rate", _left_out(len(groups), MAX_LINES), figure, legend)


def pareto(comparison: Comparison, against: str) -> Plot | None:
    """Quality against `parameters`, or against ms per example at `batch_1` or `batch_32`; the Pareto front is drawn.

    Points on the front are those that no other one beats in quality without costing more. None where costs are equal.
    """
    metric, scale = comparison.metric, metric_scale(comparison.metric)
    judged = [row for row in comparison.rows if row.done and row.metric == metric and row.quality is not None]
    # One figure shows values of the same rows.
    split: Split = "test" if judged and all(row.test is not None for row in judged) else "eval"
    points = []
    for row in judged:
        cost, quality = cost_of_row(row, against), row.on(split)
        if quality is not None and cost is not None and cost > 0:
            points.append((row, cost, quality.mean))
    costs = [cost for _, cost, _ in points]
    if not costs or max(costs) < 1.02 * min(costs):
        return None
    shows: dict[str, Callable[[float], str]] = {"parameters": show_count, "megabytes": show_bytes}
    show = shows.get(against, show_ms)
    title = {"parameters": "parameters", "megabytes": "size of the weights"}.get(
        against, f"ms per example, batch {against.removeprefix('batch_')}"
    )
    figure = new_figure(title, f"{'test ' if split == 'test' else ''}{metric_title(metric)}")
    legend: list[LegendEntry] = []
    figure.update_xaxes(**log_axis(costs, show))
    front = pareto_front([(cost, value) for _, cost, value in points])
    figure.add_trace(
        go.Scatter(
            x=[points[index][1] for index in front],
            y=[points[index][2] * scale for index in front],
            mode="lines",
            line={"color": INK, "width": 1.5, "dash": "dot", "shape": "hv"},
            name="Pareto front",
            legendgroup="Pareto front",
            hoverinfo="skip",
        )
    )
    ringed = set(front)
    traces = []
    for index, (row, cost, value) in enumerate(points):
        if len(points) > MAX_NAMED and index not in ringed:
            continue
        color, _ = _look(row, comparison)
        interval = row.intervals[split]
        spread = interval.half if interval is not None else None
        traces.append(
            go.Scatter(
                x=[cost],
                y=[value * scale],
                error_y={"array": [spread * scale], "thickness": 1.2, "width": 4} if spread else None,
                mode="markers",
                marker={
                    "color": color,
                    "size": 13 if index in ringed else 10,
                    "symbol": _symbol(row, comparison),
                    "line": {"width": 2 if index in ringed else 0, "color": INK},
                },
                name=safe(_who(row)),
                legendgroup=_who(row),
                text=[_point_text(row, split, show(cost))],
                hovertemplate="%{text}<extra></extra>",
            )
        )
        legend.append(LegendEntry(_who(row), color, _symbol(row, comparison), _who(row)))
    for role in SYMBOLS if len(points) > MAX_NAMED else ():
        others = [point for index, point in enumerate(points) if index not in ringed and point[0].role == role]
        if others:
            name = f"{len(others)} further {role}s"
            traces.append(
                go.Scatter(
                    x=[cost for _, cost, _ in others],
                    y=[value * scale for *_, value in others],
                    mode="markers",
                    marker={"color": COLORS[0], "size": 7, "opacity": 0.45, "symbol": SYMBOLS[role][0]},
                    name=name,
                    legendgroup=name,
                    text=[_point_text(row, split, show(cost)) for row, cost, _ in others],
                    hovertemplate="%{text}<extra></extra>",
                )
            )
            legend.append(LegendEntry(name, COLORS[0], SYMBOLS[role][0], name))
    # All at once: each call looks at what is there already.
    figure.add_traces(traces)
    legend.append(LegendEntry("Pareto front", INK, "dot", "Pareto front"))
    names = {"parameters": "Quality against parameters", "megabytes": "Quality against bytes"}
    name = names.get(against, f"Quality against time, batch {against[6:]}")
    where = "data.test" if split == "test" else "data.eval, used for choosing"
    caption = f"On {where}; bars: 95 % intervals. Ringed points: no other model is better at the same or a lower cost."
    return _finish(f"pareto-{against}", name, caption, figure, legend)


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


def _point_text(row: Row, split: Split, cost: str) -> str:
    return safe(f"{_who(row)}: {show_measured(row, split)}, {cost}")


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


def _finish(
    name: str, title: str, caption: str, figure: go.Figure, legend: Sequence[LegendEntry], height: int = 340
) -> Plot:
    figure.update_layout(height=height)
    return Plot(name, title, caption, figure, tuple(legend), height)
