"""Figures of a sweep: the effect of each key, importance, parallel coordinates, early stops. Same looks as `plots`."""

from __future__ import annotations

import json
import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from raybrew.config.judge import quality as score_of
from raybrew.config.judge import value_of_quality
from raybrew.config.sweep import ParameterConfig
from raybrew.config.values import show_value_of
from raybrew.records.ranking import recommended, standings
from raybrew.records.sweeps import CANDIDATE, SweepRecord
from raybrew.reports.comparison import Comparison
from raybrew.reports.figures.parts import (
    COLORS,
    INK,
    LegendEntry,
    Plot,
    finish,
    new_figure,
    plain_number,
    safe,
    sample,
    trace,
)
from raybrew.reports.figures.population import course_plots
from raybrew.reports.numbers import metric_scale, metric_title
from raybrew.reports.statistics.effects import Effect, configurations_of, effect_of
from raybrew.reports.words import plain_metric

__all__ = ["configurations_in", "importances", "sweep_plots"]

#: fANOVA of fewer configurations than this is noise.
_LEAST_FOR_IMPORTANCE = 6
#: fANOVA's time grows with the square of their number; more change its shares by little.
MOST_FOR_IMPORTANCE = 256
#: Keys whose effects come first.
_FIRST = ("distill.temperature", "distill.matches", "student.shape")
_SEQUENTIAL = ("#c7d7f5", "#9dbaf0", "#6f9be8", "#3b82f6", "#1d5fd0", "#123f8f")


def sweep_plots(
    record: SweepRecord,
    comparison: Comparison,
    *,
    most_lines: int = 200,
    for_importance: int = MOST_FOR_IMPORTANCE,
) -> list[Plot]:
    """Every figure that there is data for, the most telling first.

    More than `most_lines` hide one another, and a browser takes long to draw them; captions say what is left out.
    """
    if record.rounds:
        # A member has many values; what an effect of one of them would be is not to be told apart.
        chosen = recommended(record)
        members = [trial.run for trial in chosen.trials if trial.member is not None] if chosen is not None else []
        return course_plots(record, members[0] if members else None)
    configurations = configurations_in(record)
    keys = sorted(record.space, key=lambda key: (_FIRST.index(key) if key in _FIRST else len(_FIRST), key))
    measured = configurations_of(record, comparison)
    effects = {
        key: effect_of(measured, key, ParameterConfig.model_validate(record.space[key]), len(keys)) for key in keys
    }
    plots = [effect(record, configurations, key, effects[key]) for key in keys]
    plots += [
        importance(record, configurations, effects, for_importance),
        parallel_coordinates(record, configurations, most_lines),
        trial_curves(record, most_lines),
    ]
    return [plot for plot in plots if plot is not None]


Configurations = list[tuple[dict[str, Any], float]]


def configurations_in(record: SweepRecord) -> Configurations:
    """Values and mean metric over finished seeds of each configuration that has finished."""
    done = standings(record.trials_of("done"))
    return [(one.values, statistics.fmean(trial.value or 0.0 for trial in one.trials)) for one in done]


def effect(record: SweepRecord, configurations: Configurations, key: str, found: Effect | None = None) -> Plot | None:
    """The metric of every configuration by the value of one key, and the mean of each value.

    It is called an effect only if that is shown.
    """
    rows = [(values[key], quality, values) for values, quality in configurations if key in values]
    if len({json.dumps(value, default=str) for value, *_ in rows}) < 2:
        return None
    scale = metric_scale(record.metric)
    figure = new_figure(key, metric_title(record.metric))
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value, *_ in rows)
    parameter = ParameterConfig.model_validate(record.space[key])
    categories = _categories(parameter, [value for value, *_ in rows])
    spread_out = numeric and not parameter.discrete
    places = [value if spread_out else categories.index(show_value_of(value)) for value, *_ in rows]
    points = [(place, quality * scale) for place, (_, quality, _) in zip(places, rows, strict=True)]
    texts = [safe(f"{_short(values)}: {quality * scale:.2f}") for _, quality, values in rows]
    marker: dict[str, Any] = {"color": COLORS[0], "size": 9, "opacity": 0.65}
    figure.add_trace(trace("configuration", points, texts, mode="markers", marker=marker))
    legend = [LegendEntry("one configuration", COLORS[0], "circle", "configuration")]
    if not spread_out:
        means = [(index, statistics.fmean(y for place, y in points if place == index)) for index in sorted(set(places))]
        marker = {"color": COLORS[1], "size": 13, "symbol": "line-ew", "line": {"width": 3, "color": COLORS[1]}}
        texts = [f"mean {mean:.2f}" for _, mean in means]
        mode, line = "lines+markers" if numeric else "markers", {"color": COLORS[1], "width": 2}
        figure.add_trace(trace("mean", means, texts, mode=mode, line=line, marker=marker))
        legend.append(LegendEntry("mean of a value", COLORS[1], "solid", "mean"))
        labels = [text if len(text) <= 22 else text[:20] + "…" for text in categories]
        figure.update_xaxes(
            tickmode="array",
            tickvals=list(range(len(labels))),
            ticktext=[safe(text) for text in labels],
            range=[-0.5, len(labels) - 0.5],
        )
    elif parameter.kind == "loguniform":
        figure.update_xaxes(type="log")
    caption = found.sentence(record.metric) if found is not None else ""
    short = {"distill.temperature": "temperature", "distill.matches": "each match set"}.get(key, key)
    metric = plain_metric(record.metric)
    shown = found is not None and found.shown
    name = f"Effect of {short}" if shown else f"{metric[0].upper()}{metric[1:]} by {short}"
    return finish(f"effect-{key.replace('.', '-')}", name, caption, figure, legend)


def importances(
    record: SweepRecord, configurations: Configurations, most: int = MOST_FOR_IMPORTANCE
) -> tuple[dict[str, float], int]:
    """fANOVA share of each key in the variation of the metric, and from how many configurations, at most `most`.

    Empty for fewer than 6 configurations, a metric that does not vary, or a single key. Keys with a condition are left
    out: they are absent from some configurations.
    """
    import optuna

    space = {key: ParameterConfig.model_validate(value) for key, value in record.space.items()}
    keys = [key for key, parameter in space.items() if not parameter.when]
    whole = [each for each in configurations if all(key in each[0] for key in keys)]
    rows = sample(whole, most)
    varying = [key for key in keys if len({json.dumps(values[key], default=str) for values, _ in rows}) > 1]
    if len(rows) < _LEAST_FOR_IMPORTANCE or len(varying) < 2 or len({quality for _, quality in rows}) < 2:
        return {}, len(rows)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    distributions = {key: _distribution(space[key], [values[key] for values, _ in rows]) for key in varying}
    for values, quality in rows:
        params = {key: json.dumps(values[key], default=str) if space[key].discrete else values[key] for key in varying}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=quality))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = optuna.importance.get_param_importances(
            study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
        )
    return {key: float(share) for key, share in found.items()}, len(rows)


def importance(
    record: SweepRecord, configurations: Configurations, effects: Mapping[str, Effect | None], most: int
) -> Plot | None:
    """Bars of `importances`, grey for keys whose effect is not shown."""
    shares, count = importances(record, configurations, most)
    if not shares:
        return None
    keys = sorted(shares, key=lambda key: shares[key])
    shown = {key for key, found in effects.items() if found is not None and found.shown}
    figure = new_figure("share of the variation explained, %", None)
    figure.add_trace(
        go.Bar(
            x=[100 * shares[key] for key in keys],
            y=[safe(key) for key in keys],
            orientation="h",
            marker={"color": [COLORS[0] if key in shown else INK for key in keys]},
            width=0.5,
            name="importance",
            legendgroup="importance",
            text=[f"{100 * shares[key]:.0f} %" for key in keys],
            textposition="auto",
            hovertemplate="%{y}: %{x:.1f} %<extra></extra>",
        )
    )
    few = " That is few: take it as a hint." if count < 30 else ""
    part = f" of {len(configurations)}" if count == most < len(configurations) else ""
    grey = "" if shown.issuperset(keys) else " Grey: no effect of this key could be shown."
    caption = f"fANOVA over n = {count}{part} configurations (means over seeds).{few}{grey}"
    return finish("importance", "Share of the variation by key", caption, figure, (), height=120 + 44 * len(keys))


def parallel_coordinates(record: SweepRecord, configurations: Configurations, most: int) -> Plot | None:
    """One line per configuration through all keys to its metric; darker is nearer to the top."""
    keys = [key for key in record.space if any(key in values for values, _ in configurations)]
    if len(configurations) < 3 or len(keys) < 2:
        return None
    scale = metric_scale(record.metric)
    qualities = [score_of(record.metric, value) for _, value in configurations]
    low, high = min(qualities), max(qualities)
    figure = new_figure("", None)
    axes = {key: _axis_of(record, key, [v[key] for v, _ in configurations if key in v]) for key in keys}
    everything = sorted(range(len(configurations)), key=lambda index: qualities[index])
    order = sample(everything, most)
    traces = []
    for index in order:
        values, value = configurations[index]
        share = (qualities[index] - low) / (high - low) if high > low else 1.0
        is_best = index == order[-1]
        shade = _SEQUENTIAL[min(int(share * len(_SEQUENTIAL)), len(_SEQUENTIAL) - 1)]
        heights = [axes[key][0](values[key]) if key in values else None for key in keys]
        traces.append(
            trace(
                "top" if is_best else "configurations",
                list(enumerate([*heights, share])),
                [safe(f"{_short(values)}: {value * scale:.2f}")] * (len(keys) + 1),
                mode="lines+markers",
                line={"color": COLORS[1] if is_best else shade, "width": 3 if is_best else 1.6},
                marker={"size": 5},
                opacity=1 if is_best else 0.75,
                showlegend=index in (order[0], order[-1]),
            )
        )
    figure.add_traces(traces)
    for place, key in enumerate(keys):
        for height, text in axes[key][1]:
            _note(figure, place, height, text)
    for height, value in ((0.0, low), (1.0, high)):
        _note(figure, len(keys), height, f"{value_of_quality(record.metric, value) * scale:.1f}")
    names = [key.rsplit(".", 1)[-1] for key in keys] + [metric_title(record.metric)]
    figure.update_xaxes(
        tickmode="array", tickvals=list(range(len(names))), ticktext=[safe(name) for name in names],
        range=[-0.45, len(names) - 0.45], showgrid=True,
    )  # fmt: skip
    figure.update_yaxes(visible=False, range=[-0.08, 1.12])
    legend = (
        LegendEntry("top", COLORS[1], "solid", "top"),
        LegendEntry("others, darker is nearer to the top", _SEQUENTIAL[3], "solid", "configurations"),
    )
    shown = f"{len(order)} of {len(everything)} configurations, from the worst to the best."
    caption = shown if len(order) < len(everything) else ""
    return finish("parallel", "Parallel coordinates", caption, figure, legend, height=380)


def trial_curves(record: SweepRecord, most: int) -> Plot | None:
    """The metric of each trial over its share of steps; where the scheduler ended it, a cross."""
    scheduler = (record.experiment.get("sweep") or {}).get("scheduler") or {}
    stopped = record.trials_of("stopped")
    if "kind" not in scheduler or not stopped:
        return None
    scale = metric_scale(record.metric)
    figure = new_figure("share of the steps, %", metric_title(record.metric))
    curves = [trial for trial in record.trials if trial.role == CANDIDATE and trial.reports]
    drawn = sample(curves, most)
    traces = []
    for trial in drawn:
        ended = trial.status == "stopped"
        group = "stopped" if ended else "to the end"
        texts = [safe(f"trial {trial.number}, {trial.label}: {value * scale:.2f}") for _, value in trial.reports]
        line = {"color": COLORS[1] if ended else COLORS[0], "width": 1.4, "dash": "dot" if ended else "solid"}
        marker = {"size": [0] * (len(trial.reports) - 1) + [10], "symbol": "x" if ended else "circle"}
        points = [(100 * share, value * scale) for share, value in trial.reports]
        traces.append(trace(group, points, texts, mode="lines+markers", line=line, marker=marker))
    figure.add_traces(traces)
    caption = f"{len(stopped)} trials were stopped by {scheduler['kind']}."
    if len(drawn) < len(curves):
        caption += f" {len(drawn)} of {len(curves)} trials are drawn."
    legend = (
        LegendEntry("to the end", COLORS[0], "solid", "to the end"),
        LegendEntry("stopped early", COLORS[1], "dot", "stopped"),
    )
    return finish("stops", "Early stops", caption, figure, legend)


def _axis_of(record: SweepRecord, key: str, values: Sequence[Any]) -> tuple[Any, list[tuple[float, str]]]:
    """A function from a value to its height between 0 and 1, and the (height, text) of its ticks."""
    parameter = ParameterConfig.model_validate(record.space[key])
    if not parameter.discrete:
        low, high = parameter.values
        log = parameter.kind == "loguniform"
        bottom, top = (math.log(low), math.log(high)) if log else (low, high)

        def height(value: Any) -> float:
            return ((math.log(value) if log else value) - bottom) / (top - bottom)

        return height, [(0.0, plain_number(low)), (1.0, plain_number(high))]
    names = _categories(parameter, values)
    places = {name: index / max(len(names) - 1, 1) for index, name in enumerate(names)}
    ticks = [(place, name if len(name) <= 16 else name[:14] + "…") for name, place in places.items()]
    return (lambda value: places[show_value_of(value)]), ticks


def _categories(parameter: ParameterConfig, values: Sequence[Any]) -> list[str]:
    """Texts of the values that occur, numbers in their order, others as the space lists them."""
    occurring = {show_value_of(value): value for value in values}
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in occurring.values()):
        return sorted(occurring, key=lambda text: occurring[text])
    listed = [show_value_of(value) for value in parameter.values]
    return sorted(occurring, key=lambda text: listed.index(text) if text in listed else len(listed))


def _distribution(parameter: ParameterConfig, values: Sequence[Any]) -> Any:
    import optuna

    if parameter.discrete:
        texts = list(dict.fromkeys(json.dumps(value, default=str) for value in [*parameter.values, *values]))
        return optuna.distributions.CategoricalDistribution(texts)
    low, high = parameter.values
    if parameter.kind == "int":
        return optuna.distributions.IntDistribution(low, high)
    return optuna.distributions.FloatDistribution(low, high, log=parameter.kind == "loguniform")


def _note(figure: go.Figure, x: float, y: float, text: str) -> None:
    figure.add_annotation(
        x=x, y=y, text=safe(text), showarrow=False, xanchor="left", xshift=7, yshift=8, font={"size": 11, "color": INK}
    )


def _short(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.rsplit('.', 1)[-1]}={show_value_of(value)}" for key, value in values.items())
