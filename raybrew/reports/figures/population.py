"""A sweep by population based training: how the values of its members went, and what each round decided."""

from __future__ import annotations

from raybrew.config.judge import LOSS
from raybrew.config.sweep import ParameterConfig
from raybrew.records.sweeps import SweepRecord
from raybrew.reports.figures.parts import COLORS, INK, LegendEntry, Plot, finish, new_figure, safe, trace
from raybrew.reports.numbers import metric_scale

__all__ = ["course_plots"]


def course_plots(record: SweepRecord, best: str | None) -> list[Plot]:
    """One figure per key: its value over the steps, a line for each member's final course, the best's marked.

    Dotted lines end where their member gave way. `best` is the run that the sweep recommends.
    """
    return [plot for key in record.space if (plot := _course_plot(record, key, best)) is not None]


def _course_plot(record: SweepRecord, key: str, best: str | None) -> Plot | None:
    members = [trial for trial in record.trials if trial.member is not None and key in trial.values]
    if not record.rounds or not members:
        return None
    scale, best_of = metric_scale(record.metric), min if record.metric == LOSS else max
    figure = new_figure("share of the steps, %", key.rsplit(".", 1)[-1])
    for trial in sorted(members, key=lambda trial: (trial.run == best, trial.status == "done", trial.number)):
        group = "best" if trial.run == best else "gave way" if trial.status == "stopped" else "other members"
        end = 1.0 if trial.status == "done" else trial.share
        course = [point for point in trial.course(key) if point[0] <= end]
        value = trial.value if trial.value is not None else best_of((v for _, v in trial.reports), default=float("nan"))
        text = safe(f"member {trial.member}, trial {trial.number}: {key}={trial.show(key)}; {value * scale:.2f}")
        line = {
            "color": COLORS[1] if group == "best" else COLORS[0] if group == "other members" else INK,
            "width": 3 if group == "best" else 1.4,
            "dash": "dot" if group == "gave way" else "solid",
            "shape": "hv",
        }
        points = [(100 * share, value) for share, value in [*course, (end, course[-1][1])]]
        marker = {"size": 5, "symbol": ["circle"] * len(course) + ["x" if group == "gave way" else "circle"]}
        figure.add_trace(trace(group, points, [text] * len(points), mode="lines+markers", line=line, marker=marker))
    if ParameterConfig.model_validate(record.space[key]).kind == "loguniform":
        figure.update_yaxes(type="log")
    figure.update_xaxes(range=[-2, 102])
    legend = [
        LegendEntry("best", COLORS[1], "solid", "best"),
        LegendEntry("other members", COLORS[0], "solid", "other members"),
        LegendEntry("gave way", INK, "dot", "gave way"),
    ]
    caption = "A line that goes on from another one shares its values up to there."
    return finish(f"course-{key.replace('.', '-')}", f"Population: {key}", caption, figure, legend)
