"""Numbers as people read them. Absent ones are a dash, never a zero."""

from __future__ import annotations

import math

from raybrew.config.judge import LOSS

__all__ = [
    "ABSENT",
    "LOWEST_TEACHER",
    "PERCENT_METRICS",
    "count_of",
    "kept_share",
    "metric_scale",
    "metric_title",
    "show_bytes",
    "show_count",
    "show_factor",
    "show_ms",
    "show_named",
    "show_range",
    "show_seconds",
    "show_share",
    "show_value",
]

#: Stands where a number is missing.
ABSENT = "–"

#: Quality below which a teacher has next to none.
LOWEST_TEACHER = 0.1

#: Metrics between 0 and 1 that are shown in per cent; correlations such as `mcc` are not.
PERCENT_METRICS = frozenset({"accuracy", "macro_f1", "micro_f1", "weighted_f1", "f1", "exact_match"})


def metric_scale(metric: str) -> float:
    """What a stored value is multiplied with to be shown."""
    return 100.0 if metric in PERCENT_METRICS else 1.0


def kept_share(value: float | None, teacher: float | None) -> float | None:
    """Share of the teacher's quality that a student keeps, both as they are stored.

    None if the teacher's value is below `LOWEST_TEACHER`, as a share of next to nothing says nothing, and for a student
    below zero.
    """
    if value is None or teacher is None or teacher < LOWEST_TEACHER or value < 0:
        return None
    return value / teacher


def metric_title(metric: str) -> str:
    """Name of a metric as a column head: `accuracy %`, `MCC`."""
    names = {"mcc": "MCC", "macro_f1": "macro F1", "micro_f1": "micro F1", "weighted_f1": "weighted F1", "f1": "F1"}
    names[LOSS] = "evaluation loss"
    name = names.get(metric, metric.replace("_", " "))
    return f"{name} %" if metric in PERCENT_METRICS else name


def show_named(metric: str, value: float | None, *, rows: int | None = None) -> str:
    """`accuracy 84.2 %`, `MCC 0.613`: a metric with its value in a sentence."""
    title = metric_title(metric)
    text = f"{title.removesuffix(' %')} {show_value(metric, value, rows=rows)}"
    return f"{text} %" if title.endswith(" %") else text


def show_value(
    metric: str, value: float | None, spread: float | None = None, *, rows: int | None = None, signed: bool = False
) -> str:
    """`91.3 ± 0.4`, on the metric's scale.

    An evaluation of up to 10,000 rows cannot tell more than one decimal; a spread that would round to zero gets one
    more.
    """
    if value is None:
        return ABSENT
    if metric == LOSS:
        # Losses of layers may be of any size.
        text = f"{value:+.4g}" if signed else f"{value:.4g}"
        return text.replace("-", "−") if spread is None else f"{text} ± {spread:.2g}"
    decimals = _decimals(metric, rows)
    scale = metric_scale(metric)
    if spread and round(spread * scale, decimals) == 0:
        decimals += 1
    text = _fixed(value * scale, decimals, signed)
    return text if spread is None else f"{text} ± {_fixed(spread * scale, decimals)}"


def show_range(metric: str, low: float, high: float, *, rows: int | None = None, signed: bool = False) -> str:
    """`−0.4 to +1.8`, on the metric's scale.

    With `signed` zero is a border: an end that would round to it gets more decimals, `−2.2 to −0.04`.
    """
    scale, decimals = metric_scale(metric), _decimals(metric, rows)
    return " to ".join(
        _end(value * scale, decimals) if signed else _fixed(value * scale, decimals) for value in (low, high)
    )


def _end(value: float, decimals: int) -> str:
    if value and round(value, decimals) == 0:
        decimals = next((more for more in range(decimals, decimals + 4) if round(value, more)), decimals)
    return _fixed(value, decimals, signed=True)


def count_of(number: int, noun: str, plural: str | None = None) -> str:
    """`1 layer`, `4,000 rows`."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def _decimals(metric: str, rows: int | None) -> int:
    return (1 if rows is None or rows <= 10_000 else 2) + (0 if metric in PERCENT_METRICS else 2)


def show_count(value: float | None) -> str:
    """`950`, `14.5 M`, `1.2 G`."""
    if value is None:
        return ABSENT
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * limit:
            return f"{_short(value / limit)} {unit}"
    return f"{value:.0f}"


def show_bytes(megabytes: float | None) -> str:
    """Megabytes (10^6 bytes) with their unit: `57.4 MB`, `1.3 GB`."""
    if megabytes is None:
        return ABSENT
    if megabytes >= 999.5:
        return f"{_short(megabytes / 1000)} GB"
    return f"{_short(megabytes)} MB"


def show_ms(value: float | None) -> str:
    """Milliseconds without unit: `0.042`, `0.42`, `4.20`, `42.0`, `420`."""
    if value is None:
        return ABSENT
    decimals = next((decimals for limit, decimals in ((0.1, 3), (10, 2), (100, 1)) if value < limit), 0)
    return f"{value:.{decimals}f}"


def show_seconds(value: float | None) -> str:
    """`42 s`, `3 min 12 s`, `2 h 05 min`, `3 d 4 h`."""
    if value is None:
        return ABSENT
    seconds = round(value)
    if seconds < 10:
        return f"{value:.1f} s"
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    if seconds < 86400:
        minutes = round(value / 60)
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(value / 3600)
    return f"{hours // 24} d {hours % 24} h"


def show_share(value: float | None) -> str:
    """`97.3 %`."""
    return ABSENT if value is None else f"{100 * value:.1f} %"


def show_factor(value: float | None) -> str:
    """`7.6x`, `12x`."""
    return ABSENT if value is None else f"{_short(value)}x"


def _short(value: float) -> str:
    """One decimal below 100, none from there on."""
    return f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def _fixed(value: float, decimals: int, signed: bool = False) -> str:
    if math.isnan(value):
        return "nan"
    text = f"{value:.{decimals}f}"
    if float(text) == 0:
        # A rounded "-0.0" would name a direction that the digits do not show.
        return text.removeprefix("-")
    if signed and value > 0:
        return f"+{text}"
    return text.replace("-", "−")
